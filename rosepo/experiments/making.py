"""Bringing one run to its end, and what is left behind where it fails."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from rosepo.config import dump_config
from rosepo.experiments.process import call
from rosepo.experiments.provenance import record_look
from rosepo.experiments.runs import FAILURE_FILE, Run, plan_of
from rosepo.experiments.stage_reuse import link_finished, link_rankings
from rosepo.pipeline.planning import CONFIG_FILE, Plan
from rosepo.run.manifest import read_manifest
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
        broken: fingerprint of a stage that failed under this command, to the run that it failed in.
    """

    more: Sequence[str]
    overwrite: bool
    lock: int
    broken: dict[str, str] = field(default_factory=dict)


def make(run: Run, making: Making) -> str | None:
    """Bring one run to its end; returns why it failed, in a sentence, or None.

    A stage that has failed already is not tried again for the next run that shares it: the next command does.
    """
    try:
        config = run.config(making.more)
        plans = plan_of(run, config, making.overwrite)
    except (UserError, StageError) as error:
        return _failed(run, str(error))
    if all(plan.state == "done" for plan in plans):
        _finished(run, plans)
        return None
    for plan in plans:
        if plan.fingerprint in making.broken:
            return _failed(run, f"{plan.stage.name} failed in {making.broken[plan.fingerprint]}, and is the same here")
    run.folder.mkdir(parents=True, exist_ok=True)
    linked = link_finished(run, plans)
    left = [plan.stage.name for plan in plans if plan.state != "done" and plan.stage.name not in linked]
    if "evaluate" in left:
        link_rankings(run, plans)
    shared = f" (shared: {', '.join(linked)})" if linked else ""
    echo(f"  {run.label}: {', '.join(left) or 'nothing left'}{shared}")
    write_text(run.folder / CONFIG_FILE, dump_config(config))
    command = [sys.executable, "-m", "rosepo", "run", "--out", str(run.folder)]
    told = call([*command, *(["--overwrite"] if making.overwrite else [])], run.folder / LOG_FILE, making.lock)
    if told is not None:
        making.broken |= _first_left(run, plans)
        return _failed(run, told)
    _finished(run, plans)
    return None


def _finished(run: Run, plans: Sequence[Plan]) -> None:
    if run.split == "test":
        record_look(run, plans[-1].fingerprint)
    (run.folder / FAILURE_FILE).unlink(missing_ok=True)


def _first_left(run: Run, plans: Sequence[Plan]) -> dict[str, str]:
    """Of a run that failed, the fingerprint of the first stage that is not there, and the run's name."""
    for plan in plans:
        manifest = read_manifest(run.folder / plan.stage.folder)
        if manifest is None or manifest["fingerprint"] != plan.fingerprint:
            return {plan.fingerprint: run.label}
    return {}


def _failed(run: Run, error: str) -> str:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / FAILURE_FILE, {"error": redact(error), "at": now()})
    echo(f"  {run.label} failed: {error}")
    return error
