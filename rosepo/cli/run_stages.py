"""What the commands of the stages do: settings, refusals before work, Ray's session, the stages in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosepo.config import Config
from rosepo.utils.errors import UserError

if TYPE_CHECKING:
    from rosepo.pipeline.plan import RunPlan

_JOB_COPY = "working_dir_files"
"""Folder in which Ray unpacks what `ray job submit --working-dir` sent."""


def resolve(
    out: Path,
    config: Path | None,
    overrides: Sequence[str] | None = None,
    interactions: str | None = None,
    items: str | None = None,
) -> Config:
    """The configuration of a command: a file, the one kept in `out`, or the defaults; then the overrides.

    Raises:
        UserError: settings that are unknown or do not go together.
    """
    from rosepo.pipeline.kept_config import resolve_config

    files = [f"data.{k}={quoted(v)}" for k, v in (("interactions", interactions), ("items", items)) if v is not None]
    return resolve_config(out, config, [*files, *(overrides or ())])


def quoted(text: str) -> str:
    """Text as a YAML string, whatever it holds."""
    import yaml

    return yaml.safe_dump(text, default_style='"').strip()


def run_named(config: Config, out: Path, name: str, overwrite: bool, debug: bool) -> None:
    """Run the named stage and say what to run next."""
    from rosepo.cli.summary import print_next

    make(config, out, [name], overwrite, debug)
    print_next(config, out, name)


def run_whole(config: Config, out: Path, overwrite: bool, debug: bool) -> None:
    """Run all stages that the configuration has, and sum up what came of it."""
    from rosepo.cli.summary import print_summary
    from rosepo.pipeline.preflight import check_before_run
    from rosepo.run.stages import names_of_run

    check_before_run(config)
    plan, manifests = make(config, out, names_of_run(config), overwrite, debug)
    print_summary(plan, manifests)


def make(
    config: Config, out: Path, names: Sequence[str], overwrite: bool, debug: bool
) -> tuple[RunPlan, dict[str, dict[str, Any]]]:
    """Plan the named stages and make those that are not up to date, with Ray where there are any.

    Returns:
        The plan, and the manifests of its stages by name.

    Raises:
        UserError: something stands against it, told before Ray is started and any work is done.
        StageError: a stage failed.
    """
    from rosepo.pipeline.planning import plan_again, plan_run
    from rosepo.pipeline.preflight import check_named, check_resources
    from rosepo.pipeline.runner import run_stages
    from rosepo.run.ray_session import ray_session

    check_job(out)
    check_named(config, names)
    plan = plan_run(config, out, names, overwrite)
    check_named(config, [pairs.stage.name for pairs in plan.streamed.values()])
    if not plan.left:
        return plan, run_stages(plan)
    with ray_session(config.ray, debug):
        check_resources(plan)
        manifests = run_stages(plan)
    return plan if plan.waits_for is None else plan_again(plan), manifests


def check_job(out: Path) -> None:
    """Raises UserError for a folder that would be gone with the job that writes it."""
    if not out.is_absolute() and _JOB_COPY in Path.cwd().parts:
        raise UserError(
            f"--out {out} is relative, and a Ray job runs in a copy of the submitted folder that Ray removes: "
            "give an absolute path that every node sees"
        )
