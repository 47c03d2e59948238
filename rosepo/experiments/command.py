"""`rosepo experiments`: suites of runs, made or gone on with, and their tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rosepo.config import dump_config
from rosepo.config.base import nearest
from rosepo.data.readers.digests import FileDigests
from rosepo.experiments.forecast import as_text, forecast
from rosepo.experiments.process import call, only_one
from rosepo.experiments.provenance import record_look
from rosepo.experiments.runs import FAILURE_FILE, Run, plan_of, runs_of
from rosepo.experiments.stage_reuse import link_finished, link_rankings
from rosepo.experiments.suite import GIVEN, Experiment, Experiments, read_suites
from rosepo.pipeline.kept_config import CONFIG_FILE
from rosepo.pipeline.plan import RunPlan
from rosepo.utils.console import echo
from rosepo.utils.errors import StageError, UserError
from rosepo.utils.files import now, write_json, write_text
from rosepo.utils.redaction import redact

LOG_FILE = "log.txt"


@dataclass(frozen=True)
class Chosen:
    """The part of the suites that a command is about; empty for all.

    Attributes:
        variants: names.
        data: names of data sets.
        seeds: seeds, also such as no suite names.
        test: evaluate on the test split too.
    """

    variants: Sequence[str] = ()
    data: Sequence[str] = ()
    seeds: Sequence[int] = ()
    test: bool = False


def experiments(
    suites: Sequence[Path],
    out: Path,
    chosen: Chosen,
    more: Sequence[str] = (),
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    tables: bool = False,
) -> None:
    """Make what is left of the suites and write `results.json` and `results.md` of all that is finished.

    Args:
        more: overrides `section.key=value`, or `data:section.key=value` for one data set.
        dry_run: say what would be done, and do nothing.
        tables: write the tables alone.

    Raises:
        UserError: a suite that cannot be read, or a name that is not in them.
        StageError: some runs failed; the others were made.
    """
    asked = read_suites(suites)
    runs = runs_of(_chosen(asked, chosen, more), out, chosen.test)
    if dry_run:
        echo(as_text(forecast(runs, out, more, overwrite)))
        return
    if not tables:
        with only_one(out) as lock:
            making = Making(more, overwrite, lock)
            for number, run in enumerate(runs, 1):
                echo(f"({number}/{len(runs)}) {run.label}")
                if run.split == "test" and not replace(run, split="validation").finished:
                    echo("  left out: it has no evaluation on validation")
                    continue
                make(run, making)
    from rosepo.experiments.results import write_results
    from rosepo.experiments.results_page import MARKDOWN_FILE

    # Of the tables the whole suites are part, whatever was chosen to be made now.
    seeds = [replace(one, seeds=tuple({*one.seeds, *chosen.seeds})) for one in asked.experiments]
    wanted = {run.folder for run in runs} | {run.folder for run in runs_of(asked.experiments, out)}
    every = [run for run in runs_of(seeds, out, test=True) if run.finished or run.folder in wanted]
    failed = [run for run in runs if run.failure() is not None]
    told = f"{len(failed)} of {len(runs)} runs failed; {failed[0].label}: {failed[0].failure()}" if failed else ""
    if not any(run.finished for run in every):
        raise StageError(told or f"{out} holds no finished run of these suites: leave --tables out to make them")
    write_results(asked, every, out, more)
    echo(f"  Results  {out / MARKDOWN_FILE}")
    if told:
        raise StageError(told)


def _chosen(asked: Experiments, chosen: Chosen, more: Sequence[str]) -> list[Experiment]:
    data = list(dict.fromkeys(one.data for one in asked.experiments))
    prefixes = [key.partition(":")[0] for override in more if ":" in (key := override.partition("=")[0])]
    for option, names, known in (
        ("--only", chosen.variants, [*asked.variants]),
        ("--data", chosen.data, data),
        ("--set", prefixes, data),
    ):
        for name in names:
            if name not in known:
                raise UserError(f"{option} {name} is in none of the suites{nearest(name, known)}")
    for override in more:
        if override.partition("=")[0].rpartition(":")[2] in GIVEN:
            raise UserError(f"--set {override}: seeds are given by --seeds, and every run is evaluated on validation")
    return [
        replace(one, seeds=tuple(chosen.seeds)) if chosen.seeds else one
        for one in asked.experiments
        if (not chosen.variants or one.variant in chosen.variants) and (not chosen.data or one.data in chosen.data)
    ]


@dataclass
class Making:
    """What a command makes its runs with.

    Attributes:
        more: overrides in every run.
        overwrite: make again what was made with other settings.
        lock: that of `only_one`.
        digests: of the data files, which all runs read.
        broken: fingerprint of a stage that failed under this command, to the run that it failed in.
    """

    more: Sequence[str]
    overwrite: bool
    lock: int
    digests: FileDigests = field(default_factory=FileDigests)
    broken: dict[str, str] = field(default_factory=dict)


def make(run: Run, making: Making) -> str | None:
    """Bring one run to its end; returns why it failed, in a sentence, or None.

    A stage that has failed already is not tried again for the next run that shares it: the next command does.
    """
    try:
        config = run.config(making.more)
        plan = plan_of(run, config, making.overwrite, making.digests)
    except (UserError, StageError) as error:
        return _failed(run, str(error))
    if not plan.left:
        _finished(run, plan)
        return None
    for step in plan.stages:
        if step.fingerprint in making.broken:
            return _failed(run, f"{step.stage.name} failed in {making.broken[step.fingerprint]}, and is the same here")
    run.folder.mkdir(parents=True, exist_ok=True)
    linked = link_finished(run, plan)
    while plan.waits_for is not None and plan.waits_for in linked:  # what follows from it is known now
        plan = plan_of(run, config, making.overwrite, making.digests)
        linked += link_finished(run, plan)
    left = [step.stage.name for step in plan.left if step.stage.name not in linked]
    if "evaluate" in left:
        link_rankings(run, plan)
    shared = f" (shared: {', '.join(linked)})" if linked else ""
    echo(f"  {run.label}: {', '.join(left) or 'nothing left'}{shared}")
    write_text(run.folder / CONFIG_FILE, dump_config(config))
    command = [sys.executable, "-m", "rosepo", "run", "--out", str(run.folder)]
    told = call([*command, *(["--overwrite"] if making.overwrite else [])], run.folder / LOG_FILE, making.lock)
    if told is not None:
        left_now = plan_of(run, config, True, making.digests).left
        making.broken |= {step.fingerprint: run.label for step in left_now[:1]}
        return _failed(run, told)
    _finished(run, plan)
    return None


def _finished(run: Run, plan: RunPlan) -> None:
    if run.split == "test":
        record_look(run, plan["evaluate"].fingerprint)
    (run.folder / FAILURE_FILE).unlink(missing_ok=True)


def _failed(run: Run, error: str) -> str:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / FAILURE_FILE, {"error": redact(error), "at": now()})
    echo(f"  {run.label} failed: {error}")
    return error
