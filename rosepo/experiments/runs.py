"""The runs of experiments: an ordinary run's folder for every data set, seed and variant, in a process of its own.

Splits. Settings are chosen on validation, so every variant is evaluated there. The test split is a second run,
`<variant>.test`, that differs in `evaluate.split` alone: all its stages but the evaluation are links. It is made by
`--test` and not before, so that nobody who tunes has to look away from test figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rosepo.config import Config
from rosepo.data.readers.digests import FileDigests
from rosepo.experiments.suite import Experiment, Split
from rosepo.pipeline.chosen_settings import as_made
from rosepo.pipeline.fingerprints import stage_settings
from rosepo.pipeline.kept_config import CONFIG_FILE, resolve_config
from rosepo.pipeline.plan import RunPlan
from rosepo.pipeline.planning import differences, plan_run
from rosepo.report.run_metadata import manifests_of
from rosepo.run.manifest import find_manifest
from rosepo.run.paths import RunPaths
from rosepo.run.stages import find_stage, names_of_run

FAILURE_FILE = "failure.json"
_TEST = ".test"


@dataclass(frozen=True)
class Run:
    """One variant on one data set with one seed, evaluated on one split."""

    experiment: Experiment
    seed: int
    split: Split
    out: Path

    @property
    def folder(self) -> Path:
        """An ordinary run's folder."""
        name = self.experiment.variant + (_TEST if self.split == "test" else "")
        return self.out / self.experiment.data / f"seed-{self.seed}" / name

    @property
    def label(self) -> str:
        """For people."""
        split = ", test" if self.split == "test" else ""
        return f"{self.experiment.data}, seed {self.seed}, {self.experiment.variant}{split}"

    @property
    def finished(self) -> bool:
        """Whether there is an evaluation, be it of an older rosepo, and the last try did not fail."""
        return find_manifest(RunPaths(self.folder).evaluation) is not None and self.failure() is None

    def config(self, more: Sequence[str] = ()) -> Config:
        """Its configuration, see `Experiment.config`; overrides `DATA:SECTION.KEY=VALUE` are for one data set."""
        return self.experiment.config(self.seed, self.split, overrides_of(self.experiment.data, more))

    @cached_property
    def made_with(self) -> Config:
        """The configuration that is kept in its folder."""
        return resolve_config(self.folder, None, [])

    @cached_property
    def manifests(self) -> dict[str, dict[str, Any]]:
        """Of its finished stages, by name."""
        return manifests_of(RunPaths(self.folder, self.made_with.pairs.rounds))

    def changed(self, more: Sequence[str] = ()) -> list[str]:
        """Settings that its finished stages were made with and that it has no longer, `key: then → now`; and stages
        made again since they were evaluated, as a command that was killed under `--overwrite` leaves them.

        Raises:
            UserError: settings that do not go together, or stages that were made by a rosepo of another format.
        """
        config = as_made(self.config(more), self.manifests)
        found: list[str] = []
        for name, manifest in self.manifests.items():
            settings = stage_settings(config, find_stage(name))
            # Where the data stands is no matter; what is in it the fingerprints know.
            now = {key: value for key, value in settings.items() if not key.startswith("data.")}
            found += differences({key: manifest["settings"].get(key) for key in now}, now)
        for name, fingerprint in self.manifests["evaluate"]["inputs"].items():
            if name in self.manifests and self.manifests[name]["fingerprint"] != fingerprint:
                found.append(f"{name} was made again after the evaluation")
        return list(dict.fromkeys(found))

    def siblings(self) -> list[Path]:
        """Folders of runs on the same data with the same seed."""
        parent = self.folder.parent
        found = sorted(parent.iterdir()) if parent.is_dir() else []
        return [folder for folder in found if folder != self.folder and (folder / CONFIG_FILE).is_file()]

    def failure(self) -> str | None:
        """Why the last try failed, in a sentence; None where it did not."""
        try:
            return str(json.loads((self.folder / FAILURE_FILE).read_text(encoding="utf-8"))["error"])
        except FileNotFoundError:
            return None


def overrides_of(data: str, more: Sequence[str]) -> list[str]:
    """The overrides that concern a data set, without its name in front."""
    found = []
    for override in more:
        name, colon, _ = override.partition("=")[0].partition(":")
        if not colon or name == data:
            found.append(override.removeprefix(f"{data}:"))
    return found


def runs_of(experiments: Iterable[Experiment], out: Path, test: bool = False) -> list[Run]:
    """All runs in the order in which they are made: data set by data set, a seed with all its variants after another;
    those on test at the end of each seed."""
    of_data: dict[str, list[Experiment]] = {}
    for one in experiments:
        of_data.setdefault(one.data, []).append(one)
    runs = []
    for variants in of_data.values():
        for seed in sorted({seed for one in variants for seed in one.seeds}):
            here = [one for one in variants if seed in one.seeds]
            runs += [Run(one, seed, "validation", out) for one in here]
            runs += [Run(one, seed, "test", out) for one in here if test and one.tested]
    return runs


def plan_of(run: Run, config: Config, overwrite: bool = False, digests: FileDigests | None = None) -> RunPlan:
    """What is to be done in a run's folder, see `plan_run`."""
    return plan_run(config, run.folder, names_of_run(config), overwrite, digests)
