"""What a command does when stages fail, and that looks at the test split are counted; no run is really made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rosepo.experiments import making
from rosepo.experiments.making import Making, make
from rosepo.experiments.provenance import TEST_LOG, looked_at
from rosepo.experiments.runs import Run
from tests.experiments.suites import SUITE, changed
from tests.experiments.test_runs import finish, runs_in


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were given, each of which fails."""
    given: list[list[str]] = []

    def call(command: list[str], log: Path, lock: int) -> str:
        given.append(command)
        return "it diverged"

    monkeypatch.setattr(making, "call", call)
    return given


def test_a_stage_that_failed_is_not_tried_again_for_every_run_that_shares_it(
    tmp_path: Path, calls: list[list[str]]
) -> None:
    runs = runs_in(tmp_path)
    first, second, third = (runs[name, 0, "validation"] for name in ("dpo", "cdpo", "more-negatives"))
    finish(first, "prepare", "sft", "oracle")  # what fails is its sampling
    command = Making([], False, 0)
    assert make(first, command) == "it diverged"
    assert make(second, command) == "pairs failed in ring, seed 0, dpo, and is the same here"
    assert second.failure() == "pairs failed in ring, seed 0, dpo, and is the same here"
    assert make(third, command) == "it diverged"  # its groups are others
    assert len(calls) == 2
    assert make(second, Making([], False, 0)) == "it diverged"  # the next command tries


def test_looks_at_the_test_split_are_counted_by_their_settings(tmp_path: Path) -> None:
    def looked(text: str) -> Run:
        run = runs_in(tmp_path, text, test=True)["dpo", 0, "test"]
        shutil.rmtree(run.folder, ignore_errors=True)
        finish(run, mark=text)
        assert make(run, Making([], False, 0)) is None
        return run

    run = looked(SUITE)
    assert make(run, Making([], False, 0)) is None  # nothing new to see
    (entry,) = looked_at(tmp_path / "out").items()
    assert (entry[0], entry[1]["settings"]) == (run.label, 1)
    assert len((tmp_path / "out" / TEST_LOG).read_text().splitlines()) == 1
    looked(changed(SUITE, variants={"dpo": {"set": {"align.loss": "ipo"}}}, contrasts=[], comparators=[]))
    assert looked_at(tmp_path / "out")[run.label]["settings"] == 2
    (tmp_path / "out" / TEST_LOG).write_text("half a li")
    assert looked_at(tmp_path / "out") == {}
