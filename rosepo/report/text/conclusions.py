"""What alignment changed and how systems stand to one another, in plain words and from paired intervals alone.

A difference is only called one if its interval is clear of zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rosepo.report.text.format import (
    NONE_SEEN,
    NOT_MEASURED,
    Figure,
    brackets,
    digits_of,
    interval,
    joined,
    known,
    measured,
    number,
    outcome,
    sign,
)
from rosepo.report.text.labels import label

ACCURACY = ("hr@10", "ndcg@10")
"""What the verdict is made of."""
OTHER_ACCURACY = ("hr@1", "hr@5", "hr@20", "ndcg@5", "ndcg@20")
HIGHER = ("higher", "lower")
FEW = 50
"""Users under which intervals are said to be too narrow: a bootstrap of few units does not reach its level."""


@dataclass(frozen=True)
class Verdict:
    """Two sentences, and the figures under them, a sentence each."""

    sentences: tuple[str, str]
    details: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((*self.sentences, *self.details))


def verdict(metrics: Mapping[str, Any]) -> Verdict:
    """The verdict on `metrics.json`: on alignment where there are both models, else on what is there."""
    models, differences, external = metrics["models"], metrics["differences"], metrics.get("external", {})
    if "aligned-sft" in differences:
        sentences, details = _of_alignment(metrics)
        pairs = [("aligned", "oracle"), ("aligned", "markov"), *((name, "aligned") for name in external)]
    else:
        unknown = "There is no aligned model beside its SFT base in this run, so alignment cannot be judged."
        sentences, details = (unknown, _highest(metrics)), []
        bases = ("sft",) if "sft" in models else ("oracle", "markov", "popular")
        pairs = [("sft", base) for base in ("popular", "markov", "oracle")]
        pairs += [(name, base) for name in external for base in bases]
    details += [
        minus(label(first, metrics), label(second, metrics), differences[f"{first}-{second}"])
        for first, second in pairs
        if f"{first}-{second}" in differences
    ]
    details.append(_few_users(metrics.get("n_users", FEW)))
    return Verdict(sentences, tuple(filter(None, details)))


def minus(first: str, second: str, difference: Mapping[str, Figure], also: str = "") -> str:
    """`A minus B: HR@10 +0.010, 95 % interval +0.001 to +0.019: higher; NDCG@10 …`; `also` behind these two."""
    told = [f"{key.upper()} {interval(difference[key])}: {outcome(difference[key], *HIGHER)}" for key in ACCURACY]
    return f"{first} minus {second}: {'; '.join(filter(None, (*told, also)))}."


@dataclass(frozen=True)
class _Claim:
    """What is said of one figure.

    Attributes:
        words: what alignment did to it, where that can be seen.
        difference: aligned minus SFT; empty where it could not be measured.
        detail: a sentence of its own.
        unit: to be written before the difference.
    """

    name: str
    words: str
    difference: Figure
    detail: str
    unit: str = ""

    def told(self, words: str) -> str:
        return f"{words} ({self.unit}{brackets(self.difference)})"


def _of_alignment(metrics: Mapping[str, Any]) -> tuple[tuple[str, str], list[str]]:
    """The two sentences on alignment, and those of the figures behind them."""
    models, difference = metrics["models"], metrics["differences"]["aligned-sft"]

    def figures(key: str) -> tuple[Figure, Figure, Figure]:
        return models["sft"][key], models["aligned"][key], difference[key]

    accuracy = [
        _Claim(key.upper(), key.upper(), difference[key], _went(key.upper(), *figures(key))) for key in ACCURACY
    ]
    bias = [_popularity(*figures("log_popularity")), _look_alikes(*figures("hallucination"))]
    clear = [f"{key.upper()} {brackets(difference[key])}" for key in OTHER_ACCURACY if sign(difference.get(key, {}))]
    others = f"Of the other figures of accuracy, clear of zero too: {joined(clear)}." if clear else ""
    free = _free_answers(metrics.get("candidates") or {})
    details = [*(claim.detail for claim in accuracy), others, free, *(claim.detail for claim in bias)]

    among = " among the listed candidates" if metrics["protocol"] == "candidates" else ""
    where = "the hits and the order of the first ten" if clear else "accuracy"
    signs = {sign(claim.difference) for claim in accuracy}
    moved = f"made recommendations {'more' if 1 in signs else 'less'} accurate"
    if signs == {1, -1}:
        moved = "moved hits and their order in opposite directions"
    first = _sentence(
        accuracy,
        seen=f"Alignment {moved}{among}:",
        unseen=f"Alignment changed nothing that can be seen in {where}{among}:",
        lost=f"Whether alignment changed accuracy{among} cannot be told:",
    )
    return (first, _sentence(bias, "It", "There was", "Whether it changed bias cannot be told:")), details


def _sentence(claims: Sequence[_Claim], seen: str, unseen: str, lost: str) -> str:
    """Claims in one sentence, which begins by whether any difference was seen, none, or none could be measured."""
    found = [claim for claim in claims if sign(claim.difference)]
    none = [claim for claim in claims if measured(claim.difference) and claim not in found]
    names = [claim.name for claim in claims if not measured(claim.difference)]
    if len(names) == len(claims):
        return f"{lost} {joined(names)} {NOT_MEASURED}."
    told = f"{NONE_SEEN} in {joined([claim.told(claim.name) for claim in none])}" if none else ""
    if found:
        told = joined([claim.told(claim.words) for claim in found]) + (f", with {told}" if told else "")
    behind = f"; {joined(names)} {NOT_MEASURED}" if names else ""
    return f"{seen if found else unseen} {told}{behind}."


def _went(title: str, before: Figure, after: Figure, difference: Figure, told: str = "", beside: str = "") -> str:
    """`HR@10 went from 0.100 to 0.110 (+0.010, 95 % interval +0.001 to +0.019): better.`

    Args:
        told: instead of better or worse.
        beside: behind the interval.
    """
    digits = digits_of(difference)
    values = " to ".join(number(figure["value"], digits=digits) for figure in (before, after))
    if not measured(difference):
        return f"{title} went from {values}; its change {NOT_MEASURED}."
    return f"{title} went from {values} ({interval(difference)}{beside}): {told or outcome(difference)}."


def _free_answers(found: Mapping[str, Any]) -> str:
    """HR@1 of what the models wrote freely, where prompts list candidates."""
    difference = found.get("differences", {}).get("aligned-sft", {}).get("hr@1")
    if difference is None:
        return ""
    before, after = (found["models"][name]["hr@1"] for name in ("sft", "aligned"))
    return _went("HR@1 of free answers", before, after, difference)


def _popularity(before: Figure, after: Figure, difference: Figure) -> _Claim:
    a, b, truth = before["value"], after["value"], before.get("truth")
    if truth is None or not known(a, b, truth):
        difference = {}
    told = outcome(difference, "more popular titles", "less popular titles")
    words, beside = "", ""
    if measured(difference):
        words = _bias_words(a - truth, b - truth)
        beside = f"; what people chose has {number(truth, digits=digits_of(difference))}"
    if sign(difference):
        told += f", {'nearer to' if abs(b - truth) < abs(a - truth) else 'further from'} what people chose"
    detail = _went("Mean log-popularity of the top 10", before, after, difference, told, beside)
    return _Claim("popularity", words, difference, detail, "log-popularity ")


def _bias_words(before: float, after: float) -> str:
    """From how far each model lies above what people chose: the bias is that excess alone."""
    if after < 0:
        if -after > abs(before):
            return "moved to less popular titles than people choose"
        return "lowered popularity bias" if before > 0 else "moved nearer to the popularity of what people choose"
    if before < 0 and after < -before:
        return "moved nearer to the popularity of what people choose"
    return "raised popularity bias" if after > before else "lowered popularity bias"


def _look_alikes(before: Figure, after: Figure, difference: Figure) -> _Claim:
    title = "Semantic hallucination, by how much wrong titles look more like the history than the right one,"
    words = ("raised semantic hallucination", "lowered semantic hallucination")
    if not known(before["value"], after["value"]):
        difference = {}
    told = outcome(difference, "more look-alikes", "fewer look-alikes")
    if measured(difference) and max(before["value"], after["value"]) <= 0:
        told += "; before and after, wrong titles look less like it than the right ones"
        words = (
            "made wrong titles more like the history, though less so than right ones",
            "made wrong titles even less like the history than right ones",
        )
    detail = _went(title, before, after, difference, told)
    return _Claim("semantic hallucination", outcome(difference, *words), difference, detail)


def _highest(metrics: Mapping[str, Any]) -> str:
    """Which system has the highest NDCG@10, and how it stands to the next."""
    values = {name: entry["ndcg@10"]["value"] for name, entry in metrics["models"].items()}
    order = sorted((name for name in values if known(values[name])), key=lambda name: -values[name])
    if not order:
        return f"NDCG@10 {NOT_MEASURED}."
    shown = [f"{label(name, metrics)} ({number(values[name])})" for name in order[:2]]
    told = f"The highest NDCG@10 is that of {', the next that of '.join(shown)}"
    if len(order) == 1:
        return f"{told}."
    for first, second in (order[:2], order[1::-1]):  # whichever way round they were compared
        difference = metrics["differences"].get(f"{first}-{second}", {}).get("ndcg@10", {})
        if measured(difference):
            pair = f"{label(first, metrics)} minus {label(second, metrics)}"
            return f"{told}; {pair} {interval(difference)}: {outcome(difference, *HIGHER)}."
    return f"{told}, with which it was not compared."


def _few_users(users: int) -> str:
    """A warning where intervals come from few users, nothing where they do not."""
    if users < 2:
        return "One user was measured, which gives no intervals: nothing can be said of others."
    return f"Only {users} users were measured: intervals of so few come out too narrow." if users < FEW else ""
