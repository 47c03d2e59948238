"""Running a plan: what is read once, what another process may have done meanwhile, and the manifest at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from rosepo.cli.run_stages import make
from rosepo.data.readers.digests import FileDigests
from rosepo.data.readers.sources import Source
from rosepo.pipeline.planning import plan_run
from rosepo.pipeline.runner import _memory, run_stages
from rosepo.run.manifest import read_manifest
from rosepo.run.stages import find_stage
from rosepo.utils.errors import UserError
from rosepo.utils.memory import MemoryMonitor
from tests.evaluation.runs import finished, rank_in_process, tiny_config, tiny_run
from tests.manifests import finish
from tests.pipeline.test_planning import configure as on_shipped_data
from tests.pipeline.test_whole_run import configure, write_log


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems are ranked in this process."""
    rank_in_process(monkeypatch.setattr)


def test_data_files_are_hashed_once_a_command(tmp_path: Path, ray_cluster: None, hashed: list[bytes]) -> None:
    """Be the stage made, up to date or refused; the manifest has the digests that the plan went by."""
    write_log(tmp_path)
    config, out = configure(tmp_path), tmp_path / "out"
    files = [(tmp_path / name).read_bytes() for name in ("log.csv", "items.csv")]

    def times_hashed() -> list[int]:
        counts = [hashed.count(content) for content in files]
        hashed.clear()
        return counts

    plan, manifests = make(config, out, ["prepare"], overwrite=False, debug=False)
    assert times_hashed() == [1, 1]
    assert read_manifest(out / "examples") == manifests["prepare"]
    assert manifests["prepare"]["files"] == plan["prepare"].files
    make(config, out, ["prepare"], overwrite=False, debug=False)
    assert times_hashed() == [1, 1]
    with pytest.raises(UserError, match="another configuration"):
        make(configure(tmp_path, prepare={"k_core": 1}), out, ["prepare"], overwrite=False, debug=False)
    assert times_hashed() == [1, 1]


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    path, digests = tmp_path / "log.csv", FileDigests()
    path.write_text("user_id")
    files = {"log": Source(str(path), "csv")}
    first = digests.of(files)
    path.write_text("user_id,item_id")
    assert digests.of(files) != first


@pytest.mark.parametrize(
    ("planned", "written", "settings"),
    [("sft", "prepare", "prepare.k_core=9"), ("sft", "sft", "sft.epochs=9"), ("evaluate", "sft", "seed=0")],
    ids=["what it reads", "what it makes", "what was not there"],
)
def test_a_stage_is_not_made_where_another_process_has_written_since_the_plan(
    tmp_path: Path, planned: str, written: str, settings: str
) -> None:
    finish(tmp_path, on_shipped_data(), "prepare")
    plan = plan_run(on_shipped_data(), tmp_path, [planned])
    finish(tmp_path, on_shipped_data(settings), written)
    (tmp_path / "config.yaml").write_text("of the other process")
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    folder = tmp_path / find_stage(written).folder
    with pytest.raises(UserError, match=f"{folder} was written by another rosepo since this command began: run the"):
        run_stages(plan)
    assert {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_report_that_is_missing_is_drawn_of_an_evaluation_that_is_up_to_date(
    tmp_path: Path, in_process: None
) -> None:
    config, root = tiny_config(), tiny_run(tmp_path).root
    finished(root, config, "prepare", "sft", "align")
    run_stages(plan_run(config, root, ["evaluate"]))
    for name in ("report.html", "metrics.json"):
        (root / name).unlink()
    plan = plan_run(config, root, ["evaluate"])
    assert not plan.left
    run_stages(plan)
    assert (root / "metrics.json").read_bytes() == (root / "evaluation" / "metrics.json").read_bytes()
    assert "aligned" in (root / "report.html").read_text()


def test_a_manifest_has_the_memory_of_its_stage_and_of_its_training_workers() -> None:
    with MemoryMonitor() as meter:
        pass
    alone = _memory(meter, {})
    assert alone == {"peak_memory": meter.peak, "processes": meter.processes}
    elsewhere = _memory(meter, {"memory_mib": 2**20, "device": "cpu"})
    assert elsewhere == alone | {"peak_memory": 2**40}
    on_gpu = _memory(meter, {"memory_mib": 2**20, "device": "cuda"})
    assert on_gpu == alone | {"peak_gpu_memory": 2**40}
