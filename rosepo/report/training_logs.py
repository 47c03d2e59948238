"""What trainings have logged, and whether they ended before they were done."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosepo.config import Config
from rosepo.report.text.advice import Training
from rosepo.report.text.labels import COLOURS
from rosepo.run.paths import RunPaths


@dataclass(frozen=True)
class TrainingLog:
    """What a training has logged, a row a step (of the oracle: an epoch).

    Attributes:
        section: of the configuration.
        unit: what its loss is a mean over.
        x: what a row counts.
    """

    section: str
    title: str
    rows: list[dict[str, Any]]
    colour: str
    unit: str
    x: str = "step"

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values; empty where there are none, or where it is the loss once more: under one-hot targets the
        least that it can be is 0."""
        rows = [row for row in self.rows if key in row]
        if key.endswith("target_kl"):
            loss = key.replace("target_kl", "loss")
            if all(math.isclose(row[key], row.get(loss, math.nan), rel_tol=1e-5) for row in rows):
                return [], []
        return [row["step"] for row in rows], [row[key] for row in rows]


def trainings_of(config: Config, paths: RunPaths, figures: Mapping[str, Mapping[str, Any]]) -> list[Training]:
    """What the trainings of a run left of their validations, of those that validated.

    Args:
        figures: of the stages' manifests, by name.
    """
    found = []
    for log in logs_of(paths):
        training = _of_oracle(config, log) if log.section == "oracle" else _of_model(config, log, figures)
        if training.values:
            found.append(training)
    return found


def _of_model(config: Config, log: TrainingLog, figures: Mapping[str, Mapping[str, Any]]) -> Training:
    train = config.sft if log.section == "sft" else config.align
    metric = train.best_metric or "validation_loss"
    title = "SFT" if log.section == "sft" else log.title
    own = [found for name, found in figures.items() if name.startswith(log.section)]
    patient = any(found.get("stopped_early", False) for found in own)
    epochs = f"{log.section}.epochs ({train.epochs:g})"
    if any(found.get("out_of_time", False) for found in own):
        epochs = f"{log.section}.max_seconds ({train.max_seconds:g}), or run.budget"
    return Training(title, log.section, metric, log.series(metric)[1], log.rows[-1]["step"], "steps", epochs, patient)


def _of_oracle(config: Config, log: TrainingLog) -> Training:
    oracle, last = config.oracle, log.rows[-1]["step"]
    late = oracle.max_seconds is not None and log.rows[-1].get("seconds", 0.0) > oracle.max_seconds
    setting = f"oracle.max_seconds ({oracle.max_seconds:g})" if late else f"oracle.max_epochs ({oracle.max_epochs})"
    patient = not late and last < oracle.max_epochs
    return Training("The oracle", "oracle", "ndcg@10", log.series("ndcg@10")[1], last, "epochs", setting, patient)


def logs_of(paths: RunPaths) -> list[TrainingLog]:
    """Those that are there: of fine-tuning, of every round of alignment, and of the oracle."""
    found = [TrainingLog("sft", "Fine-tuning", read_log(paths.sft), COLOURS["sft"], "title")]
    for one in paths.rounds:
        title = f"Alignment, round {one.round}" if paths.round > 1 else "Alignment"
        found.append(TrainingLog("align", title, read_log(one.aligned), COLOURS["aligned"], "group"))
    found.append(TrainingLog("oracle", "Oracle", read_log(paths.oracle), COLOURS["oracle"], "title", "epoch"))
    return [log for log in found if log.rows]


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a training's log, a step (of the oracle: an epoch) each; none where it has left none."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.strip()]
