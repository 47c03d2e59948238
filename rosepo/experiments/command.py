"""`rosepo experiments`: suites of runs, made or gone on with, and their tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rosepo.config.base import nearest
from rosepo.experiments.forecast import as_text, forecast
from rosepo.experiments.making import Making, make
from rosepo.experiments.process import only_one
from rosepo.experiments.runs import runs_of
from rosepo.experiments.suite import GIVEN, Experiment, Experiments, read_suites
from rosepo.utils.console import echo
from rosepo.utils.errors import StageError, UserError


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
