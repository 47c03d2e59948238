"""How long the stages of a run take on this machine: they are made for a few users, with the settings of all."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosepo.cli.run_stages import make
from rosepo.config import Config, TrainConfig, replaced
from rosepo.config.auto import SHARES
from rosepo.data.prepare.user_sample import keep_users
from rosepo.oracle.crossfit import oracle_models
from rosepo.pipeline.chosen_settings import chosen_by_data
from rosepo.report.training_logs import read_log
from rosepo.run.folders import passing
from rosepo.run.paths import RunPaths
from rosepo.run.stages import names_of_run
from rosepo.training.validation import VALIDATIONS
from rosepo.utils.console import duration, table

USERS_OF_SCRATCH, USERS_OF_PRETRAINED = 256, 32
SECONDS = 20.0
"""Of fine-tuning, and of alignment, at most."""
PASSES = {"sft": 20.0, "align": 3.0}
"""Over the few users; no more, because rows are made ahead of training and beside it."""
NOT_OF_GROUPS = ("encoder", "wall")
"""Times of sampling that more groups do not add to, or that hold the others."""
BUDGETS = (600.0, 1800.0, 5400.0)
"""Seconds for which the passes are told where `run.budget` is not given."""

Manifests = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Pace:
    """What a stage takes, in seconds.

    Attributes:
        start: before and after its work: processes, models.
        a_pass: of a training, with its validations; of another stage all of its work.
        passes: at most; 1 where the stage knows none.
    """

    start: float
    a_pass: float
    passes: float = 1.0

    @property
    def in_all(self) -> float:
        """At most."""
        return self.start + self.passes * self.a_pass


@dataclass(frozen=True)
class Sample:
    """How many users were measured, and of how many."""

    users: int
    of: int

    @property
    def times(self) -> float:
        """How many times as much there is to do for all."""
        return self.of / self.users


def measure(config: Config, root: Path, debug: bool = False) -> tuple[Sample, dict[str, Pace]]:
    """Prepare the log and make every stage but a sweep for a few of its users, beside `root`, where nothing stays.

    Returns:
        Who was measured, and what a stage would take for all users, by name.

    Raises:
        UserError, StageError: as the stages do.
    """
    with passing(root) as folder:
        _, prepared = make(config, folder, ["prepare"], overwrite=False, debug=debug)
        config, _ = chosen_by_data(config, prepared["prepare"])
        most = USERS_OF_SCRATCH if config.model.path is None else USERS_OF_PRETRAINED
        sample = Sample(keep_users(RunPaths(folder).examples, most), prepared["prepare"]["figures"]["users"])
        probe = replaced(config, _shortened(config), "check --measure")
        _, made = make(probe, folder, names_of_run(probe), overwrite=False, debug=debug)
        return sample, _paces(config, RunPaths(folder), {**made, **prepared}, sample)


def _paces(config: Config, paths: RunPaths, made: Manifests, sample: Sample) -> dict[str, Pace]:
    sft, align, times = config.sft, config.align, sample.times
    passes = align.epochs * config.pairs.rounds
    return {
        "prepare": Pace(0.0, made["prepare"]["seconds"]),
        "sft": _of_training(sft, sft.epochs, made["sft"], paths.sft, times),
        "oracle": _of_oracle(config, made["oracle"], paths.oracle, times),
        "pairs": _of_pairs(config, made["pairs"], times),
        "align": _of_training(align, passes, made["align"], paths.aligned, times),
        "evaluate": _of_evaluation(made["evaluate"], times),
    }


def paces_text(config: Config, sample: Sample, paces: Mapping[str, Pace]) -> str:
    """What was measured, and how far budgets would go, as text."""
    rows = [
        [name, duration(one.start), duration(one.a_pass), f"{one.passes:g}", duration(one.in_all)]
        for name, one in paces.items()
    ]
    rows.append(["in all", "", "", "", duration(sum(one.in_all for one in paces.values()))])
    given = config.run.budget
    budgets = BUDGETS if given is None else (given, 2 * given, 4 * given)
    room = [
        [f"run.budget={budget / 60:g}m", *(_room(budget, name, paces[name]) for name in SHARES)] for budget in budgets
    ]
    parts = (
        f"measured with {sample.users:,} of {sample.of:,} users; trainings may end sooner, by validation",
        table(rows, header=("stage", "to start", "a pass", "passes at most", "in all at most")),
        "passes that a budget has room for",
        table(room, header=("", *SHARES)),
    )
    return "\n".join(parts)


def _room(budget: float, name: str, pace: Pace) -> str:
    passes = SHARES[name] * budget / max(pace.a_pass, 1e-6)
    return f"all {pace.passes:g}" if passes >= pace.passes else f"{passes:.1f}"


def _shortened(config: Config) -> dict[str, Any]:
    """What makes trainings stop after a moment, and leaves out what is not measured."""
    seldom = {"log_every": 1, "max_seconds": SECONDS, "validate_every": 10**9, "patience": None, "min_gain": 0.0}
    found = {f"{section}.{key}": value for section in ("sft", "align") for key, value in seldom.items()}
    found |= {f"{section}.epochs": passes for section, passes in PASSES.items()}
    found |= {"pairs.rounds": 1, "pairs.reference": None, "pairs.stream": False, "sweep.trials": 0}
    if config.oracle.kind == "sasrec":
        found |= {"oracle.max_epochs": 2, "oracle.evaluate_every": 1}
    return found | {"evaluate.models": [], "evaluate.predictions": [], "evaluate.add_items": None}


def _of_training(train: TrainConfig, passes: float, made: Mapping[str, Any], folder: Path, times: float) -> Pace:
    """Of `sft` or `align`, from the figures and the log of a short one, which validated once, at its end."""
    figures = made["figures"]
    lines = [line for line in read_log(folder) if "rows_per_second" in line]
    steps = [train.batch_size / line["rows_per_second"] for line in lines]
    validating = max(0.0, figures["train_seconds"] - sum(steps))
    in_pass = times * figures["rows"] / lines[-1]["epoch"] / train.batch_size
    looks = VALIDATIONS / passes if train.validate_every is None else in_pass / train.validate_every
    step = statistics.median(steps[len(steps) // 2 :])  # the first ones are slower
    start = made["seconds"] - figures["train_seconds"]
    return Pace(start, in_pass * step + looks * validating, passes)


def _of_oracle(config: Config, made: Mapping[str, Any], folder: Path, times: float) -> Pace:
    """The same of the oracle; one of the user's own only has to be calibrated."""
    if config.oracle.kind != "sasrec":
        return Pace(0.0, times * made["seconds"])
    seconds = [line["seconds"] for line in read_log(folder)]
    # Those without the users of a fold take that much less.
    share = 1 - 1 / config.oracle.folds
    models = sum(1.0 if one.fold is None else share for one in oracle_models(config.oracle, folder))
    start = max(0.0, made["seconds"] - models * seconds[-1])
    return Pace(start, models * times * (seconds[-1] - seconds[-2]), config.oracle.max_epochs)


def _of_pairs(config: Config, made: Mapping[str, Any], times: float) -> Pace:
    parts = made["figures"]["seconds"]
    working = sum(value for name, value in parts.items() if name not in NOT_OF_GROUPS) / config.pairs.actors
    return Pace(max(0.0, made["seconds"] - working), times * working, config.pairs.rounds)


def _of_evaluation(made: Mapping[str, Any], times: float) -> Pace:
    ranking = sum(made["figures"]["ranking_seconds"].values())
    return Pace(max(0.0, made["seconds"] - ranking), times * ranking)
