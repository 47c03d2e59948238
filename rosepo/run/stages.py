"""The stages in order: what each reads, writes and depends on."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rosepo.config import Config, PairsConfig
from rosepo.run.paths import RunPaths, of_round
from rosepo.utils.errors import UserError

StageFunction = Callable[[Config, RunPaths, Path], dict[str, Any]]
"""Fills the folder and returns figures. Paths are absolute, those of the configuration by `located`: a stage hands them
to Ray's workers, which work in other directories."""


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: the command; in later rounds followed by the round, as in `pairs-2`.
        folder: where it writes, below the run's folder.
        needs: stages that must be there.
        sections: parts of the configuration that its result depends on.
        function: `module:callable`, imported when it is run.
        purpose: what it does, for the person who watches.
        uses: stages that are read where they are there.
        in_parts: goes on from what a run that did not end well has finished: parts, or a training's checkpoint.
        without: settings of those sections that its result does not depend on.
        round: of pairs and alignment that it belongs to; of the last one for what reads them all.
    """

    name: str
    folder: str
    needs: tuple[str, ...]
    sections: tuple[str, ...]
    function: str
    purpose: str
    uses: tuple[str, ...] = ()
    in_parts: bool = False
    without: tuple[str, ...] = ()
    round: int = 1

    @property
    def kind(self) -> str:
        """The name in every round."""
        return self.name.partition("-")[0]

    @property
    def command(self) -> str:
        """What to type after `rosepo` to run it."""
        return self.kind if self.kind == self.name else f"{self.kind} --round {self.round}"

    def depends_on(self, key: str) -> bool:
        """Whether a dotted key is of its sections."""
        return any(f"{key}.".startswith(f"{section}.") for section in self.sections)

    def load(self) -> StageFunction:
        """Import the function."""
        module, _, name = self.function.partition(":")
        function: StageFunction = getattr(importlib.import_module(module), name)
        return function


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "prepare",
            "examples",
            needs=(),
            sections=("data", "prepare"),
            function="rosepo.data.prepare.prepare:prepare",
            purpose="interactions to examples",
        ),
        Stage(
            "sft",
            "sft",
            needs=("prepare",),
            sections=("model", "sft"),
            function="rosepo.training.sft:sft",
            purpose="fine-tune the language model on next titles",
            in_parts=True,
        ),
        Stage(
            "oracle",
            "oracle",
            needs=("prepare",),
            sections=("oracle",),
            function="rosepo.oracle.make_oracle:make_oracle",
            purpose="fit the preference oracle",
        ),
        Stage(
            "pairs",
            "groups",
            needs=("prepare", "sft", "oracle"),
            sections=("pairs",),
            function="rosepo.sampling.pairs:pairs",
            purpose="sample rejected titles",
            in_parts=True,
            without=("pairs.rounds", "pairs.reference", "pairs.stream"),
        ),
        Stage(
            "sweep",
            "sweep",
            needs=("prepare", "sft", "pairs"),
            sections=("align", "sweep", "evaluate.beams"),
            function="rosepo.tuning.sweep:sweep",
            purpose="search alignment settings",
        ),
        Stage(
            "align",
            "aligned",
            needs=("prepare", "sft", "pairs"),
            sections=("align",),
            function="rosepo.training.align:align",
            purpose="align with preferences",
            in_parts=True,
        ),
        Stage(
            "evaluate",
            "evaluation",
            needs=("prepare",),
            uses=("sft", "oracle", "pairs", "align", "sweep"),
            sections=("evaluate", "pairs.encoder", "pairs.semantic_decay", "pairs.rounds", "model.template.candidates"),
            function="rosepo.evaluation.evaluate:evaluate",
            purpose="rank the catalogue, write the report",
            in_parts=True,
        ),
    )
}
"""The stages of a run of one round."""


def names_of_rounds(rounds: int) -> list[str]:
    """The stages of a run of so many rounds, in order: those of `STAGES`, later rounds behind the first alignment."""
    later = [of_round(kind, number) for number in range(2, rounds + 1) for kind in ("pairs", "align")]
    first = [*STAGES]
    place = first.index("align") + 1
    return [*first[:place], *later, *first[place:]]


def stages_of(config: Config) -> dict[str, Stage]:
    """The stages of a configuration, by name and in order."""
    rounds = config.pairs.rounds
    found = {name: find_stage(name) for name in names_of_rounds(rounds)}
    later = [name for name in found if name not in STAGES]
    evaluate = found["evaluate"]
    found["pairs"] = replace(found["pairs"], needs=_read_by(config.pairs))
    found["evaluate"] = replace(evaluate, uses=(*evaluate.uses, *later), round=rounds)
    return found


def names_of_run(config: Config) -> list[str]:
    """The stages of `rosepo run`, in order: all but a sweep that nobody asked for."""
    return [name for name in stages_of(config) if name != "sweep" or config.sweep.trials]


def paths_of(config: Config, root: Path, stage: Stage) -> RunPaths:
    """A run's folders as a stage sees them."""
    return RunPaths(root, stage.round, moved=config.pairs.reference == "moved")


def _read_by(pairs: PairsConfig) -> tuple[str, ...]:
    """The stages that sampling needs: titles alone may be drawn without a model."""
    policy = pairs.score or pairs.asks_policy or ("semantic" in pairs.used and pairs.encoder == "policy")
    oracle = pairs.score or pairs.asks_oracle
    return ("prepare", *(("sft",) if policy else ()), *(("oracle",) if oracle else ()))


def check_rounds(config: Config, names: Sequence[str]) -> None:
    """Refuse stages of rounds that the configuration does not have.

    Raises:
        UserError: naming the round and `pairs.rounds`.
    """
    there = stages_of(config)
    for name in names:
        if name not in there:
            raise UserError(
                f"{name} is a round beyond pairs.rounds={config.pairs.rounds}: lower --round, or "
                f"--set pairs.rounds={find_stage(name).round}"
            )


def find_stage(name: str) -> Stage:
    """The stage of this name, of whatever round: manifests may name rounds that the configuration no longer has."""
    kind, _, number = name.partition("-")
    return _in_round(STAGES[kind], int(number)) if number else STAGES[name]


def _in_round(stage: Stage, round: int) -> Stage:
    """`pairs` or `align` in a round after the first."""
    source = "oracle" if stage.name == "pairs" else of_round("pairs", round)
    return replace(
        stage,
        name=of_round(stage.name, round),
        folder=of_round(stage.folder, round),
        needs=("prepare", "sft", source, of_round("align", round - 1)),
        purpose=f"{stage.purpose}, round {round}",
        without=tuple(key for key in stage.without if key != "pairs.reference"),
        round=round,
    )


def together_with(stage: Stage, manifests: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The sampling that ran at the same time as this alignment, by the manifests of a run's stages; None for none."""
    pairs = of_round("pairs", stage.round)
    streamed = all(manifests.get(name, {}).get("figures", {}).get("streamed") for name in (stage.name, pairs))
    return pairs if stage.kind == "align" and streamed else None


def seconds_in_all(manifests: Mapping[str, Mapping[str, Any]]) -> float:
    """Seconds that a run's stages took; of those that ran at the same time, what the longer one took."""
    total = 0.0
    for name, manifest in manifests.items():
        pairs = together_with(find_stage(name), manifests)
        total += manifest["seconds"] - (min(manifest["seconds"], manifests[pairs]["seconds"]) if pairs else 0.0)
    return total
