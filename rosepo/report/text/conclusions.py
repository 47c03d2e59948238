"""What alignment changed, in plain words and from paired intervals alone.

A difference is only called one if its interval is clear of zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rosepo.report.text.comparisons import against, few_users, without_alignment
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

ACCURACY = (("hr@10", "HR@10"), ("ndcg@10", "NDCG@10"))
"""What the verdict is made of."""
OTHER_ACCURACY = ("hr@1", "hr@5", "hr@20", "ndcg@5", "ndcg@20")


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
        return Verdict(*without_alignment(metrics))
    details = [
        _change(label, models["sft"][name], models["aligned"][name], difference[name]) for name, label in ACCURACY
    ]
    popularity, likeness = _popularity(models, difference), _look_alikes(models, difference)
    details += [_other_accuracy(difference), _free_answers(metrics), popularity[0], likeness[0]]
    details += [against("aligned", base, differences) for base in ("oracle", "markov")]
    details += [against(name, "aligned", differences) for name in metrics.get("external", {})]
    told = tuple(sentence for sentence in (*details, few_users(metrics)) if sentence)
    biases = (
        (popularity[1], difference["log_popularity"], "popularity", "log-popularity "),
        (likeness[1], difference["hallucination"], "semantic hallucination", ""),
    )
    among = " among the listed candidates" if metrics["protocol"] == "candidates" else ""
    return Verdict((_accuracy_sentence(difference, among), _bias_sentence(biases)), told)


def _accuracy_sentence(difference: Mapping[str, Figure], among: str) -> str:
    """Sentence one: HR@10 and NDCG@10 of the aligned model against those of the SFT model that it started from;
    `among`: what was ranked, where that is not the catalogue."""
    told = {name: f"{label} ({brackets(difference[name])})" for name, label in ACCURACY}
    signs = {name: sign(difference[name]) for name, _ in ACCURACY if measured(difference[name])}
    unseen = [told[name] for name, found in signs.items() if found == 0]
    seen = [told[name] for name, found in signs.items() if found != 0]
    lost = [label for name, label in ACCURACY if name not in signs]
    rest = f"; {joined(lost)} {NOT_MEASURED}" if lost else ""
    if not signs:
        return f"Whether alignment changed accuracy{among} cannot be told: {joined(lost)} {NOT_MEASURED}."
    if not seen:
        where = "the hits and the order of the first ten" if _other_accuracy(difference) else "accuracy"
        found_none = f"{NONE_SEEN} in {joined(unseen)}"
        return f"Alignment changed nothing that can be seen in {where}{among}: {found_none}{rest}."
    if set(signs.values()) == {1, -1}:
        return f"Alignment moved hits and their order in opposite directions{among}: {joined(seen)}."
    more = "more" if 1 in signs.values() else "less"
    rest = f", with {NONE_SEEN} in {joined(unseen)}" if unseen else rest
    return f"Alignment made recommendations {more} accurate{among}: {joined(seen)}{rest}."


def _bias_sentence(biases: Sequence[tuple[str | None, Figure, str, str]]) -> str:
    """Sentence two, of each bias the words for it ('' where nothing was seen, None where nothing could be measured),
    the difference, its name, and what to write before the difference."""
    seen = [f"{words} ({before}{brackets(figure)})" for words, figure, _, before in biases if words]
    unseen = [f"{name} ({before}{brackets(figure)})" for words, figure, name, before in biases if words == ""]
    lost = [name for words, _, name, _ in biases if words is None]
    rest = f"; {joined(lost)} {NOT_MEASURED}" if lost else ""
    if len(lost) == len(biases):
        return f"Bias {NOT_MEASURED}: {joined(lost)}."
    if not seen:
        return f"There was {NONE_SEEN} in {' or '.join(unseen)}{rest}."
    return f"It {joined(seen)}{f', with {NONE_SEEN} in {unseen[0]}' if unseen else ''}{rest}."


def _change(label: str, before: Figure, after: Figure, difference: Figure) -> str:
    if not measured(difference):
        return f"{label} went from {number(before['value'])} to {number(after['value'])}; its change {NOT_MEASURED}."
    return f"{label} {_from_to(before, after, difference)} ({interval(difference)}): {outcome(difference)}."


def _from_to(before: Figure, after: Figure, difference: Figure) -> str:
    digits = digits_of(difference)
    return f"went from {number(before['value'], digits=digits)} to {number(after['value'], digits=digits)}"


def _other_accuracy(difference: Mapping[str, Figure]) -> str:
    """Where other figures of accuracy are clear of zero: which."""
    found = [f"{key.upper()} {brackets(difference[key])}" for key in OTHER_ACCURACY if sign(difference.get(key, {}))]
    return f"Of the other figures of accuracy, clear of zero too: {joined(found)}." if found else ""


def _free_answers(metrics: Mapping[str, Any]) -> str:
    """HR@1 of what the models wrote freely, where prompts list candidates."""
    found = metrics.get("candidates") or {}
    difference = found.get("differences", {}).get("aligned-sft", {}).get("hr@1")
    if difference is None:
        return ""
    before, after = (found["models"][name]["hr@1"] for name in ("sft", "aligned"))
    return _change("HR@1 of free answers", before, after, difference)


def _popularity(models: Mapping[str, Any], differences: Mapping[str, Any]) -> tuple[str, str | None]:
    """A sentence, and the words for the verdict ('' where nothing was seen, None where nothing could be measured)."""
    before, after, difference = _both("log_popularity", models, differences)
    truth = before.get("truth")
    if not measured(difference) or truth is None or not known(before["value"], after["value"], truth):
        return f"Popularity of what is recommended {NOT_MEASURED}.", None
    digits = digits_of(difference)
    told = (
        f"Mean log-popularity of the top 10 {_from_to(before, after, difference)} "
        f"({interval(difference)}; what people chose has {number(truth, digits=digits)})"
    )
    if sign(difference) == 0:
        return f"{told}: {NONE_SEEN}.", ""
    nearer = abs(after["value"] - truth) < abs(before["value"] - truth)
    words = f"{'more' if sign(difference) > 0 else 'less'} popular titles, {'nearer to' if nearer else 'further from'}"
    return f"{told}: {words} what people chose.", _bias_words(before["value"] - truth, after["value"] - truth)


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
    """The same for semantic hallucination."""
    before, after, difference = _both("hallucination", models, differences)
    if not measured(difference) or not known(before["value"], after["value"]):
        return f"Likeness to the history {NOT_MEASURED}.", None
    told = (
        "Semantic hallucination, by how much wrong titles look more like the history than the right one, "
        f"{_from_to(before, after, difference)} ({interval(difference)})"
    )
    seen = outcome(difference, "more look-alikes", "fewer look-alikes")
    if max(before["value"], after["value"]) <= 0:
        words = {
            1: "made wrong titles more like the history, though less so than right ones",
            -1: "made wrong titles even less like the history than right ones",
            0: "",
        }
        return f"{told}: {seen}; before and after, wrong titles look less like it than the right ones.", words[
            sign(difference)
        ]
    words = {1: "raised semantic hallucination", -1: "lowered semantic hallucination", 0: ""}
    return f"{told}: {seen}.", words[sign(difference)]


def _both(name: str, models: Mapping[str, Any], differences: Mapping[str, Any]) -> tuple[Figure, Figure, Figure]:
    return models["sft"][name], models["aligned"][name], differences[name]
