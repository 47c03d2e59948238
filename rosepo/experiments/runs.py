"""The runs of experiments: an ordinary run's folder for every data set, seed and variant, in a process of its own.

Nothing is made twice. Before a run starts, every stage that a sibling (same data set and seed) has finished under the
very fingerprint that this run would give it is hard-linked into its folder; what `rosepo run` then finds is up to date,
by the rules that it has anyway. Stage folders are never changed once they are finished, only replaced whole, so that
one file may stand in many runs.

An evaluation itself is no sibling's, but ranks baselines and an SFT model that siblings have ranked already: their
rankings are put where the evaluation keeps unfinished work, and it takes over those whose origin is right.

Splits. Settings are chosen on validation, so every variant is evaluated there. The test split is a second run,
`<variant>.test`, that differs in `evaluate.split` alone: all its stages but the evaluation are links. It is made by
`--test` and not before, so that nobody who tunes has to look away from test figures.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rosepo.artifacts import (
    Outputs,
    digest,
    now,
    of_round,
    partial_folder,
    read_manifest,
    replacing,
    write_json,
    write_text,
)
from rosepo.config import Config, dump_config
from rosepo.console import say
from rosepo.errors import StageError, UserError
from rosepo.experiments.suite import Experiment, Split
from rosepo.pipeline import CONFIG_FILE, Plan, plan_stages
from rosepo.redaction import redact, redact_tree
from rosepo.stages import stage_settings, stages_of

FAILURE_FILE, LOG_FILE = "failure.json", "log.txt"
_TEST = ".test"
_PATIENCE = 60
"""Seconds that a command that was killed may still take to end its run."""
_DEATH_SIGNAL = 1
"""Linux: PR_SET_PDEATHSIG."""


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
        """Whether there is an evaluation, and the last try did not fail."""
        return read_manifest(Outputs(self.folder).evaluation) is not None and self.failure() is None

    def config(self, more: Sequence[str] = ()) -> Config:
        """Its configuration, see `Experiment.config`; overrides `DATA:SECTION.KEY=VALUE` are for one data set."""
        return self.experiment.config(self.seed, self.split, overrides_of(self.experiment.data, more))

    def changed(self, more: Sequence[str] = ()) -> list[str]:
        """Settings that its finished stages were made with and that it has no longer, `key: then → now`."""
        config, found = self.config(more), {}
        for stage in stages_of(config).values():
            manifest = read_manifest(self.folder / stage.folder)
            settings = stage_settings(config, stage) if manifest is not None else {}
            for key, value in settings.items():
                then = manifest["settings"].get(key) if manifest else None
                # Where the data stands is no matter; what is in it the fingerprints know.
                if not key.startswith("data.") and digest(redact_tree(value)) != digest(then):
                    found[key] = f"{key}: {then} → {value}"
        return [*found.values()]

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
        key = override.partition("=")[0]
        name, colon, _ = key.partition(":")
        if not colon:
            found.append(override)
        elif name == data:
            found.append(override[len(name) + 1 :])
    return found


def runs_of(experiments: Iterable[Experiment], out: Path, test: bool = False) -> list[Run]:
    """All runs in the order in which they are made: data set by data set, a seed with all its variants after another;
    those on test at the end of each seed."""
    ordered = list(experiments)
    seeds: dict[tuple[str, int], None] = {}
    for data in dict.fromkeys(one.data for one in ordered):
        of_data = [one.seeds for one in ordered if one.data == data]
        seeds |= dict.fromkeys((data, seed) for seed in sorted({seed for each in of_data for seed in each}))
    runs = []
    for data, seed in seeds:
        here = [one for one in ordered if one.data == data and seed in one.seeds]
        runs += [Run(one, seed, "validation", out) for one in here]
        runs += [Run(one, seed, "test", out) for one in here if test and one.tested]
    return runs


def stage_names(config: Config) -> list[str]:
    """The stages of `rosepo run` under a configuration."""
    return [name for name in stages_of(config) if name != "sweep" or config.sweep.trials > 0]


def plan_of(run: Run, config: Config, overwrite: bool = False) -> list[Plan]:
    """What is to be done in a run's folder, see `plan_stages`."""
    return plan_stages(config, run.folder, stage_names(config), overwrite)


def source_of(plan: Plan, siblings: Iterable[Path]) -> Path | None:
    """The folder in which a sibling has finished this very stage; None where none has."""
    for sibling in siblings:
        folder = sibling / plan.stage.folder
        manifest = read_manifest(folder)
        if manifest is not None and manifest["fingerprint"] == plan.fingerprint:
            return folder
    return None


def link_finished(run: Run, plans: Sequence[Plan]) -> list[str]:
    """Take over what siblings have finished; returns the names of the stages that were linked."""
    linked, siblings = [], run.siblings()
    for plan in plans:
        source = source_of(plan, siblings) if plan.state != "done" else None
        if source is None:
            continue
        target = run.folder / plan.stage.folder
        with replacing(target) as aside:
            shutil.copytree(source, aside, copy_function=_link, dirs_exist_ok=True)
        shutil.rmtree(partial_folder(target, plan.fingerprint), ignore_errors=True)
        linked.append(plan.stage.name)
    return linked


def link_rankings(run: Run, plans: Sequence[Plan]) -> list[str]:
    """Lend the evaluation that is to be made the rankings of the same models by siblings; returns the models' names.

    It looks at the origin of what it finds, and makes again what has another.
    """
    from rosepo.evaluation.systems import RANKINGS_FOLDER

    made = {plan.stage.name: plan.fingerprint for plan in plans}
    plan = next(plan for plan in plans if plan.stage.name == "evaluate")
    folder = partial_folder(run.folder / plan.stage.folder, plan.fingerprint) / RANKINGS_FOLDER
    wanted = {"popular": "prepare", "markov": "prepare", "oracle": "oracle", "sft": "sft"}
    wanted["aligned"] = of_round("align", plan.stage.round)
    found = []
    for sibling in run.siblings():
        manifest = read_manifest(Outputs(sibling).evaluation)
        if manifest is None or manifest["settings"].get("evaluate.split") != run.split:
            continue
        for model, stage in wanted.items():
            source = Outputs(sibling).evaluation / RANKINGS_FOLDER / f"{model}.parquet"
            same = all(manifest["inputs"].get(name) == made.get(name) for name in ("prepare", stage))
            if same and model not in found and source.is_dir() and not (folder / source.name).exists():
                shutil.copytree(source, folder / source.name, copy_function=_link)
                found.append(model)
    return found


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def make(run: Run, more: Sequence[str], overwrite: bool, lock: int) -> str | None:
    """Bring one run to its end; returns why it failed, in a sentence, or None. `lock` is that of `only_one`."""
    try:
        config = run.config(more)
        plans = plan_of(run, config, overwrite)
    except (UserError, StageError) as error:
        return _failed(run, str(error))
    if all(plan.state == "done" for plan in plans):
        (run.folder / FAILURE_FILE).unlink(missing_ok=True)
        return None
    run.folder.mkdir(parents=True, exist_ok=True)
    linked = link_finished(run, plans)
    left = [plan.stage.name for plan in plans if plan.state != "done" and plan.stage.name not in linked]
    if "evaluate" in left:
        link_rankings(run, plans)
    shared = f" (shared: {', '.join(linked)})" if linked else ""
    say(f"  {run.label}: {', '.join(left) or 'nothing left'}{shared}")
    write_text(run.folder / CONFIG_FILE, dump_config(config))
    command = [sys.executable, "-m", "rosepo", "run", "--out", str(run.folder), *(["--overwrite"] if overwrite else [])]
    told = _call(command, run.folder / LOG_FILE, lock)
    if told is not None:
        return _failed(run, told)
    (run.folder / FAILURE_FILE).unlink(missing_ok=True)
    return None


def _failed(run: Run, error: str) -> str:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / FAILURE_FILE, {"error": redact(error), "at": now()})
    say(f"  {run.label} failed: {error}")
    return error


def _call(command: list[str], log: Path, lock: int) -> str | None:
    """Run a command, all that it says in `log`; returns the sentence of its error, or None.

    The run is a session of its own: Ctrl-C reaches this process alone, which then sends it one SIGTERM, an orderly
    stop. It shares the lock, so that the next command waits for the end of a run whose own command was killed.
    """
    told = "it said nothing"
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        pass_fds=(lock,),
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )
    try:
        assert process.stdout is not None
        with log.open("a", encoding="utf-8") as file:
            for line in process.stdout:
                file.write(line)
                file.flush()
                if line.startswith("["):
                    say(f"    {line.rstrip()}")
                elif line.strip():
                    told = line.strip()
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
    if code == 0:
        return None
    if code < 0:
        return f"ended by {signal.Signals(-code).name}; its last line: {told} ({log})"
    return f"{told.removeprefix('error: ')} ({log})"


def _end_with_parent() -> None:
    """A run whose command was killed outright gets SIGTERM: it must not go on beside the next command."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)


@contextmanager
def only_one(out: Path) -> Iterator[int]:
    """The lock of a folder of experiments: one command at a time; one that was killed is given a minute to end.

    Raises:
        UserError: another one is still at work.
    """
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        for second in range(_PATIENCE + 1):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if second == 0:
                    say(f"  another rosepo is at work in {out}: waiting up to {_PATIENCE} s for its end")
                time.sleep(1)
            except OSError:
                break  # a file system without locks
        else:
            raise UserError(f"another rosepo is running experiments in {out}: wait for it, or use another --out")
        yield handle
    finally:
        os.close(handle)
