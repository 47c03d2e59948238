"""Runs that an older rosepo made: every command that would read them or go on with them says so, in one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rosepo.cli.app import app
from rosepo.config import dump_config
from rosepo.pipeline.planning import plan_run
from rosepo.run.stages import STAGES
from tests.manifests import OLD_VERSION, finish, make_older
from tests.pipeline.test_planning import configure


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A whole run of another format."""
    root = tmp_path / "old"
    finish(root, configure(), *STAGES)
    for stage in STAGES.values():
        make_older(root / stage.folder)
    (root / "config.yaml").write_text(dump_config(configure()))
    (root / "manifest.json").write_text('{"stages": {}}')
    return root


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("command", "folder", "remedy"),
    [
        (["run", "--out", "OLD"], "examples", "use another --out, or --overwrite to make it again"),
        (["prepare", "--out", "OLD"], "examples", "use another --out, or --overwrite to make it again"),
        (["sft", "--out", "OLD"], "examples", "use another --out, or `rosepo run --overwrite`"),
        (["oracle", "--out", "OLD"], "examples", "use another --out, or `rosepo run --overwrite`"),
        (["pairs", "--out", "OLD"], "examples", "use another --out, or `rosepo run --overwrite`"),
        (["align", "--out", "OLD"], "examples", "use another --out, or `rosepo run --overwrite`"),
        (["sweep", "--out", "OLD"], "examples", "use another --out, or `rosepo run --overwrite`"),
        (["evaluate", "--out", "OLD"], "examples", "use another --out, or `rosepo run --overwrite`"),
        (["align", "--out", "OLD", "--overwrite"], "examples", "use another --out, or move it away"),
        (["run", "--out", "OLD", "--overwrite", "--set", "sweep.trials=0"], "sweep", "or move it away"),
        (["report", "--out", "OLD"], "evaluation", "use another --out, or `rosepo run --overwrite`"),
        (["compare", "OLD", "COPY"], "evaluation", "use another --out, or `rosepo run --overwrite`"),
        (["check", "--groups", "OLD/groups"], "groups", "use another --out, or `rosepo run --overwrite`"),
        (["recommend", "--out", "OLD", "--history", "Her (2013)"], "aligned", "give --model"),
    ],
)
def test_every_command_refuses_a_run_of_another_format(old: Path, command: list[str], folder: str, remedy: str) -> None:
    shutil.copytree(old, old.parent / "copy")
    before = contents(old)
    paths = {"OLD": str(old), "OLD/groups": str(old / "groups"), "COPY": str(old.parent / "copy")}
    code, told = call(*(paths.get(word, word) for word in command))
    *_, line = told.splitlines()
    made = f"error: {old / folder} was made by an older rosepo ({OLD_VERSION}) in a format that is not read here: "
    assert (code, line.startswith(made), remedy in line) == (2, True, True), line
    assert contents(old) == before


def test_settings_that_are_no_more_are_told_as_an_older_rosepos(old: Path) -> None:
    (old / "config.yaml").write_text("align: {gone: 1}\n")
    code, told = call("run", "--out", old)
    assert code == 2
    assert f"made by an older rosepo ({OLD_VERSION})" in told
    assert "give --config and --overwrite to make it again" in told
    code, told = call("run", "--out", old.parent / "new", "--config", old / "config.yaml")
    assert "unknown key 'align.gone'" in told


def test_a_run_of_another_format_is_made_again_where_that_is_asked_for(old: Path) -> None:
    plan = plan_run(configure(), old, list(STAGES), overwrite=True)
    assert {step.state for step in plan.stages} == {"replace"}
    assert plan.manifests == {}
    # Stage by stage, too.
    finish(old, configure(), "prepare")
    assert not plan_run(configure(), old, ["prepare"]).left
    assert plan_run(configure(), old, ["sft"], overwrite=True)["sft"].state == "replace"
