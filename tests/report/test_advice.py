"""What a run says of itself where its figures are not worth much, on cases made for it."""

from __future__ import annotations

from typing import Any

import pytest

from rosepo.report.text.advice import Training, advice

FALLING = [6.9, 6.5, 6.2, 6.0]


def training(
    values: list[float], metric: str = "validation_loss", patient: bool = False, section: str = "sft"
) -> Training:
    return Training("SFT", section, metric, values, 62, "steps", f"{section}.epochs (1)", patient)


def metrics(below: tuple[str, ...] = (), **values: float) -> dict[str, Any]:
    """Metrics of models with these NDCG@10; the aligned one is clearly below those of `below`."""
    clear = {"value": -0.05, "low": -0.06, "high": -0.04}
    unclear = {"value": -0.05, "low": -0.11, "high": 0.01}
    names = [name for name in ("popular", "markov") if name in values]
    return {
        "models": {name: {"ndcg@10": {"value": value}} for name, value in values.items()},
        "differences": {f"aligned-{name}": {"ndcg@10": clear if name in below else unclear} for name in names},
        "oracle": "SASRec",
    }


GOOD = {"popular": 0.03, "markov": 0.07, "oracle": 0.1, "sft": 0.09, "aligned": 0.1}


def test_a_run_that_has_nothing_to_mend_is_told_nothing() -> None:
    assert advice(metrics(**GOOD), [training([6.9, 6.2, 6.1, 6.12])]) == []


@pytest.mark.parametrize(
    ("values", "metric", "patient", "improving"),
    [
        (FALLING, "validation_loss", False, True),
        (FALLING, "validation_loss", True, False),  # it stopped because it saw no better model
        ([6.9, 6.2, 6.0, 5.99], "validation_loss", False, False),  # flat
        ([6.9, 6.2, 5.9, 6.0], "validation_loss", False, False),
        ([0.01, 0.03, 0.05, 0.07], "ndcg@10", False, True),
        ([0.01, 0.07, 0.05, 0.06], "ndcg@10", False, False),
        ([0.0754, 0.0788, 0.0775, 0.0791], "ndcg@10", False, False),  # up and down on a level
        ([6.9], "validation_loss", False, False),  # one look says nothing
    ],
)
def test_a_training_that_ended_while_it_got_better_is_told(
    values: list[float], metric: str, patient: bool, improving: bool
) -> None:
    told = advice(metrics(**GOOD), [training(values, metric, patient)])
    assert [("still improving" in line and "sft.epochs" in line) for line in told] == [True] * improving


def test_a_gain_that_is_told_can_be_seen() -> None:
    told = advice(metrics(**GOOD), [training([0.0682, 0.0699, 0.07178, 0.07229], "ndcg@10")])
    assert "from 0.0718 to 0.0723 with" in told[0]


def test_below_a_baseline_an_early_end_of_sft_is_mended_first() -> None:
    values = {"popular": 0.03, "markov": 0.07, "oracle": 0.1, "sft": 0.02, "aligned": 0.02}
    told = advice(metrics(("markov", "popular"), **values), [training(FALLING)])
    assert "still improving" in told[0]
    assert "Aligned is below Markov chain (−0.050 [−0.060, −0.040]) and Most popular" in told[1]
    assert "Change first: train SFT to its end" in told[1]
    assert told[2] == "Aligned has 20 % of the NDCG@10 of its oracle (SASRec)."


def test_below_a_baseline_alignment_is_named_where_sft_was_above_it() -> None:
    values = GOOD | {"aligned": 0.05}
    assert "alignment itself" in advice(metrics(("markov",), **values), [])[0]


def test_below_a_baseline_the_data_are_named_where_the_oracle_is_below_it_too() -> None:
    values = {"popular": 0.03, "markov": 0.07, "oracle": 0.04, "sft": 0.03, "aligned": 0.03}
    assert "the data: the oracle" in advice(metrics(("markov",), **values), [])[0]


def test_below_a_baseline_sft_is_named_where_the_oracle_shows_that_the_log_has_more() -> None:
    values = {"popular": 0.03, "markov": 0.07, "oracle": 0.1, "sft": 0.03, "aligned": 0.05}
    assert "Change first: SFT" in advice(metrics(("markov",), **values), [training([6.0, 5.0, 5.1, 5.2])])[0]


def test_a_baseline_that_is_not_clearly_above_is_no_reason() -> None:
    assert not any("below" in line for line in advice(metrics(**(GOOD | {"markov": 0.11})), []))


UP, DOWN, LEVEL = (
    dict(zip(("value", "low", "high"), ends))
    for ends in ((0.02, 0.01, 0.03), (-0.02, -0.03, -0.01), (0.0, -0.01, 0.01))
)


@pytest.mark.parametrize(
    ("sft_over_oracle", "gain", "told"),
    [(UP, LEVEL, True), (UP, DOWN, True), (UP, UP, False), (LEVEL, LEVEL, False), (DOWN, DOWN, False)],
)
def test_an_oracle_below_the_model_that_it_teaches_is_told_where_alignment_brought_nothing(
    sft_over_oracle: dict[str, float], gain: dict[str, float], told: bool
) -> None:
    measured = metrics(**(GOOD | {"oracle": 0.09}))
    measured["differences"] |= {"sft-oracle": {"ndcg@10": sft_over_oracle}, "aligned-sft": {"ndcg@10": gain}}
    lines = advice(measured, [])
    found = [line.startswith("SFT is above the oracle (SASRec) by +0.020 [+0.010, +0.030]") for line in lines]
    assert found == [True] * told
