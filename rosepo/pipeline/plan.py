"""What a command is to do in one run's folder, as it was decided: see `rosepo.pipeline.planning`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rosepo.config import Config
from rosepo.data.readers.digests import FileDigests
from rosepo.pipeline.chosen_settings import Choice
from rosepo.run.paths import of_round
from rosepo.run.stages import Stage


@dataclass(frozen=True)
class StagePlan:
    """What is to be done for one stage.

    Attributes:
        state: `done` where it is up to date, `missing`, or `replace` where it was made from something else.
        settings: what its result depends on, dotted key to value.
        inputs: fingerprints of the stages that it reads, as they will be by then, by name.
        files: digests of the user's files that it reads, by name.
        fingerprint: the digest of all three.
        found: the fingerprint of what stood in its folder when this was decided; None for nothing.
    """

    stage: Stage
    state: Literal["done", "missing", "replace"]
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    files: Mapping[str, str]
    fingerprint: str
    found: str | None


@dataclass(frozen=True)
class RunPlan:
    """What a command is to do in one run's folder.

    Attributes:
        asked: the configuration as it was given.
        config: with what follows from the data and from a sweep, as far as they are there.
        choices: what follows from the data.
        stages: those that were named, in the order of work, up to date or not.
        manifests: of all stages that are there and can be read, named or not, by name.
        waits_for: the stage after which the others are planned anew, because their settings follow from it; None where
            nothing does that is not there.
        names: the stages that were named.
        overwrite, digests: as of `plan_run`.
    """

    asked: Config
    config: Config
    choices: tuple[Choice, ...]
    root: Path
    stages: tuple[StagePlan, ...]
    manifests: Mapping[str, dict[str, Any]]
    waits_for: str | None
    names: tuple[str, ...]
    overwrite: bool
    digests: FileDigests

    def __getitem__(self, name: str) -> StagePlan:
        return next(plan for plan in self.stages if plan.stage.name == name)

    @property
    def left(self) -> tuple[StagePlan, ...]:
        """The stages that are to be made."""
        return tuple(plan for plan in self.stages if plan.state != "done")

    @cached_property
    def streamed(self) -> dict[str, StagePlan]:
        """Sampling that is done while its groups are trained on (`pairs.stream`), by the name of the alignment."""
        left = {plan.stage.name: plan for plan in self.left} if self.config.pairs.stream else {}
        pairs = {name: of_round("pairs", plan.stage.round) for name, plan in left.items() if plan.stage.kind == "align"}
        return {name: left[sampling] for name, sampling in pairs.items() if sampling in left}
