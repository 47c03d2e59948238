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
    """One run: what happens to the stages that are not up to date.

    Attributes:
        made: name of a stage to the seconds that it may take; None where it was never made before.
        shared: name of a stage to the variant that has made it, or will have by then.
        error: why the run cannot be made, in a sentence.
    """

    run: Run
    made: dict[str, float | None] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    error: str | None = None

    @property
    def seconds(self) -> float:
        """Of the stages to be made, as far as they can be told."""
        return sum(seconds for seconds in self.made.values() if seconds is not None)

    @property
    def unknown(self) -> list[str]:
        """Stages that were never made before."""
        return [name for name, seconds in self.made.items() if seconds is None]


def forecast(runs: Sequence[Run], out: Path, more: Sequence[str], overwrite: bool) -> list[Forecast]:
    """What each run would take, in order, each after those before it."""
    times, digests = _times(out), FileDigests()
    promised: dict[tuple[Path, str], str] = {}
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
        for step in plan.left:
            source = source_of(step, siblings)
            sharer = source.parent.name if source else promised.get((run.folder.parent, step.fingerprint))
            if sharer is not None:
                one.shared[step.stage.name] = sharer
            else:
                keys = _keys(run.experiment.data, run.folder.name, step.stage.kind)
                one.made[step.stage.name] = next((median(times[key]) for key in keys if key in times), None)
        for step in plan.stages:
            promised.setdefault((run.folder.parent, step.fingerprint), run.folder.name)
    return found


def as_text(forecasts: Sequence[Forecast]) -> str:
    """The forecasts as a table, and their sum."""
    rows = []
    for one in forecasts:
        row = [one.run.experiment.data, str(one.run.seed), one.run.folder.name]
        if one.error is not None:
            rows.append([*row, "cannot be made, see below", "", ""])
            continue
        sources: dict[str, list[str]] = {}
        for name, source in one.shared.items():
            sources.setdefault(source, []).append(name)
        told = (duration(one.seconds) + (" and more" if one.unknown else "")) if one.seconds else "not known"
        row += [", ".join(one.made) or "up to date"]
        row += ["; ".join(f"{', '.join(names)} of {source}" for source, names in sources.items())]
        rows.append([*row, told if one.made else ""])
    total = sum(one.seconds for one in forecasts)
    unknown = sorted({find_stage(name).kind for one in forecasts for name in one.unknown})
    left = f", and what {', '.join(unknown)} will take, never made here before" if unknown else ""
    todo = sum(bool(one.made) for one in forecasts)
    errors = [f"  {one.run.label}: {one.error}" for one in forecasts if one.error is not None]
    lines = [table(rows, header=("data", "seed", "run", "to make", "shared", "time")), ""]
    return "\n".join([*lines, f"  {len(forecasts)} runs, {todo} to make: {duration(total)}{left}", *errors])


def _times(out: Path) -> dict[tuple[str, ...], list[float]]:
    """Seconds of stages that were made before in a folder of experiments, by `_keys`."""
    found: dict[tuple[str, ...], list[float]] = {}
    counted: set[tuple[str, str]] = set()
    for path in sorted(out.glob("*/seed-*/*/*/_manifest.json")):
        manifest = find_manifest(path.parent)
        if manifest is None or (manifest["fingerprint"], manifest["created"]) in counted:
            continue  # the same stage, linked
        counted.add((manifest["fingerprint"], manifest["created"]))
        data, _, variant, _ = path.parent.relative_to(out).parts
        for key in _keys(data, variant, find_stage(manifest["stage"]).kind):
            found.setdefault(key, []).append(manifest["seconds"])
    return found


def _keys(data: str, variant: str, stage: str) -> list[tuple[str, ...]]:
    """What is nearest to a stage of a run first."""
    return [(data, variant, stage), (data, stage), (stage,)]
