"""The temperature of an oracle, and how far it can be believed."""

from __future__ import annotations

import numpy as np
import pytest

from rosepo.oracle.calibration import TAU_BOUNDS, calibrate_preferences, fit_tau, log_loss, reliability


@pytest.mark.parametrize("tau", [0.2, 1.0, 7.0])
def test_the_temperature_of_the_data_is_found(tau: float) -> None:
    random = np.random.default_rng(0)
    margin = random.normal(scale=2 * tau, size=100_000)
    wins = random.random(len(margin)) < 1 / (1 + np.exp(-margin / tau))
    chosen = np.where(wins, margin, -margin)
    assert fit_tau(chosen) == pytest.approx(tau, rel=0.03)


def test_the_fit_is_the_best_on_a_grid() -> None:
    random = np.random.default_rng(1)
    margins = random.normal(0.5, size=(500, 1)) - random.normal(size=(500, 3))
    best = min(np.geomspace(*TAU_BOUNDS, 2000), key=lambda tau: log_loss(margins, float(tau)))
    assert fit_tau(margins) == pytest.approx(float(best), rel=0.02)


def test_an_oracle_that_knows_nothing_gets_the_upper_bound() -> None:
    assert fit_tau(np.array([-1.0, -1.0])) == TAU_BOUNDS[1]


def test_an_oracle_that_is_always_right_gets_the_lower_bound() -> None:
    assert fit_tau(np.array([4.0, 4.0])) <= 0.2


@pytest.mark.parametrize("margins", [[], [np.nan], [np.inf]])
def test_scores_that_are_not_finite_are_refused(margins: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        fit_tau(np.array(margins))


def test_calibration_error_is_the_gap_between_sureness_and_truth() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(-3, 3, 200_000)
    honest = np.where(rng.random(len(sure)) < 1 / (1 + np.exp(-sure)), sure, -sure)
    assert reliability(honest)["error"] < 0.01
    assert reliability(3 * honest)["error"] > 0.08
    sure = np.log(0.92 / 0.08)
    (row,) = reliability(np.array([[sure, sure], [sure, -sure]]))["bins"]
    assert row == {"low": pytest.approx(0.9), "high": pytest.approx(0.95), "confidence": pytest.approx(0.92),
                   "accuracy": 0.75, "pairs": 4}  # fmt: skip


def test_an_oracle_without_an_opinion_is_calibrated_at_one_half() -> None:
    assert reliability(np.zeros(5)) == {
        "bins": [{"low": 0.5, "high": 0.55, "confidence": 0.5, "accuracy": 0.5, "pairs": 5}],
        "error": 0.0,
    }


def test_an_oracle_that_knows_no_more_than_chance_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    other = np.array([[1.0, 3.0], [2.0, 0.0], [0.5, 0.5]])
    assert calibrate_preferences(np.array([3.0, 1.5, 0.6]), other, None)["auc"] > 0.5
    assert "chance" not in "".join(capfd.readouterr())
    assert calibrate_preferences(np.array([0.0, 0.1, 0.2]), other, None)["auc"] < 0.5
    assert "no better than chance" in "".join(capfd.readouterr())
