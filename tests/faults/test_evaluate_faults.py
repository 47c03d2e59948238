"""What becomes of an evaluation when an actor that ranks is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from rosepo.evaluation import systems
from rosepo.evaluation.evaluate import evaluate
from rosepo.run.paths import RunPaths
from rosepo.utils.errors import StageError
from tests.evaluation.runs import tiny_config, tiny_run
from tests.faults.rankers import DeadlyRanker
from tests.faults.strategies import SCRATCH


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    return tiny_run(tmp_path_factory.mktemp("run"))


def evaluated(paths: RunPaths, out: Path, deaths: int, actors: int) -> str:
    (SCRATCH / "deaths").write_text(str(deaths))
    out.mkdir(exist_ok=True)
    evaluate(tiny_config(f"evaluate.actors={actors}", "evaluate.cpus_per_actor=0.5"), paths, out)
    return (out / "metrics.json").read_text()


@pytest.fixture(scope="module")
def undisturbed(paths: RunPaths, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    return evaluated(paths, tmp_path_factory.mktemp("undisturbed"), deaths=0, actors=2)


@pytest.fixture(autouse=True)
def deadly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "Ranker", DeadlyRanker)


def test_a_killed_actor_costs_its_part_and_nothing_else(paths: RunPaths, undisturbed: str, tmp_path: Path) -> None:
    assert evaluated(paths, tmp_path, deaths=1, actors=2) == undisturbed
    assert (SCRATCH / "deaths").read_text() == "0"


@pytest.mark.slow
def test_a_part_that_kills_every_actor_leaves_the_others(
    paths: RunPaths, undisturbed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StageError, match=r"^a ranking actor died.* of 12 parts are finished and kept: run the same"):
        evaluated(paths, tmp_path, deaths=100, actors=1)
    parts = {path: path.stat().st_ino for path in tmp_path.rglob("part-*.parquet")}
    assert not (tmp_path / "rankings" / "aligned.parquet" / "part-00001.parquet").exists()
    capsys.readouterr()
    assert evaluated(paths, tmp_path, deaths=0, actors=1) == undisturbed
    assert "goes on from" in capsys.readouterr().err
    assert parts.items() <= {path: path.stat().st_ino for path in tmp_path.rglob("part-*.parquet")}.items()
