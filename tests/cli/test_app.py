"""The command line: what it teaches, what it refuses, and with which exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("check", "prepare", "sft", "oracle", "pairs", "align", "sweep", "evaluate", "run", "recommend")


def call(*arguments: str, script: str | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-m", "rosepo"] if script is None else [str(ROOT / "jobs" / script)]), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=cwd, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    from typer.testing import CliRunner

    from rosepo.cli.app import app

    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    for word in ("--config", "--set", "--debug"):
        assert word in result.output


def test_help_needs_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys\n"
        "from rosepo.cli.app import main\n"
        "try: main(['sft', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'transformers', 'deepspeed', 'matplotlib', 'pandas'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip().endswith("[]")


def test_help_lists_every_setting_of_the_stage() -> None:
    from typer.testing import CliRunner

    from rosepo.cli.app import app
    from rosepo.config import LOSSES, AlignConfig

    output = CliRunner().invoke(app, ["align", "--help"]).output
    for key in AlignConfig.known_keys():
        assert f"{key}=" in output
    listed = " ".join(output.partition("Losses (--set align.loss=NAME)")[2].split())
    for name, loss in LOSSES.items():
        assert f" {name} {loss.described}" in listed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--set", "align.bta=1"], "did you mean 'beta'"),
        (["run", "--config", "no-such.yaml"], "no-such.yaml does not exist"),
        (["run"], "data.dataset"),
        (["run", "--interactions", "no-such.csv", "--items", "no-such-items.csv"], "no-such.csv"),
        (["sft"], "run `rosepo prepare`"),
        (["sweep", "--set", "sweep.trials=0"], "sweep.trials=0 tries nothing"),
        (["recommend", "--history", "Gravity (2013)"], "holds no model"),
        (["align"], "run `rosepo prepare`"),
        (["evaluate"], "run `rosepo prepare`"),
        (["evaluate", "--model", "/nowhere/m"], "evaluate.models=/nowhere/m is neither a model folder"),
        (["evaluate", "--predictions", "sft=lists.csv"], "which is the run's own"),
        (["evaluate", "--predictions", "/nowhere/lists.csv"], "evaluate.predictions=/nowhere/lists.csv does not exist"),
        (["evaluate", "--add-items", "/nowhere/new.csv"], "evaluate.add_items=/nowhere/new.csv does not exist"),
        (["pairs", "--round", "2"], "pairs-2 is a round beyond pairs.rounds=1"),
        (["align", "--round", "2", "--set", "pairs.rounds=2"], "run `rosepo prepare`"),
    ],
)
def test_bad_input_is_one_line_without_traceback_and_exit_code_2(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    result = call(*arguments, "--out", str(tmp_path / "out"))
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_systems_of_others_come_from_options_or_settings_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from rosepo.cli import run_stages
    from rosepo.cli.app import app

    found: list[object] = []
    monkeypatch.setattr(run_stages, "make", lambda config, out, names, overwrite, debug: found.append(config.evaluate))
    monkeypatch.setattr("rosepo.cli.summary.print_next", lambda config, root, stage: None)
    options = ["--model", "it's: [1]/m", "--model", "b=x/y", "--predictions", "p #1.csv"]
    options += ["--add-items", "new: 'films'.csv"]
    result = CliRunner().invoke(app, ["evaluate", "--out", str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    (settings,) = found
    assert settings.models == ("it's: [1]/m", "b=x/y")  # type: ignore[attr-defined]
    assert settings.predictions == ("p #1.csv",)  # type: ignore[attr-defined]
    assert settings.add_items == "new: 'films'.csv"  # type: ignore[attr-defined]


def test_debug_shows_where_a_failure_came_from(tmp_path: Path) -> None:
    result = call("run", "--config", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "out"), "--debug")
    assert "Traceback" in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_job(command: str) -> None:
    assert f'main(["{command}", *sys.argv[1:]])' in (ROOT / "jobs" / f"{command}.py").read_text()


def test_a_job_takes_the_options_of_its_command_and_gives_its_exit_code(tmp_path: Path) -> None:
    result = call("--set", "align.beta=-1", "--out", str(tmp_path), script="align.py")
    assert result.returncode == 2
    assert "align.beta" in result.stderr


def test_a_job_may_not_write_into_the_copy_that_ray_removes(tmp_path: Path) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_0"
    copy.mkdir(parents=True)
    arguments = ("--set", "data.dataset=movietweetings-100k", "--out")
    result = call(*arguments, "runs/job", script="prepare.py", cwd=copy)
    assert result.returncode == 2
    assert "--out runs/job is relative" in result.stderr
    assert not list(copy.iterdir())


def test_a_folder_that_rosepo_did_not_write_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "mine.txt").write_text("precious")
    for more in ([], ["--overwrite"]):
        result = call("prepare", "--set", "data.dataset=movietweetings-100k", "--out", str(tmp_path), *more)
        assert result.returncode == 2
        assert "move them away" in result.stderr
    assert (tmp_path / "examples" / "mine.txt").read_text() == "precious"


def test_the_newest_model_of_a_run_answers(tmp_path: Path) -> None:
    from rosepo.cli.tools import _model_of
    from rosepo.config import load_config

    two, one = load_config(None, ["pairs.rounds=2"]), load_config(None)
    for folder in ("sft", "aligned", "aligned-2"):
        (tmp_path / folder).mkdir()
        assert _model_of(two, None, tmp_path) == str(tmp_path / folder)
    assert _model_of(one, None, tmp_path) == str(tmp_path / "aligned")
