"""What runs of a suite share, and what they do not; stages stand in by their folders and manifests."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from rosepo.experiments.forecast import as_text, forecast
from rosepo.experiments.process import only_one
from rosepo.experiments.runs import Run, overrides_of, plan_of, runs_of
from rosepo.experiments.stage_reuse import link_finished
from rosepo.experiments.suite import read_suites
from rosepo.pipeline.kept_config import CONFIG_FILE
from rosepo.run.manifest import read_manifest
from rosepo.utils.errors import UserError
from rosepo.utils.files import digest
from tests.experiments.suites import SUITE, changed, write_suite
from tests.manifests import write_manifest

SECONDS = {"prepare": 1.0, "sft": 100.0, "oracle": 20.0, "pairs": 30.0, "align": 40.0, "evaluate": 10.0}
BELOW = ["prepare", "sft", "oracle", "pairs"]


def runs_in(folder: Path, text: str = SUITE, test: bool = False) -> dict[tuple[str, int, str], Run]:
    runs = runs_of(read_suites([write_suite(folder, text)]).experiments, folder / "out", test)
    return {(run.experiment.variant, run.seed, run.split): run for run in runs}


def finish(run: Run, *names: str, mark: str = "x") -> None:
    """Stages of a run as if they had been made."""
    for step in plan_of(run, run.config()).left:
        if not names or step.stage.name in names:
            folder = run.folder / step.stage.folder
            (folder / "deep").mkdir(parents=True)
            (folder / "deep" / "file").write_text(f"{mark} {step.stage.name}")
            made = {"fingerprint": step.fingerprint, "seconds": SECONDS[step.stage.kind], "created": digest(mark)}
            write_manifest(folder, stage=step.stage.name, **made)
    (run.folder / CONFIG_FILE).touch()


def test_runs_come_seed_by_seed_with_the_test_split_at_the_end_of_each(tmp_path: Path) -> None:
    runs = list(runs_in(tmp_path, changed(SUITE, test=["cdpo"]), test=True).values())
    names = [run.folder.relative_to(tmp_path / "out").as_posix() for run in runs]
    variants = ["dpo", "cdpo", "more-negatives", "cdpo.test"]
    assert names == [f"ring/seed-{seed}/{name}" for seed in (0, 1) for name in variants]


def test_only_stages_of_the_same_fingerprint_are_shared_and_by_hard_links(tmp_path: Path) -> None:
    runs = runs_in(tmp_path)
    first = runs["dpo", 0, "validation"]
    finish(first)
    shared = {
        key: link_finished(run, plan_of(run, run.config())) for key, run in runs.items() if run.folder != first.folder
    }
    assert shared["cdpo", 0, "validation"] == BELOW
    assert shared["more-negatives", 0, "validation"] == ["prepare", "sft", "oracle"]
    assert not any(shared[name, 1, "validation"] for name in ("dpo", "cdpo", "more-negatives"))
    second = runs["cdpo", 0, "validation"].folder
    for folder in ("examples", "sft", "oracle", "groups"):
        assert (second / folder / "deep" / "file").samefile(first.folder / folder / "deep" / "file")
    assert sorted(path.name for path in second.iterdir()) == ["examples", "groups", "oracle", "sft"]
    plan = plan_of(runs["cdpo", 0, "validation"], first.config())
    states = {step.stage.name: step.state for step in plan.stages}
    assert [states[name] for name in BELOW] == ["done"] * 4


def test_what_is_not_finished_is_not_shared(tmp_path: Path) -> None:
    runs = runs_in(tmp_path)
    first, second = runs["dpo", 0, "validation"], runs["cdpo", 0, "validation"]
    finish(first)
    (first.folder / "sft" / "_manifest.json").unlink()
    assert link_finished(second, plan_of(second, second.config())) == ["prepare", "oracle", "pairs"]


def test_workers_and_actors_do_not_keep_runs_from_sharing(tmp_path: Path) -> None:
    runs = runs_in(tmp_path)
    first, second = runs["dpo", 0, "validation"], runs["cdpo", 0, "validation"]
    finish(first)
    config = second.config(["sft.workers=1", "pairs.actors=2", "other:sft.epochs=9"])
    assert link_finished(second, plan_of(second, config)) == BELOW


def test_the_test_split_makes_nothing_but_its_evaluation(tmp_path: Path) -> None:
    runs = runs_in(tmp_path, test=True)
    finish(runs["cdpo", 0, "validation"])
    test = runs["cdpo", 0, "test"]
    assert link_finished(test, plan_of(test, test.config())) == [*BELOW, "align"]
    assert [step.stage.name for step in plan_of(test, test.config()).left] == ["evaluate"]


def test_another_configuration_is_refused_unless_it_may_be_made_again(tmp_path: Path) -> None:
    runs = runs_in(tmp_path)
    old = runs["cdpo", 0, "validation"]
    finish(old, mark="old")
    finish(runs["dpo", 0, "validation"])
    variants = {"dpo": {"set": {"align.loss": "dpo"}}, "cdpo": {"like": "dpo", "set": {"sft.epochs": 7}}}
    new = runs_in(tmp_path, changed(SUITE, variants=variants))["cdpo", 0, "validation"]
    with pytest.raises(UserError, match="--overwrite"):
        plan_of(new, new.config())
    variants["cdpo"] = {"like": "dpo", "set": {"pairs.negatives": 1}}
    finish(runs_in(tmp_path, changed(SUITE, variants={**variants, "one": variants["cdpo"]}))["one", 0, "validation"])
    new = runs_in(tmp_path, changed(SUITE, variants=variants))["cdpo", 0, "validation"]
    plan = plan_of(new, new.config(), overwrite=True)
    assert link_finished(new, plan) == ["pairs", "align", "evaluate"]
    assert (new.folder / "groups" / "deep" / "file").read_text() == "x pairs"
    assert read_manifest(new.folder / "groups") != read_manifest(old.folder.parent / "dpo" / "groups")


def test_the_forecast_counts_every_stage_once_and_goes_by_what_was_made_before(tmp_path: Path) -> None:
    runs = runs_in(tmp_path, test=True)
    every = list(runs.values())
    nothing = forecast(every, tmp_path / "out", [], False)
    assert [[*one.made] for one in nothing[:3]] == [
        [*BELOW, "align", "evaluate"],
        ["align", "evaluate"],
        ["pairs", "align", "evaluate"],
    ]
    assert nothing[1].shared == dict.fromkeys(BELOW, "dpo")
    assert [*nothing[3].made] == ["evaluate"]  # dpo on test
    assert "never made here before" in as_text(nothing)
    finish(runs["dpo", 0, "validation"])
    told = forecast(every, tmp_path / "out", [], False)
    assert (told[0].made, told[0].seconds) == ({}, 0.0)
    assert (told[1].seconds, told[2].seconds, told[3].seconds) == (50.0, 80.0, 10.0)
    assert told[6].seconds == sum(SECONDS.values())  # the next seed
    assert not any(one.unknown for one in told)
    assert not (tmp_path / "out" / "ring" / "seed-1").exists()


def test_a_log_that_many_runs_read_is_hashed_once(tmp_path: Path, hashed: list[bytes]) -> None:
    every = list(runs_in(tmp_path).values())
    assert len(forecast(every, tmp_path / "out", [], False)) == 6
    assert hashed.count((tmp_path / "log.csv").read_bytes()) == 1


def test_the_forecast_tells_what_cannot_be_made(tmp_path: Path) -> None:
    variants = {"dpo": {"set": {"align.loss": "dpo"}}, "odd": {"set": {"align.loss": "dpoo"}}}
    runs = list(
        runs_in(
            tmp_path, changed(SUITE, variants=variants, contrasts=[], data={"ring": {"base": "base.yaml"}})
        ).values()
    )
    text = as_text(forecast(runs, tmp_path / "out", [], False))
    assert "variant odd" in text
    assert "align.loss" in text
    assert "2 runs, 1 to make" in text


def test_overrides_may_be_for_one_data_set() -> None:
    more = ["align.beta=1", "ring:sft.epochs=2", "other:data.items=s3://bucket/x"]
    assert overrides_of("ring", more) == ["align.beta=1", "sft.epochs=2"]
    assert overrides_of("other", more) == ["align.beta=1", "data.items=s3://bucket/x"]
    assert overrides_of("ring", ["data.items=s3://bucket/x"]) == ["data.items=s3://bucket/x"]


def test_a_folder_of_experiments_has_one_command_at_a_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    entered = threading.Event()

    def second() -> None:
        with only_one(tmp_path / "out"):
            entered.set()

    thread = threading.Thread(target=second)
    with only_one(tmp_path / "out"):
        thread.start()
        assert not entered.wait(0.5)
        assert "another rosepo is at work" in capfd.readouterr().err
    assert entered.wait(10)
    thread.join()
