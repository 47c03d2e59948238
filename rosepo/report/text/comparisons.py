"""How models stand to one another, in plain words: against baselines and other systems, and where none was aligned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rosepo.report.text.format import (
    NONE_SEEN,
    NOT_MEASURED,
    Figure,
    brackets,
    interval,
    known,
    number,
    outcome,
    sign,
)

FEW = 50
"""Users under which intervals are said to be too narrow: a bootstrap of few units does not reach its level."""
_SHOWN = (("hr@10", "HR@10"), ("ndcg@10", "NDCG@10"))
_NAMES = {
    "popular": "most popular",
    "markov": "the Markov chain",
    "oracle": "the oracle",
    "sft": "the SFT model",
    "aligned": "the aligned model",
}
_SUBJECTS = {"sft": "SFT", "aligned": "Aligned"}

Differences = Mapping[str, Mapping[str, Figure]]


def against(name: str, base: str, differences: Differences) -> str:
    """How a model stands to another in HR@10 and NDCG@10; nothing where they were not compared."""
    difference = differences.get(f"{name}-{base}")
    if difference is None:
        return ""
    told = []
    for key, shown in _SHOWN:
        word = outcome(difference[key], "above", "below").replace(NONE_SEEN, "not distinguishable from")
        if word == NOT_MEASURED:
            told.append(f"not comparable with {_NAMES.get(base, base)} in {shown}")
        else:
            told.append(f"{word} {_NAMES.get(base, base)} in {shown} ({interval(difference[key])})")
    return f"{_SUBJECTS.get(name, name)} is {' and '.join(told)}."


def without_alignment(metrics: Mapping[str, Any]) -> tuple[tuple[str, str], tuple[str, ...]]:
    """Of a run that has no aligned model beside its SFT base: the verdict's two sentences, and the figures."""
    models, differences = metrics["models"], metrics["differences"]
    external = [name for name in metrics.get("external", {}) if name in models]
    told = [against("sft", base, differences) for base in ("popular", "markov", "oracle")]
    others = ("sft",) if "sft" in models else ("oracle", "markov", "popular")
    told += [against(name, base, differences) for name in external for base in others]
    told.append(few_users(metrics))
    return (
        "There is no aligned model beside its SFT base in this run, so alignment cannot be judged.",
        _highest(models, differences),
    ), tuple(sentence for sentence in told if sentence)


def few_users(metrics: Mapping[str, Any]) -> str:
    """A warning where intervals come from few users, nothing where they do not."""
    users = metrics.get("n_users", FEW)
    if users < 2:
        return "One user was measured, which gives no intervals: nothing can be said of others."
    return f"Only {users} users were measured: intervals of so few come out too narrow." if users < FEW else ""


def _highest(models: Mapping[str, Any], differences: Differences) -> str:
    """Which model has the highest NDCG@10, and whether it can be told apart from the next."""
    values = {name: entry["ndcg@10"]["value"] for name, entry in models.items()}
    order = sorted((name for name in values if known(values[name])), key=lambda name: -values[name])
    if not order:
        return f"NDCG@10 {NOT_MEASURED}."
    best = f"The highest NDCG@10 is that of {_NAMES.get(order[0], order[0])} ({number(values[order[0]])})"
    if len(order) == 1:
        return f"{best}."
    second, found = _NAMES.get(order[1], order[1]), _between(order[0], order[1], differences)
    if found is None or outcome(found) == NOT_MEASURED:
        return f"{best}; next is {second} ({number(values[order[1]])}), with which it was not compared."
    if sign(found) == 0:
        return f"{best}, with {NONE_SEEN} from {second}, the next ({brackets(found)})."
    return f"{best}, above {second}, the next ({brackets(found)})."


def _between(first: str, second: str, differences: Differences) -> Figure | None:
    """NDCG@10 of the first minus that of the second, whichever way round they were compared."""
    if f"{first}-{second}" in differences:
        return differences[f"{first}-{second}"]["ndcg@10"]
    turned = differences.get(f"{second}-{first}", {}).get("ndcg@10")
    if turned is None:
        return None
    return {name: -turned[key] if known(turned.get(key)) else None for name, key in
             (("value", "value"), ("low", "high"), ("high", "low"))}  # fmt: skip
