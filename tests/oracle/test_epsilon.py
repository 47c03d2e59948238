"""Epsilon and its temperature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rosepo.objectives.smoothing import clamp_epsilon
from rosepo.oracle.epsilon import CEILING, TAU_BOUNDS, calibrate, calibration, epsilon, fit_tau, log_loss


@given(arrays(np.float64, (4, 3), elements=st.floats(-1e6, 1e6)), st.floats(0.01, 100))
def test_epsilon_is_finite_and_below_one_half(scores: np.ndarray, tau: float) -> None:
    smoothing = epsilon(calibrate(scores, tau))
    assert smoothing.dtype == np.float32
    assert smoothing.shape == (4, 2)
    assert np.isfinite(smoothing).all()
    assert (smoothing >= 0).all()
    assert (smoothing <= CEILING).all()


@given(arrays(np.float32, (4, 3), elements=st.floats(-60, 60, width=32)), st.floats(0.01, CEILING))
def test_epsilon_stays_under_its_limit_and_falls_with_the_margin(scores: np.ndarray, limit: float) -> None:
    smoothing = epsilon(scores, limit)
    assert (smoothing <= limit).all()
    assert (epsilon(scores + np.float32([1, 0, 0]), limit) <= smoothing).all()


def test_training_clamps_the_tables_epsilon_to_what_its_own_limit_would_have_given() -> None:
    scores = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    stored = torch.from_numpy(epsilon(scores))
    np.testing.assert_allclose(clamp_epsilon(stored, 0.4).numpy(), epsilon(scores, 0.4), atol=1e-6)


def test_epsilon_is_the_chance_that_the_order_is_wrong() -> None:
    assert epsilon(np.array([[np.log(9.0), 0.0]])).item() == pytest.approx(0.1)
    assert epsilon(np.array([[0.0, 5.0]])).item() == pytest.approx(CEILING, abs=1e-6)


@pytest.mark.parametrize("tau", [0.2, 1.0, 7.0])
def test_the_temperature_of_the_data_is_found(tau: float) -> None:
    random = np.random.default_rng(0)
    margin = random.normal(scale=2 * tau, size=100_000)
    wins = random.random(len(margin)) < 1 / (1 + np.exp(-margin / tau))
    chosen = np.where(wins, margin, -margin)
    assert fit_tau(chosen, np.zeros_like(chosen)) == pytest.approx(tau, rel=0.03)


def test_the_fit_is_the_best_on_a_grid() -> None:
    random = np.random.default_rng(1)
    chosen, other = random.normal(0.5, size=500), random.normal(size=(500, 3))
    best = min(np.geomspace(*TAU_BOUNDS, 2000), key=lambda tau: log_loss(chosen, other, float(tau)))
    assert fit_tau(chosen, other) == pytest.approx(float(best), rel=0.02)


def test_an_oracle_that_knows_nothing_gets_the_upper_bound() -> None:
    assert fit_tau(np.array([0.0, 1.0]), np.array([1.0, 2.0])) == TAU_BOUNDS[1]


def test_an_oracle_that_is_always_right_gets_the_lower_bound() -> None:
    assert fit_tau(np.array([5.0, 6.0]), np.array([1.0, 2.0])) <= 0.2


@pytest.mark.parametrize("chosen", [[], [np.nan], [np.inf]])
def test_scores_that_are_not_finite_are_refused(chosen: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        fit_tau(np.array(chosen), np.zeros(len(chosen)))


def test_calibration_error_is_the_gap_between_sureness_and_truth() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(-3, 3, 200_000)
    honest = np.where(rng.random(len(sure)) < 1 / (1 + np.exp(-sure)), sure, -sure)
    assert calibration(honest)["error"] < 0.01
    assert calibration(3 * honest)["error"] > 0.08
    sure = np.log(0.92 / 0.08)
    (row,) = calibration(np.array([[sure, sure], [sure, -sure]]))["bins"]
    assert row == {"low": pytest.approx(0.9), "high": pytest.approx(0.95), "confidence": pytest.approx(0.92),
                   "accuracy": 0.75, "pairs": 4}  # fmt: skip


def test_an_oracle_without_an_opinion_is_calibrated_at_one_half() -> None:
    assert calibration(np.zeros(5)) == {
        "bins": [{"low": 0.5, "high": 0.55, "confidence": 0.5, "accuracy": 0.5, "pairs": 5}],
        "error": 0.0,
    }
