"""Which stages are made, which inputs are refused: decided from manifests, before any work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rosepo.artifacts import MANIFEST, read_manifest, write_json
from rosepo.config import Config, load_config
from rosepo.errors import UserError
from rosepo.pipeline import plan_stages
from rosepo.stages import STAGES, stage_fingerprint, stage_settings


def configure(*overrides: str) -> Config:
    return load_config(None, ["data.dataset=movietweetings-100k", *overrides])


def finish(root: Path, config: Config, *names: str) -> None:
    """Leave the manifests that the named stages leave."""
    for name in names:
        stage = STAGES[name]
        made = [source for source in STAGES if source in (*stage.needs, *stage.uses)]
        manifests = {source: read_manifest(root / STAGES[source].folder) for source in made}
        inputs = {source: manifest["fingerprint"] for source, manifest in manifests.items() if manifest}
        fingerprint = stage_fingerprint(config, stage, inputs)
        (root / stage.folder).mkdir(parents=True, exist_ok=True)
        manifest = {"fingerprint": fingerprint, "settings": stage_settings(config, stage), "inputs": inputs}
        write_json(root / stage.folder / MANIFEST, manifest)


@pytest.fixture
def done(tmp_path: Path) -> Path:
    finish(tmp_path, configure(), *STAGES)
    return tmp_path


def test_what_was_made_with_these_settings_is_done(done: Path) -> None:
    assert {plan.state for plan in plan_stages(configure(), done, list(STAGES), overwrite=False)} == {"done"}


@pytest.mark.parametrize("later", ["pairs", "align", "sweep", "evaluate"])
def test_a_model_that_was_trained_on_another_split_is_not_read(done: Path, later: str) -> None:
    config = configure("prepare.split=temporal")
    finish(done, config, "prepare")
    with pytest.raises(UserError, match=r"made before .*examples was made again: run `rosepo \w+ --overwrite`"):
        plan_stages(config, done, [later], overwrite=True)
    finish(done, config, "sft", "oracle", "pairs", "align")
    plan_stages(config, done, [later], overwrite=True)


def test_an_evaluation_does_not_take_a_model_of_other_settings(done: Path) -> None:
    with pytest.raises(UserError, match=r"align\.beta: 1\.0 → 5"):
        plan_stages(configure("align.beta=5"), done, ["evaluate"], overwrite=True)


def test_an_old_sweep_does_not_stand_in_the_way_of_an_evaluation(done: Path) -> None:
    config = configure("pairs.negatives=2")
    finish(done, config, "pairs", "align")
    plan_stages(config, done, ["evaluate"], overwrite=True)


def test_a_sweep_is_made_again_when_its_measure_changes(done: Path) -> None:
    plans = plan_stages(configure("evaluate.beams=40"), done, ["sweep"], overwrite=True)
    assert [plan.state for plan in plans] == ["replace"]


def test_an_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for out in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "run"):
        with pytest.raises(UserError, match="is a file"):
            plan_stages(configure(), out, ["prepare"], overwrite=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_out_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        plan_stages(configure(), tmp_path / "run", ["prepare"], overwrite=False)
