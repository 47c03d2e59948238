"""`rosepo report`: the page is drawn again from what was measured, and nothing is measured again."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rosepo.cli.app import app
from rosepo.pipeline.planning import plan_run
from rosepo.pipeline.runner import run_stages
from tests.evaluation.runs import finished, rank_in_process, tiny_config, tiny_run
from tests.manifests import write_manifest

STAGES = ("prepare", "sft", "align")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose SFT and aligned models were evaluated."""
    root = tiny_run(tmp_path_factory.mktemp("run")).root
    finished(root, tiny_config(), *STAGES)
    with pytest.MonkeyPatch.context() as patch:
        rank_in_process(patch.setattr)
        run_stages(plan_run(tiny_config(), root, ["evaluate"]))
    return root


def report(root: Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["report", "--out", str(root)])
    return result.exit_code, result.output


def test_a_report_is_drawn_again_and_nothing_is_ranked_again(evaluated: Path) -> None:
    measured = {path: path.stat().st_mtime_ns for path in (evaluated / "evaluation").rglob("*")}
    pages = [evaluated / "report.html", evaluated / "report.md"]
    for page in pages:
        page.unlink()
    code, told = report(evaluated)
    assert code == 0, told
    assert str(pages[0].resolve()) in told
    assert all("NDCG@10" in page.read_text() for page in pages)
    assert {path: path.stat().st_mtime_ns for path in (evaluated / "evaluation").rglob("*")} == measured


def test_a_folder_that_was_not_evaluated_has_no_report(tmp_path: Path) -> None:
    finished(tiny_run(tmp_path, models=False).root, tiny_config(), "prepare")
    code, told = report(tmp_path)
    assert code == 2
    assert "evaluation holds no finished evaluation: run `rosepo evaluate` first" in told
    assert not (tmp_path / "report.html").exists()


def test_a_model_that_was_made_again_since_has_no_report(evaluated: Path) -> None:
    before = (evaluated / "report.html").stat().st_mtime_ns
    finished(evaluated, tiny_config(), *STAGES)
    write_manifest(evaluated / "aligned", stage="align", fingerprint="made again")
    code, told = report(evaluated)
    assert code == 2
    assert "report reads" in told
    assert "evaluation, which was made before" in told
    assert "aligned was made again: run `rosepo evaluate --overwrite`" in told
    assert (evaluated / "report.html").stat().st_mtime_ns == before
