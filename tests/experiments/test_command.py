"""`rosepo experiments`: what it refuses, what it records, and a small suite from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rosepo.experiments.command import Chosen, experiments
from rosepo.utils.errors import UserError
from tests.cli.test_app import ROOT, call
from tests.experiments.suites import SUITE, changed, write_suite


def test_the_command_explains_itself_and_has_its_job() -> None:
    from typer.testing import CliRunner

    from rosepo.cli.app import app

    output = CliRunner().invoke(app, ["experiments", "--help"]).output
    for word in ("--only", "--seeds", "--test", "--dry-run", "--set", "--debug"):
        assert word in output
    assert 'main(["experiments", *sys.argv[1:]])' in (ROOT / "jobs" / "experiments.py").read_text()


def test_a_dry_run_tells_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    suite, out = write_suite(tmp_path), tmp_path / "out"
    result = call(str(suite), "--out", str(out), "--dry-run", "--seeds", "3", script="experiments.py")
    assert result.returncode == 0, result.stderr
    assert "3 runs, 3 to make" in result.stderr
    assert "prepare, sft, oracle, pairs of dpo" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("chosen", "more", "words"),
    [
        (Chosen(variants=["cpdo"]), [], r"--only cpdo is in none of the suites \(did you mean 'cdpo'\?\)"),
        (Chosen(data=["rings"]), [], r"--data rings is in none of the suites \(did you mean 'ring'\?\)"),
        (Chosen(), ["rong:sft.epochs=1"], "--set rong is in none of the suites"),
        (Chosen(), ["ring:seed=1"], "seeds are given by --seeds"),
    ],
)
def test_names_that_no_suite_has_are_refused(tmp_path: Path, chosen: Chosen, more: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        experiments([write_suite(tmp_path)], tmp_path / "out", chosen, more)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_runs_that_fail_are_recorded_and_the_others_tried(tmp_path: Path) -> None:
    variants = {
        "unknown-key": {"set": {"align.bta": 1}},
        "too-many": {"set": {"pairs.negatives": 99}},
    }
    text = changed(SUITE, variants=variants, contrasts=[], comparators=[], data={"ring": {"base": "base.yaml"}})
    suite, out = write_suite(tmp_path, text), tmp_path / "out"
    result = call("experiments", str(suite), "--out", str(out))
    assert result.returncode == 1
    assert "error: 2 of 2 runs failed; ring, seed 0, unknown-key:" in result.stderr
    told = {
        name: json.loads((out / "ring" / "seed-0" / name / "failure.json").read_text())["error"] for name in variants
    }
    assert "variant unknown-key" in told["unknown-key"]
    assert "did you mean 'beta'" in told["unknown-key"]
    assert told["too-many"].startswith("pairs.negatives=99 is more than the catalogue allows")
    assert "log.txt" in told["too-many"]


@pytest.mark.slow
def test_a_suite_that_was_killed_goes_on_and_makes_nothing_twice(tmp_path: Path) -> None:
    data = {"ring": {"base": "base.yaml", "seeds": [0, 1]}}
    variants = {"dpo": {"set": {"align.loss": "dpo"}}, "cdpo": {"set": {"align.loss": "cdpo"}}}
    suite, out = write_suite(tmp_path, changed(SUITE, variants=variants, data=data)), tmp_path / "out"
    command = [sys.executable, "-m", "rosepo", "experiments", str(suite), "--out", str(out), "--test"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as killed:
        deadline = time.monotonic() + 300
        while not (out / "ring" / "seed-0" / "dpo" / "oracle").is_dir():
            assert killed.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        killed.send_signal(signal.SIGKILL)
    sft = out / "ring" / "seed-0" / "dpo" / "sft" / "model.safetensors"
    made = sft.stat().st_mtime_ns
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert result.returncode == 0, result.stderr
    assert sft.stat().st_mtime_ns == made
    for name in ("cdpo", "dpo.test", "cdpo.test"):
        assert (out / "ring" / "seed-0" / name / "sft" / "model.safetensors").samefile(sft)
    results = json.loads((out / "results.json").read_text())
    assert (results["missing"], results["failed"]) == ([], {})
    for split in ("validation", "test"):
        section = results["data"]["ring"][split]
        assert section["seeds"] == [0, 1]
        assert [*section["systems"]] == ["popular", "markov", "oracle", "sft", "dpo", "cdpo"]
        assert section["contrasts"][0]["metrics"]["hr@10"]["verdict"]
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0
    assert "[1/" not in again.stderr
