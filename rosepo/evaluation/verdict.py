"""What alignment changed, in plain words and from paired intervals alone.

A difference is only called one if its interval is clear of zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ACCURACY = (("hr@10", "HR@10"), ("ndcg@10", "NDCG@10"))
NO_BASELINE = "The oracle is a table of scores, which cannot rank the whole catalogue, so it is no baseline here."
NONE_SEEN = "no difference seen"
ROUNDING = 1e-9
"""Sums of the same numbers in another order differ by less: no difference of models."""
_BASES = {
    "popular": "most popular",
    "markov": "the Markov chain",
    "oracle": "the oracle",
    "sft": "the SFT model",
    "aligned": "the aligned model",
}

Figure = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """Two sentences, and the figures under them, a sentence each."""

    sentences: tuple[str, str]
    details: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((*self.sentences, *self.details))


def verdict(metrics: Mapping[str, Any]) -> Verdict:
    """The verdict on `metrics.json`: on alignment where there are both models, else on what is there."""
    models, differences = metrics["models"], metrics["differences"]
    difference = differences.get("aligned-sft")
    if difference is None:
        first, second, told = _without_alignment(models, differences)
        return Verdict((first, second), (*told, *no_baseline(metrics)))
    details = [
        _change(label, models["sft"][name], models["aligned"][name], difference[name]) for name, label in ACCURACY
    ]
    popularity, likeness = _popularity(models, difference), _look_alikes(models, difference)
    details += [popularity[0], likeness[0]]
    details += [_against("Aligned is", differences.get(f"aligned-{base}"), base) for base in ("oracle", "markov")]
    told = tuple(sentence for sentence in (*details, *no_baseline(metrics)) if sentence)
    biases = (
        (popularity[1], difference["log_popularity"], "popularity", "log-popularity "),
        (likeness[1], difference["hallucination"], "semantic hallucination", ""),
    )
    among = " among the listed candidates" if metrics["protocol"] == "candidates" else ""
    return Verdict((_accuracy_sentence(difference, among), _bias_sentence(biases)), told)


def no_baseline(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Where there is an oracle that was not ranked by: why."""
    return () if metrics.get("oracle") is None or "oracle" in metrics["models"] else (NO_BASELINE,)


def sign(difference: Figure) -> int:
    """1 or -1 where the interval is clear of zero, 0 where it is not (or missing)."""
    low, high = difference.get("low"), difference.get("high")
    if low is None or high is None:
        return 0
    return int(low > ROUNDING) - int(high < -ROUNDING)


def _accuracy_sentence(difference: Mapping[str, Figure], among: str) -> str:
    """Sentence one: HR@10 and NDCG@10 of the aligned model against those of the SFT model that it started from;
    `among`: what was ranked, where that is not the catalogue."""
    told = {name: f"{label} {_short(difference[name])}" for name, label in ACCURACY}
    signs = {name: sign(difference[name]) for name, _ in ACCURACY}
    unseen = [told[name] for name, found in signs.items() if found == 0]
    seen = [told[name] for name, found in signs.items() if found != 0]
    if not seen:
        return f"Alignment changed nothing that can be seen in accuracy{among}: {NONE_SEEN} in {_join(unseen)}."
    if set(signs.values()) == {1, -1}:
        return f"Alignment moved hits and their order in opposite directions{among}: {_join(seen)}."
    more = "more" if 1 in signs.values() else "less"
    rest = f", with {NONE_SEEN} in {_join(unseen)}" if unseen else ""
    return f"Alignment made recommendations {more} accurate{among}: {_join(seen)}{rest}."


def _bias_sentence(biases: Sequence[tuple[str | None, Figure, str, str]]) -> str:
    """Sentence two, of each bias the words for it ('' where nothing was seen, None where nothing could be measured),
    the difference, its name, and what to write before the difference."""
    seen = [f"{words} ({before}{_short(figure)})" for words, figure, _, before in biases if words]
    unseen = [f"{name} ({before}{_short(figure)})" for words, figure, name, before in biases if words == ""]
    rest = "".join(f"; {name} could not be measured" for words, _, name, _ in biases if words is None)
    if not seen:
        return f"There was {NONE_SEEN} in {' or '.join(unseen)}{rest}."
    return f"It {_join(seen)}{f', with {NONE_SEEN} in {unseen[0]}' if unseen else ''}{rest}."


def _short(figure: Figure) -> str:
    low, high = number(figure.get("low"), True), number(figure.get("high"), True)
    return f"{number(figure['value'], True)} [{low}, {high}]"


def _change(label: str, before: Figure, after: Figure, difference: Figure) -> str:
    told = f"{label} went from {number(before['value'])} to {number(after['value'])} ({interval(difference)})"
    return f"{told}: {outcome(difference)}."


def outcome(difference: Figure, up: str = "better", down: str = "worse") -> str:
    """`better`, `worse` (or what is given for them) or that no difference was seen."""
    return {1: up, -1: down, 0: NONE_SEEN}[sign(difference)]


def _popularity(models: Mapping[str, Any], differences: Mapping[str, Any]) -> tuple[str, str]:
    """A sentence, and the words for the verdict ('' where nothing was seen)."""
    before, after, difference = _three("log_popularity", models, differences)
    truth = before["truth"]
    told = (
        f"Mean log-popularity of the top 10 went from {number(before['value'])} to {number(after['value'])} "
        f"({interval(difference)}; what people chose has {number(truth)})"
    )
    if sign(difference) == 0:
        return f"{told}: {NONE_SEEN}.", ""
    nearer = abs(after["value"] - truth) < abs(before["value"] - truth)
    outcome = (
        f"{'more' if sign(difference) > 0 else 'less'} popular titles, {'nearer to' if nearer else 'further from'}"
    )
    return f"{told}: {outcome} what people chose.", _bias_words(before["value"] - truth, after["value"] - truth)


def _bias_words(before: float, after: float) -> str:
    """For the verdict, from how far each model lies above what people chose: the bias is that excess alone."""
    if after < 0:
        if -after > abs(before):
            return "moved to less popular titles than people choose"
        return "lowered popularity bias" if before > 0 else "moved nearer to the popularity of what people choose"
    if before < 0 and after < -before:
        return "moved nearer to the popularity of what people choose"
    return "raised popularity bias" if after > before else "lowered popularity bias"


def _look_alikes(models: Mapping[str, Any], differences: Mapping[str, Any]) -> tuple[str, str | None]:
    """The same for semantic hallucination; None in place of the words where it could not be measured."""
    before, after, difference = _three("hallucination", models, differences)
    if before["value"] is None or after["value"] is None:
        return "Likeness to the history could not be measured.", None
    told = (
        f"Semantic hallucination, by how much wrong titles look more like the history than the right one, went from "
        f"{number(before['value'])} to {number(after['value'])} ({interval(difference)})"
    )
    seen = outcome(difference, "more look-alikes", "fewer look-alikes")
    if max(before["value"], after["value"]) <= 0:
        word = {1: "made wrong titles more", -1: "made wrong titles less", 0: ""}[sign(difference)]
        rest = " like the history, if less so than the right ones" if word else ""
        return f"{told}: {seen}, and both below the right titles.", word + rest
    word = {1: "raised semantic hallucination", -1: "lowered semantic hallucination", 0: ""}[sign(difference)]
    return f"{told}: {seen}.", word


def _three(name: str, models: Mapping[str, Any], differences: Mapping[str, Any]) -> tuple[Figure, Figure, Figure]:
    return models["sft"][name], models["aligned"][name], differences[name]


def _without_alignment(models: Mapping[str, Any], differences: Mapping[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    best = max((name for name in models), key=lambda name: models[name]["ndcg@10"]["value"] or 0.0)
    told = (_against("SFT is", differences.get(f"sft-{base}"), base) for base in ("popular", "markov", "oracle"))
    return (
        "There is no aligned model beside its SFT base in this run, so alignment cannot be judged.",
        f"The highest NDCG@10 is that of {_BASES.get(best, best)}.",
        tuple(sentence for sentence in told if sentence),
    )


def _against(subject: str, difference: Mapping[str, Figure] | None, base: str) -> str:
    """How a model stands to a baseline in HR@10 and NDCG@10; nothing where they were not compared."""
    if difference is None:
        return ""
    words = [(outcome(difference[name], "above", "below"), label, difference[name]) for name, label in ACCURACY]
    told = (f"{word.replace(NONE_SEEN, 'not distinguishable from')} {_BASES[base]} in {label} ({interval(figure)})"
            for word, label, figure in words)  # fmt: skip
    return f"{subject} {' and '.join(told)}."


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
