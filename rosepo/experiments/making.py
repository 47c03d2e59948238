"""Bringing one run to its end, and what is left behind where it fails."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from rosepo.config import dump_config
from rosepo.data.readers.digests import FileDigests
from rosepo.experiments.process import call
from rosepo.experiments.provenance import record_look
from rosepo.experiments.runs import FAILURE_FILE, Run, plan_of
from rosepo.experiments.stage_reuse import link_finished, link_rankings
from rosepo.pipeline.kept_config import CONFIG_FILE
from rosepo.pipeline.planning import RunPlan
from rosepo.utils.console import echo
from rosepo.utils.errors import StageError, UserError
from rosepo.utils.files import now, write_json, write_text
from rosepo.utils.redaction import redact

LOG_FILE = "log.txt"


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
