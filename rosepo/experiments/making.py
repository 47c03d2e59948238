"""Bringing one run to its end, and what is left behind where it fails."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rosepo.artifacts import now, write_json, write_text
from rosepo.config import dump_config
from rosepo.console import say
from rosepo.errors import StageError, UserError
from rosepo.experiments.process import call
from rosepo.experiments.runs import FAILURE_FILE, Run, plan_of
from rosepo.experiments.sharing import link_finished, link_rankings
from rosepo.pipeline import CONFIG_FILE
from rosepo.redaction import redact

LOG_FILE = "log.txt"


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
    told = call(command, run.folder / LOG_FILE, lock)
    if told is not None:
        return _failed(run, told)
    (run.folder / FAILURE_FILE).unlink(missing_ok=True)
    return None


def _failed(run: Run, error: str) -> str:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / FAILURE_FILE, {"error": redact(error), "at": now()})
    say(f"  {run.label} failed: {error}")
    return error
