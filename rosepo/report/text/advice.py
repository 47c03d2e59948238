"""What stands between a run and figures worth having: trainings that ended too early, models below plain baselines or
far from their oracle, and what to change first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rosepo.report.text.format import brackets, known, number, sign
from rosepo.report.text.labels import label

GAIN = 0.005
"""A training that ends by its schedule was still improving where its last validation was better than the best one
before, by at least this share."""
LEVEL = 0.99
"""From this share of the oracle's NDCG@10 on, a model is not below it."""
SHOWN = ("markov", "popular")


@dataclass(frozen=True)
class Training:
    """What a training left of its validations.

    Attributes:
        title: what people call it.
        section: of the configuration.
        metric: what was looked at: `validation_loss`, `hr@10` or `ndcg@10`.
        values: of the validations, in their order.
        last: the step (of an oracle: the epoch) of the last one.
        unit: what is counted, in the plural.
        epochs: the setting that ends it, with its value.
        patient: it stopped because validation got no better.
    """

    title: str
    section: str
    metric: str
    values: Sequence[float]
    last: int
    unit: str
    epochs: str
    patient: bool

    @property
    def improving(self) -> bool:
        """Whether it would have gone on getting better, by all that can be seen."""
        if self.patient or len(self.values) < 2:
            return False
        sign = -1.0 if self.metric.endswith("loss") else 1.0
        *before, end = (sign * value for value in self.values)
        return end - max(before) > GAIN * abs(max(before))

    @property
    def told(self) -> str:
        """That it ended too early, and the remedy."""
        least = min if self.metric.endswith("loss") else max
        values = " to ".join(number(value, digits=4) for value in (least(self.values[:-1]), self.values[-1]))
        name = self.metric.replace("_", " ") if self.metric.endswith("loss") else f"validation {self.metric.upper()}"
        return (
            f"{self.title} was still improving at its end ({name} went from {values} with its last look, "
            f"after {self.last:,} {self.unit}): these are not the figures of this model. Raise {self.epochs}."
        )


def advice(metrics: Mapping[str, Any], trainings: Sequence[Training]) -> list[str]:
    """Sentences, the most important first; none where there is nothing to say.

    Args:
        metrics: of `metrics.json`.
        trainings: of the run, in the order of work.
    """
    early = [training for training in trainings if training.improving]
    told = [training.told for training in early]
    return told + _below_baselines(metrics, early) + _beside_oracle(metrics) + _weak_oracle(metrics)


def _below_baselines(metrics: Mapping[str, Any], early: Sequence[Training]) -> list[str]:
    """A line for the best of the run's own models where a baseline that trains nothing is above it."""
    model = "aligned" if "aligned" in metrics["models"] else "sft"
    found = []
    for baseline in SHOWN:
        difference = metrics["differences"].get(f"{model}-{baseline}", {}).get("ndcg@10", {})
        if sign(difference) < 0:
            found.append(f"{label(baseline, metrics)} ({brackets(difference)})")
    if not found:
        return []
    told = f"{label(model, metrics)} is below {' and '.join(found)} in NDCG@10, which need no training"
    return [f"{told}. Change first: {_remedy(metrics, model, early)}."]


def _remedy(metrics: Mapping[str, Any], model: str, early: Sequence[Training]) -> str:
    values = {name: entry["ndcg@10"]["value"] or 0.0 for name, entry in metrics["models"].items()}
    sections = {training.section: training for training in early}
    if "sft" in sections:
        return f"train SFT to its end, {sections['sft'].epochs} is too few"
    plain = max(values.get(name, 0.0) for name in SHOWN)
    if values.get("sft", plain) >= plain > values[model]:
        return "alignment itself, which made SFT worse (a lower align.learning_rate, fewer align.epochs)"
    if values.get("oracle", plain) < plain:
        return (
            "the data: the oracle, which learns from the same log, is below them too (more interactions a user, "
            "a lower prepare.k_core or prepare.min_rating)"
        )
    return (
        "SFT, which alignment goes on from (sft.learning_rate, sft.epochs, model.scratch; `auto` lets a setting follow "
        "from the data)"
    )


def _beside_oracle(metrics: Mapping[str, Any]) -> list[str]:
    """How far a model is below the oracle that judged for it, or that it is not."""
    model = "aligned" if "aligned" in metrics["models"] else "sft"
    entries = [metrics["models"].get(name, {}).get("ndcg@10", {}).get("value") for name in (model, "oracle")]
    value, oracle = entries
    if not known(value, oracle) or not oracle:
        return []
    name = label("oracle", metrics)
    if value >= LEVEL * oracle:
        return []
    return [f"{label(model, metrics)} has {100 * value / oracle:.0f} % of the NDCG@10 of its {_lower(name)}."]


def _weak_oracle(metrics: Mapping[str, Any]) -> list[str]:
    """That the oracle ranks worse than what it teaches, where alignment brought nothing."""
    above = metrics["differences"].get("sft-oracle", {}).get("ndcg@10", {})
    gained = metrics["differences"].get("aligned-sft", {}).get("ndcg@10")
    if gained is None or sign(above) <= 0 or sign(gained) > 0:
        return []
    return [
        f"SFT is above the {_lower(label('oracle', metrics))} by {brackets(above)} of NDCG@10: it has little to "
        "teach an alignment. Change first: the oracle (a higher oracle.models averages more of them, "
        "oracle.kind=scorer takes one of your own)."
    ]


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]
