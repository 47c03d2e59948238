"""Which stages are made, which inputs are refused: decided from manifests, before any work."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from rosepo.cli.run_stages import make
from rosepo.config import Config, load_config
from rosepo.pipeline.fingerprints import stage_settings
from rosepo.pipeline.plan import RunPlan
from rosepo.pipeline.planning import plan_run
from rosepo.run.stages import STAGES, find_stage, names_of_run, seconds_in_all, stages_of
from rosepo.utils.errors import UserError
from tests.manifests import finish


def configure(*overrides: str) -> Config:
    return load_config(None, ["data.dataset=movietweetings-100k", *overrides])


@pytest.fixture
def done(tmp_path: Path) -> Path:
    finish(tmp_path, configure(), *STAGES)
    return tmp_path


def test_what_was_made_with_these_settings_is_done(done: Path) -> None:
    assert not plan_run(configure(), done, list(STAGES)).left


@pytest.mark.parametrize("later", ["pairs", "align", "sweep", "evaluate"])
def test_a_model_that_was_trained_on_another_split_is_not_read(done: Path, later: str) -> None:
    config = configure("prepare.split=temporal")
    finish(done, config, "prepare")
    with pytest.raises(UserError, match=r"made before .*examples was made again: run `rosepo \w+ --overwrite`"):
        plan_run(config, done, [later], overwrite=True)
    finish(done, config, "sft", "oracle", "pairs", "align")
    plan_run(config, done, [later], overwrite=True)


def test_another_chat_makes_the_model_again_and_all_that_reads_it(tmp_path: Path) -> None:
    pretrained = "model.path=some/instruct"
    finish(tmp_path, configure(pretrained), *STAGES)
    for change in ("model.template.chat=no", "model.template.system=Be brief."):
        left = plan_run(configure(pretrained, change), tmp_path, list(STAGES), overwrite=True).left
        assert [step.stage.name for step in left] == ["sft", "pairs", "sweep", "align", "evaluate"]


def test_runs_of_before_chat_templates_were_used_go_on_without_them(done: Path, tmp_path: Path) -> None:
    def sft(*overrides: str) -> dict[str, Any]:
        return stage_settings(configure(*overrides), STAGES["sft"])

    new = {"model.template.chat", "model.template.system"}
    assert new <= sft("model.path=some/instruct").keys()
    for overrides in (["model.path=some/instruct", "model.template.chat=no"], []):
        assert not new & sft(*overrides).keys()
    assert not plan_run(configure("model.template.chat=no"), done, list(STAGES)).left


def test_models_of_others_are_measured_again_under_another_chat(tmp_path: Path) -> None:
    others = "evaluate.models=[some/instruct]"
    finish(tmp_path, configure(others), *STAGES)
    plan = plan_run(configure(others, "model.template.chat=no"), tmp_path, list(STAGES), overwrite=True)
    assert [step.stage.name for step in plan.left] == ["evaluate"]


def test_an_evaluation_does_not_take_a_model_of_other_settings(done: Path) -> None:
    with pytest.raises(UserError, match=r"align\.beta: 0\.5 → 5"):
        plan_run(configure("align.beta=5"), done, ["evaluate"], overwrite=True)


def test_an_old_sweep_does_not_stand_in_the_way_of_an_evaluation(done: Path) -> None:
    config = configure("pairs.negatives=2")
    finish(done, config, "pairs", "align")
    plan_run(config, done, ["evaluate"], overwrite=True)


def test_a_sweep_is_made_again_when_its_measure_changes(done: Path) -> None:
    assert plan_run(configure("evaluate.beams=40"), done, ["sweep"], overwrite=True)["sweep"].state == "replace"


def states(config: Config, root: Path, overwrite: bool = True) -> dict[str, str]:
    """What a whole run would do with every stage."""
    return {step.stage.name: step.state for step in plan_run(config, root, list(stages_of(config)), overwrite).stages}


def test_streaming_makes_the_alignment_another_one_and_no_group(done: Path) -> None:
    # Training shuffles within a part: its size is then one of the settings of its result.
    changed = {"align", "sweep", "evaluate"}
    for overrides in (["pairs.stream=true"], ["pairs.stream=true", "pairs.part_groups=512"]):
        config = configure(*overrides)
        assert {name for name, state in states(config, done).items() if state != "done"} == changed
        finish(done, config, "align", "sweep", "evaluate")


def test_groups_are_made_again_where_training_has_another_precision(done: Path) -> None:
    found = states(configure("align.precision=bfloat16"), done)
    assert {name for name, state in found.items() if state != "done"} == {"pairs", "align", "sweep", "evaluate"}


def names(plan: RunPlan) -> list[str]:
    return [step.stage.name for step in plan.stages]


def test_groups_that_are_not_there_are_streamed_into_the_alignment_of_their_round(tmp_path: Path) -> None:
    config = configure("pairs.stream=true", "pairs.rounds=2")
    finish(tmp_path, config, "prepare", "sft", "oracle")
    assert names(plan_run(config, tmp_path, ["align"])) == ["pairs", "align"]
    plan = plan_run(config, tmp_path, names_of_run(config))
    assert {name: pairs.stage.name for name, pairs in plan.streamed.items()} == {"align": "pairs", "align-2": "pairs-2"}
    plain = configure("pairs.rounds=2")
    assert not plan_run(plain, tmp_path, names_of_run(plain)).streamed
    finish(tmp_path, config, "pairs")
    plan = plan_run(config, tmp_path, ["align"])
    assert (names(plan), plan.streamed) == (["align"], {})
    finish(tmp_path / "other", configure(), "prepare", "sft", "oracle")
    with pytest.raises(UserError, match=r"align reads .*groups, which is not there"):
        plan_run(configure(), tmp_path / "other", ["align"])


def test_what_streamed_sampling_lacks_is_told_before_ray_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rosepo.run.ray_session.ray_session", lambda *_: pytest.fail("Ray was started"))
    config = configure("pairs.stream=true", "pairs.strategies={nowhere.at_all:draw: 1.0}")
    finish(tmp_path, config, "prepare", "sft", "oracle")
    with pytest.raises(UserError, match=r"nowhere.at_all"):
        make(config, tmp_path, ["align"], overwrite=False, debug=False)


def test_stages_that_ran_at_the_same_time_are_counted_once() -> None:
    manifests = {"sft": {"seconds": 5.0}, "pairs": {"seconds": 40.0, "figures": {"streamed": True}}}
    assert seconds_in_all({**manifests, "align": {"seconds": 60.0, "figures": {"streamed": True}}}) == 65.0
    assert seconds_in_all({**manifests, "align": {"seconds": 30.0, "figures": {"streamed": True}}}) == 45.0
    assert seconds_in_all({**manifests, "align": {"seconds": 30.0, "figures": {}}}) == 75.0  # aligned again later


def test_rounds_follow_the_first_alignment_each_in_folders_of_its_own() -> None:
    stages = stages_of(configure("pairs.rounds=3"))
    order = ["pairs", "sweep", "align", "pairs-2", "align-2", "pairs-3", "align-3", "evaluate"]
    assert [name for name in stages if name not in ("prepare", "sft", "oracle")] == order
    folders = [stages[name].folder for name in order if name not in ("sweep", "evaluate")]
    assert folders == ["groups", "aligned", "groups-2", "aligned-2", "groups-3", "aligned-3"]
    assert list(stages_of(configure())) == list(STAGES)
    assert {find_stage(name) for name in stages if name != "evaluate"} == set(stages.values()) - {stages["evaluate"]}


def test_more_rounds_go_on_from_the_first(done: Path) -> None:
    found = states(configure("pairs.rounds=2"), done)
    made = {name for name, state in found.items() if state != "done"}
    assert made == {"pairs-2", "align-2", "evaluate"}
    assert (found["pairs-2"], found["align-2"], found["evaluate"]) == ("missing", "missing", "replace")


def test_fewer_rounds_make_the_evaluation_again_and_nothing_else(done: Path) -> None:
    two = configure("pairs.rounds=2")
    finish(done, two, *stages_of(two))
    assert set(states(two, done, overwrite=False).values()) == {"done"}
    with pytest.raises(UserError, match=r"evaluation was made by another configuration \(pairs\.rounds: 2 → 1\)"):
        states(configure(), done, overwrite=False)
    assert {name for name, state in states(configure(), done).items() if state != "done"} == {"evaluate"}
    finish(done, configure(), "evaluate")
    assert {name for name, state in states(two, done).items() if state != "done"} == {"evaluate"}


def test_another_reference_makes_the_later_rounds_again(done: Path) -> None:
    two = configure("pairs.rounds=2")
    finish(done, two, *stages_of(two))
    found = states(configure("pairs.rounds=2", "pairs.reference=moved"), done)
    assert {name for name, state in found.items() if state != "done"} == {"pairs-2", "align-2", "evaluate"}
    with pytest.raises(UserError, match=r"groups-2 .*pairs\.reference: frozen → moved"):
        states(configure("pairs.rounds=2", "pairs.reference=moved"), done, overwrite=False)


def test_a_round_does_not_go_on_from_an_alignment_that_was_made_again(done: Path) -> None:
    two = configure("pairs.rounds=2")
    finish(done, two, *stages_of(two))
    other = configure("pairs.rounds=2", "align.beta=5")
    finish(done, other, "align")
    for later in ("align-2", "evaluate"):
        with pytest.raises(UserError, match=r"groups-2, which was made before .*aligned was made .*pairs --round 2 "):
            plan_run(other, done, [later], overwrite=True)
    finish(done, other, "pairs-2")
    plan_run(other, done, ["align-2"], overwrite=True)


def test_many_rounds_are_planned_at_once(done: Path) -> None:
    many = configure("pairs.rounds=20")
    finish(done, many, *stages_of(many))
    assert not plan_run(many, done, ["evaluate"]).left


def test_a_round_that_the_configuration_does_not_have_is_refused(done: Path) -> None:
    with pytest.raises(UserError, match=r"align-3 is a round beyond pairs\.rounds=2: .*--set pairs\.rounds=3"):
        plan_run(configure("pairs.rounds=2"), done, ["align-3"], overwrite=True)
    with pytest.raises(UserError, match=r"groups-2, which is not there: run `rosepo pairs --round 2`"):
        plan_run(configure("pairs.rounds=2"), done, ["align-2"], overwrite=True)


def test_an_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for out in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "run"):
        with pytest.raises(UserError, match="is a file"):
            plan_run(configure(), out, ["prepare"])


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["may not be written", "may not be entered"])
def test_an_out_that_cannot_be_written_is_refused(mode: int) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # not tmp_path, which lies in a folder of its user alone
        inner = Path(folder) / "inner"
        inner.mkdir()
        inner.chmod(mode)
        Path(folder).chmod(0o555)
        told = refusal_as_nobody(inner / "run")
        for made in (Path(folder), inner):
            made.chmod(0o700)
    assert "cannot be written to: use another --out" in told


def refusal_as_nobody(out: Path) -> str:
    """What plan_run says, in a process that gave up being root if it was: root may write everywhere."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        told = "nothing"
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            plan_run(configure(), out, ["prepare"])
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(write, told.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as answer:
        return answer.read()
