"""What the commands of the stages do: settings, refusals before work, Ray's session, the stages in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rosepo.config import Config
from rosepo.utils.errors import UserError

_JOB_COPY = "working_dir_files"
"""Folder in which Ray unpacks what `ray job submit --working-dir` sent."""


def resolve(
    out: Path, config: Path | None, overrides: Sequence[str], interactions: str | None = None, items: str | None = None
) -> Config:
    """The configuration of a command: a file, the one kept in `out`, or the defaults; then the overrides.

    Raises:
        UserError: settings that are unknown or do not go together.
    """
    from rosepo.pipeline.planning import resolve_config

    files = [f"data.{k}={quoted(v)}" for k, v in (("interactions", interactions), ("items", items)) if v is not None]
    return resolve_config(out, config, [*files, *overrides])


def quoted(text: str) -> str:
    """Text as a YAML string, whatever it holds."""
    import yaml

    return yaml.safe_dump(text, default_style='"').strip()


def run_named(
    out: Path,
    config: Path | None,
    overrides: Sequence[str],
    names: Sequence[str],
    overwrite: bool,
    debug: bool,
    interactions: str | None = None,
    items: str | None = None,
) -> None:
    """Run the named stages and say what to run next."""
    from rosepo.cli.summary import print_next

    settings = resolve(out, config, overrides, interactions, items)
    run_all(settings, out, names, overwrite, debug)
    print_next(settings, out, names[-1])


def run_all(config: Config, out: Path, names: Sequence[str], overwrite: bool, debug: bool) -> None:
    """Run the named stages, with Ray where there is anything to do.

    Raises:
        UserError: something stands against it, told before any work.
        StageError: a stage failed.
    """
    from rosepo.pipeline.planning import plan_stages, with_streamed
    from rosepo.pipeline.preflight import check_named, check_resources
    from rosepo.pipeline.runner import run_stages
    from rosepo.run.ray_session import ray_session

    check_job(out)
    names = with_streamed(config, out, names)
    check_named(config, names)
    # Refusals come before Ray is started; run_stages plans again, on the same folder.
    if all(plan.state == "done" for plan in plan_stages(config, out, names, overwrite)):
        run_stages(config, out, names, overwrite)
        return
    with ray_session(config.ray, debug):
        check_resources(config, names)
        run_stages(config, out, names, overwrite)


def check_job(out: Path) -> None:
    """Raises UserError for a folder that would be gone with the job that writes it."""
    if not out.is_absolute() and _JOB_COPY in Path.cwd().parts:
        raise UserError(
            f"--out {out} is relative, and a Ray job runs in a copy of the submitted folder that Ray removes: "
            "give an absolute path that every node sees"
        )
