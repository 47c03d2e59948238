from __future__ import annotations

from typing import Any

import pytest

from rosepo.evaluation.verdict import number, sign, verdict


def _metrics(low: float, high: float) -> dict[str, object]:
    middle = (low + high) / 2
    keys = ("hr@10", "ndcg@10", "log_popularity", "hallucination")
    sft = {key: {"value": 1.0, "low": 0.9, "high": 1.1, "truth": 0.0} for key in keys}
    aligned = {key: {**figure, "value": 1.0 + middle} for key, figure in sft.items()}
    difference = {key: {"value": middle, "low": low, "high": high} for key in keys}
    models = {"sft": sft, "aligned": aligned}
    return {"protocol": "catalogue", "models": models, "differences": {"aligned-sft": difference}}


def test_the_verdict_calls_nothing_a_difference_that_may_be_none() -> None:
    said = str(verdict(_metrics(-0.1, 0.1)))
    assert said.count("no difference seen") == 6
    assert "changed nothing that can be seen in accuracy" in said


def test_the_verdict_says_what_is_better_and_what_is_worse() -> None:
    better, worse = verdict(_metrics(0.1, 0.2)).sentences, verdict(_metrics(-0.2, -0.1)).sentences
    assert better[0].startswith("Alignment made recommendations more accurate: HR@10 +0.150 [+0.100, +0.200] and NDCG")
    assert "raised popularity bias" in better[1]
    assert "less accurate" in worse[0]
    assert worse[1] == (
        "It lowered popularity bias (log-popularity −0.150 [−0.200, −0.100]) and lowered semantic hallucination "
        "(−0.150 [−0.200, −0.100])."
    )


def test_the_verdict_says_that_candidates_alone_were_ranked() -> None:
    said = verdict(_metrics(0.1, 0.2) | {"protocol": "candidates"}).sentences[0]
    assert said.startswith("Alignment made recommendations more accurate among the listed candidates: HR@10")


@pytest.mark.parametrize(
    ("sft", "aligned", "words"),
    [
        (5.0, 5.5, "raised popularity bias"),
        (5.0, 4.5, "lowered popularity bias"),
        (5.0, 4.0, "lowered popularity bias"),
        (5.0, 3.0, "moved to less popular titles than people choose"),
        (4.0, 3.0, "moved to less popular titles than people choose"),
        (3.0, 4.0, "moved nearer to the popularity of what people choose"),
        (3.0, 4.5, "moved nearer to the popularity of what people choose"),
        (4.0, 5.0, "raised popularity bias"),
    ],
)
def test_popularity_bias_is_the_excess_over_what_people_choose(sft: float, aligned: float, words: str) -> None:
    metrics: Any = _metrics(-0.1, 0.1)
    models, difference = metrics["models"], metrics["differences"]["aligned-sft"]["log_popularity"]
    models["sft"]["log_popularity"] = {"value": sft, "truth": 4.2}
    models["aligned"]["log_popularity"] = {"value": aligned, "truth": 4.2}
    difference |= {"value": aligned - sft, "low": aligned - sft - 0.1, "high": aligned - sft + 0.1}
    said = verdict(metrics)
    assert said.sentences[1].startswith(f"It {words} (")
    assert "with no difference seen in semantic hallucination" in said.sentences[1]
    direction = "more" if aligned > sft else "less"
    nearer = "nearer to" if abs(aligned - 4.2) < abs(sft - 4.2) else "further from"
    assert f"{direction} popular titles, {nearer} what people chose." in str(said)


@pytest.mark.parametrize("accuracy", [(-0.1, 0.1), (0.1, 0.2), (-0.2, -0.1)])
@pytest.mark.parametrize("ndcg", [(-0.1, 0.1), (0.1, 0.2), (-0.2, -0.1)])
@pytest.mark.parametrize("bias", [(-0.1, 0.1), (0.1, 0.2)])
@pytest.mark.parametrize("measured", [True, False])
def test_the_verdict_is_two_sentences_whatever_was_seen(
    accuracy: tuple[float, float], ndcg: tuple[float, float], bias: tuple[float, float], measured: bool
) -> None:
    metrics: Any = _metrics(*bias)
    for key, (low, high) in (("hr@10", accuracy), ("ndcg@10", ndcg)):
        metrics["differences"]["aligned-sft"][key] = {"value": (low + high) / 2, "low": low, "high": high}
    if not measured:
        metrics["models"]["aligned"]["hallucination"]["value"] = None
    first, second = verdict(metrics).sentences
    for sentence in (first, second):
        assert sentence.endswith(".")
        assert ". " not in sentence
    unseen = [name for name, (low, high) in (("HR@10", accuracy), ("NDCG@10", ndcg)) if low < 0 < high]
    assert ("no difference seen" in first) == bool(unseen)
    assert all(name in first.partition("no difference seen")[2] for name in unseen)
    assert ("no difference seen" in second) == (bias == (-0.1, 0.1))
    assert ("could not be measured" in second) == (not measured)


def test_wrong_titles_that_stay_below_the_right_ones_are_no_bias() -> None:
    metrics: Any = _metrics(-0.2, -0.1)
    for name in ("sft", "aligned"):
        metrics["models"][name]["hallucination"]["value"] = -0.5
    assert "made wrong titles less like the history, if less so than the right ones" in verdict(metrics).sentences[1]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.2, 1),
        (-0.2, -0.1, -1),
        (-0.1, 0.1, 0),
        (0.0, 0.1, 0),
        (1e-17, 4e-16, 0),
        (-4e-16, -1e-17, 0),
        (None, 1, 0),
    ],
)
def test_only_an_interval_clear_of_zero_and_of_rounding_is_a_difference(
    low: float | None, high: float, expected: int
) -> None:
    assert sign({"value": 0.1, "low": low, "high": high}) == expected


def test_numbers_are_written_with_a_true_minus_and_no_minus_zero() -> None:
    assert [number(value, True) for value in (-0.0123, -0.0001, 0.5, None)] == ["−0.012", "0.000", "+0.500", "–"]
    assert [number(value) for value in (12.344, -1.0)] == ["12.34", "−1.000"]
