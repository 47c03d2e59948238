"""What alignment changed, in plain words and from paired intervals alone.

A difference is only called one if its interval is clear of zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ACCURACY = (("hr@10", "HR@10"), ("ndcg@10", "NDCG@10"))
NO_BASELINE = "The oracle is a table of scores, which cannot rank the whole catalogue, so it is no baseline here."

Figure = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """A headline, and the sentences under it."""

    headline: str
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((f"{self.headline}.", *self.sentences))


def verdict(metrics: Mapping[str, Any]) -> Verdict:
    """The verdict on `metrics.json`: on alignment where there are both models, else on what is there."""
    models, difference = metrics["models"], metrics["differences"].get("aligned-sft")
    if difference is None:
        headline, told = _without_alignment(models, metrics["differences"])
        return Verdict(headline, (*told, *no_baseline(metrics)))
    signs = {name: sign(difference[name]) for name, _ in ACCURACY}
    accuracy = _accuracy_words(set(signs.values()))
    sentences = [
        _change(label, models["sft"][name], models["aligned"][name], difference[name]) for name, label in ACCURACY
    ]
    words = [accuracy]
    for sentence, word in (_popularity(models, difference), _look_alikes(models, difference)):
        sentences.append(sentence)
        words += [word] if word else []
    return Verdict("Alignment " + _join(words), (*sentences, *no_baseline(metrics)))


def no_baseline(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Where there is an oracle that was not ranked by: why."""
    return () if metrics.get("oracle") is None or "oracle" in metrics["models"] else (NO_BASELINE,)


def sign(difference: Figure) -> int:
    """1 or -1 where the interval is clear of zero, 0 where it is not (or missing)."""
    low, high = difference.get("low"), difference.get("high")
    if low is None or high is None:
        return 0
    return int(low > 0) - int(high < 0)


def _accuracy_words(signs: set[int]) -> str:
    if signs == {0}:
        return "changed nothing that can be seen in accuracy"
    if -1 not in signs:
        return "made recommendations more accurate"
    if 1 not in signs:
        return "made recommendations less accurate"
    return "moved hits and their order in opposite directions"


def _change(label: str, before: Figure, after: Figure, difference: Figure) -> str:
    told = f"{label} went from {number(before['value'])} to {number(after['value'])} ({interval(difference)})"
    outcome = {1: "better", -1: "worse", 0: "no difference seen"}[sign(difference)]
    return f"{told}: {outcome}."


def _popularity(models: Mapping[str, Any], differences: Mapping[str, Any]) -> tuple[str, str]:
    """A sentence, and the words for the headline ('' where nothing was seen)."""
    before, after, difference = _three("log_popularity", models, differences)
    truth = before["truth"]
    told = (
        f"Mean log-popularity of the top 10 went from {number(before['value'])} to {number(after['value'])} "
        f"({interval(difference)}; what people chose has {number(truth)})"
    )
    if sign(difference) == 0:
        return f"{told}: no difference seen.", ""
    nearer = abs(after["value"] - truth) < abs(before["value"] - truth)
    outcome = (
        f"{'more' if sign(difference) > 0 else 'less'} popular titles, {'nearer to' if nearer else 'further from'}"
    )
    return f"{told}: {outcome} what people chose.", _bias_words(before["value"] - truth, after["value"] - truth)


def _bias_words(before: float, after: float) -> str:
    """For the headline, from how far each model lies above what people chose: the bias is that excess alone."""
    if after < 0:
        if -after > abs(before):
            return "moved to less popular titles than people choose"
        return "lowered popularity bias" if before > 0 else "moved nearer to the popularity of what people choose"
    if before < 0 and after < -before:
        return "moved nearer to the popularity of what people choose"
    return "raised popularity bias" if after > before else "lowered popularity bias"


def _look_alikes(models: Mapping[str, Any], differences: Mapping[str, Any]) -> tuple[str, str]:
    """The same for semantic hallucination."""
    before, after, difference = _three("hallucination", models, differences)
    if before["value"] is None or after["value"] is None:
        return "Likeness to the history could not be measured.", ""
    told = (
        f"Semantic hallucination, by how much wrong titles look more like the history than the right one, went from "
        f"{number(before['value'])} to {number(after['value'])} ({interval(difference)})"
    )
    outcome = {1: "more look-alikes", -1: "fewer look-alikes", 0: "no difference seen"}[sign(difference)]
    if max(before["value"], after["value"]) <= 0:
        return f"{told}: {outcome}, and both below the right titles.", ""
    word = {1: "raised semantic hallucination", -1: "lowered semantic hallucination", 0: ""}[sign(difference)]
    return f"{told}: {outcome}.", word


def _three(name: str, models: Mapping[str, Any], differences: Mapping[str, Any]) -> tuple[Figure, Figure, Figure]:
    return models["sft"][name], models["aligned"][name], differences[name]


def _without_alignment(models: Mapping[str, Any], differences: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    names = {"popular": "most popular", "markov": "the Markov chain", "oracle": "the oracle", "sft": "the SFT model"}
    best = max((name for name in models), key=lambda name: models[name]["ndcg@10"]["value"] or 0.0)
    headline = "There is no aligned model beside its SFT base in this run, so alignment cannot be judged"
    sentences = [f"The highest NDCG@10 is that of {names.get(best, 'the aligned model')}."]
    for base in ("popular", "markov", "oracle"):
        difference = differences.get(f"sft-{base}")
        if difference is not None:
            outcome = {1: "above", -1: "below", 0: "not distinguishable from"}[sign(difference["hr@10"])]
            sentences.append(f"SFT is {outcome} {names[base]} in HR@10 ({interval(difference['hr@10'])}).")
    return headline, tuple(sentences)


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def number(value: float | None, signed: bool = False) -> str:
    """Three digits, with a real minus sign; a dash where there is no number."""
    if value is None:
        return "–"
    digits = 3 if abs(value) < 10 else 2
    value = round(value, digits) + 0.0  # no minus in front of what rounds to zero
    text = f"{value:+.{digits}f}" if signed and value else f"{value:.{digits}f}"
    return text.replace("-", "−")


def interval(figure: Figure) -> str:
    """`+0.010, 95 % interval +0.001 to +0.019`."""
    low, high = number(figure.get("low"), True), number(figure.get("high"), True)
    return f"{number(figure['value'], True)}, 95 % interval {low} to {high}"
