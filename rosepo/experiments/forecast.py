"""What a command would do, before it does it: stages to make, stages to share, and how long that may take.

Times come from manifests that are there already, of runs with this very variant, else on this data set, else anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rosepo.data.readers.digests import FileDigests
from rosepo.experiments.runs import Run, plan_of
from rosepo.experiments.stage_reuse import source_of
from rosepo.run.manifest import find_manifest
from rosepo.run.stages import find_stage
from rosepo.utils.console import duration, table
from rosepo.utils.errors import StageError, UserError


@dataclass
class Forecast:
    """One run: stages by what happens to them.

    Attributes:
        shared: name of the stage to the variant that has made it, or will have by then.
        seconds: of the stages to be made, as far as they can be told.
        unknown: stages that were never made before.
        error: why the run cannot be made, in a sentence.
    """

    run: Run
    done: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    shared: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    unknown: list[str] = field(default_factory=list)
    error: str | None = None


class Times:
    """Seconds of stages that were made before, in a folder of experiments."""

    def __init__(self, out: Path) -> None:
        self._seconds: dict[tuple[str, ...], list[float]] = {}
        counted: set[tuple[str, str]] = set()
        for path in sorted(out.glob("*/seed-*/*/*/_manifest.json")):
            manifest = find_manifest(path.parent)
            if manifest is None or (manifest["fingerprint"], manifest["created"]) in counted:
                continue  # the same stage, linked
            counted.add((manifest["fingerprint"], manifest["created"]))
            data, _, variant, _ = path.parent.relative_to(out).parts
            stage = find_stage(manifest["stage"]).kind
            for key in _keys(data, variant, stage):
                self._seconds.setdefault(key, []).append(manifest["seconds"])

    def of(self, run: Run, stage: str) -> float | None:
        """The median of what is nearest to this stage of this run; None where it was never made."""
        keys = _keys(run.experiment.data, run.folder.name, stage)
        return next((median(self._seconds[key]) for key in keys if key in self._seconds), None)


def _keys(data: str, variant: str, stage: str) -> list[tuple[str, ...]]:
    return [(data, variant, stage), (data, stage), (stage,)]


def forecast(runs: Sequence[Run], out: Path, more: Sequence[str], overwrite: bool) -> list[Forecast]:
    """What each run would take, in order, each after those before it."""
    times, digests = Times(out), FileDigests()
    promised: dict[tuple[str, int, str], str] = {}
    found = []
    for run in runs:
        one = Forecast(run)
        found.append(one)
        try:
            plan = plan_of(run, run.config(more), overwrite, digests)
        except (UserError, StageError) as error:
            one.error = str(error)
            continue
        siblings = run.siblings()
        for step in plan.stages:
            name = step.stage.name
            key = (run.experiment.data, run.seed, step.fingerprint)
            source = source_of(step, siblings) if step.state != "done" else None
            if step.state == "done":
                one.done.append(name)
            elif source is not None:
                one.shared[name] = source.parent.name
            elif key in promised:
                one.shared[name] = promised[key]
            else:
                one.made.append(name)
                seconds = times.of(run, step.stage.kind)
                one.seconds += seconds or 0.0
                one.unknown += [name] if seconds is None else []
            promised.setdefault(key, run.folder.name)
    return found


def as_text(forecasts: Sequence[Forecast]) -> str:
    """The forecasts as a table, and their sum."""
    rows = []
    for one in forecasts:
        run = one.run
        where = [run.experiment.data, str(run.seed), run.folder.name]
        if one.error is not None:
            rows.append([*where, "cannot be made, see below", "", ""])
            continue
        by_source = {
            source: [name for name in one.shared if one.shared[name] == source] for source in one.shared.values()
        }
        shared = "; ".join(f"{', '.join(names)} of {source}" for source, names in by_source.items())
        told = (duration(one.seconds) + (" and more" if one.unknown else "")) if one.seconds else "not known"
        rows.append([*where, ", ".join(one.made) or "up to date", shared, told if one.made else ""])
    total = sum(one.seconds for one in forecasts)
    unknown = sorted({find_stage(name).kind for one in forecasts for name in one.unknown})
    left = f", and what {', '.join(unknown)} will take, never made here before" if unknown else ""
    todo = sum(bool(one.made) for one in forecasts)
    errors = [f"  {one.run.label}: {one.error}" for one in forecasts if one.error is not None]
    lines = [table(rows, header=("data", "seed", "run", "to make", "shared", "time")), ""]
    return "\n".join([*lines, f"  {len(forecasts)} runs, {todo} to make: {duration(total)}{left}", *errors])
