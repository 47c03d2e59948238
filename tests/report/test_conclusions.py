from __future__ import annotations

from typing import Any

import pytest

from rosepo.report.text.conclusions import verdict
from rosepo.report.text.format import brackets, number, outcome, sign


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
    assert better[0].startswith("Alignment made recommendations more accurate: HR@10 (+0.150 [+0.100, +0.200]) and")
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
    assert "made wrong titles even less like the history than right ones" in verdict(metrics).sentences[1]


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


def _figure(low: float | None, high: float | None) -> dict[str, float | None]:
    middle = None if low is None or high is None else (low + high) / 2
    return {"value": middle, "low": low, "high": high}


def test_hits_and_order_that_part_are_both_told() -> None:
    metrics: Any = _metrics(-0.1, 0.1)
    metrics["differences"]["aligned-sft"] |= {"hr@10": _figure(0.1, 0.2), "ndcg@10": _figure(-0.2, -0.1)}
    said = verdict(metrics).sentences[0]
    assert "in opposite directions: HR@10 (+0.150 [+0.100, +0.200]) and NDCG@10 (−0.150 [−0.200, −0.100])" in said


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_what_was_not_measured_is_not_called_no_difference(nothing: Any) -> None:
    metrics: Any = _metrics(-0.1, 0.1)
    difference = metrics["differences"]["aligned-sft"]
    for key in difference:
        difference[key] = {"value": 0.1, "low": nothing, "high": nothing}
    said = verdict(metrics)
    assert said.sentences[0] == (
        "Whether alignment changed accuracy cannot be told: HR@10 and NDCG@10 could not be measured."
    )
    assert said.sentences[1] == (
        "Whether it changed bias cannot be told: popularity and semantic hallucination could not be measured."
    )
    assert "no difference" not in str(said)
    assert "nan" not in str(said)
    assert outcome(difference["hr@10"]) == "could not be measured"


def test_accuracy_beyond_the_two_figures_is_not_passed_over() -> None:
    metrics: Any = _metrics(-0.1, 0.1)
    assert "in accuracy: no difference" in verdict(metrics).sentences[0]
    metrics["differences"]["aligned-sft"] |= {"hr@1": _figure(-0.2, -0.1), "hr@20": _figure(-0.1, 0.1)}
    said = verdict(metrics)
    assert "changed nothing that can be seen in the hits and the order of the first ten" in said.sentences[0]
    assert "clear of zero too: HR@1 −0.150 [−0.200, −0.100]." in said.details[2]


def test_another_system_is_held_against_the_aligned_model() -> None:
    metrics: Any = _metrics(-0.1, 0.1) | {"external": {"bpr": {}}}
    metrics["models"]["bpr"] = metrics["models"]["sft"]
    metrics["differences"]["bpr-aligned"] = {"hr@10": _figure(-0.2, -0.1), "ndcg@10": _figure(-0.1, 0.1)}
    told = verdict(metrics).details[-1]
    assert told.startswith("bpr minus Aligned: HR@10 −0.150")
    hits, order = told.split("; ")
    assert hits.endswith(": lower")
    assert order.endswith(": no difference seen.")


@pytest.mark.parametrize(
    ("pair", "low", "high", "words"),
    [
        ("popular-markov", 0.1, 0.2, "Most popular minus Markov chain +0.150, 95 % interval +0.100 to +0.200: higher."),
        (
            "markov-popular",
            -0.2,
            -0.1,
            "Markov chain minus Most popular −0.150, 95 % interval −0.200 to −0.100: lower.",
        ),
        ("markov-popular", -0.2, 0.1, "95 % interval −0.200 to +0.100: no difference seen."),
        ("a-b", 0.1, 0.2, "with which it was not compared."),
    ],
)
def test_without_alignment_the_highest_is_held_against_the_next(pair: str, low: float, high: float, words: str) -> None:
    models = {name: {"ndcg@10": {"value": value}} for name, value in (("markov", 0.2), ("popular", 0.3), ("x", None))}
    metrics = {"models": models, "differences": {pair: {"ndcg@10": _figure(low, high)}}}
    first, second = verdict(metrics).sentences
    assert "alignment cannot be judged" in first
    assert second.startswith(
        "The highest NDCG@10 is that of Most popular (0.300), the next that of Markov chain (0.200)"
    )
    assert second.endswith(words)


@pytest.mark.parametrize(
    ("users", "words"), [(1, "One user was measured"), (12, "Only 12 users were measured"), (500, "")]
)
def test_few_users_are_said_to_be_few(users: int, words: str) -> None:
    said = str(verdict(_metrics(-0.1, 0.1) | {"n_users": users}))
    assert (words in said) if words else (" measured: intervals" not in said)


def test_narrow_intervals_get_the_digits_that_show_them() -> None:
    assert brackets({"value": 0.0104, "low": 0.0051, "high": 0.0152}) == "+0.010 [+0.005, +0.015]"
    assert brackets({"value": -0.00216, "low": -0.0025, "high": -0.0018}) == "−0.0022 [−0.0025, −0.0018]"
    assert brackets({"value": 0.00001, "low": 0.0, "high": 0.00003}) == "+0.00001 [0.00000, +0.00003]"


def test_free_answers_among_candidates_are_in_the_verdict() -> None:
    answers = {name: {"hr@1": {"value": value}} for name, value in (("sft", 0.2), ("aligned", 0.35))}
    found = {"models": answers, "differences": {"aligned-sft": {"hr@1": _figure(0.1, 0.2)}}}
    said = verdict(_metrics(-0.1, 0.1) | {"candidates": found}).details[2]
    assert said == "HR@1 of free answers went from 0.200 to 0.350 (+0.150, 95 % interval +0.100 to +0.200): better."
