"""What a command does when stages fail, and that looks at the test split are counted; no run is really made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rosepo.experiments.command import Making, make
from rosepo.experiments.provenance import TEST_LOG, looked_at
from rosepo.experiments.results import write_results
from rosepo.experiments.runs import Run, plan_of
from rosepo.experiments.stage_reuse import link_finished
from rosepo.experiments.suite import read_suites
from rosepo.run.stages import STAGES
from tests.experiments.suites import SUITE, changed
from tests.experiments.test_runs import finish, runs_in
from tests.manifests import OLD_VERSION, make_older


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were given, each of which fails."""
    given: list[list[str]] = []

    def call(command: list[str], log: Path, lock: int) -> str:
        given.append(command)
        return "it diverged"

    monkeypatch.setattr("rosepo.experiments.command.call", call)
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


def test_a_run_of_an_older_rosepo_is_told_and_made_again_where_that_is_asked_for(
    tmp_path: Path, calls: list[list[str]]
) -> None:
    run = runs_in(tmp_path)["dpo", 0, "validation"]
    finish(run)
    for stage in STAGES.values():
        if (run.folder / stage.folder).is_dir():
            make_older(run.folder / stage.folder)
    results = write_results(read_suites([tmp_path / "suite.yaml"]), [run], tmp_path / "out")
    assert f"made by an older rosepo ({OLD_VERSION})" in results["failed"][run.label]
    assert f"made by an older rosepo ({OLD_VERSION})" in str(make(run, Making([], False, 0)))
    assert calls == []
    sibling = runs_in(tmp_path)["cdpo", 0, "validation"]
    assert link_finished(sibling, plan_of(sibling, sibling.config())) == []
    make(run, Making([], True, 0))
    assert len(calls) == 1


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
