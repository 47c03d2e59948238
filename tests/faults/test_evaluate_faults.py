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

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    return tiny_run(tmp_path_factory.mktemp("run"))


def evaluated(paths: RunPaths, out: Path, deaths: int, actors: int) -> str:
    (SCRATCH / "deaths").write_text(str(deaths))
    out.mkdir(exist_ok=True)
    evaluate(tiny_config(f"evaluate.actors={actors}", "evaluate.cpus_per_actor=0.5"), paths, out)
    return (out / "metrics.json").read_text()


def test_a_killed_actor_costs_its_part_and_a_deadly_part_leaves_the_others(
    paths: RunPaths,
    ray_cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(systems, "LanguageModelRanker", DeadlyRanker)
    undisturbed = evaluated(paths, tmp_path / "a", deaths=0, actors=2)
    assert evaluated(paths, tmp_path / "b", deaths=1, actors=2) == undisturbed
    with pytest.raises(StageError, match=r"^a ranking actor died.* of 6 parts are finished and kept: run the same"):
        evaluated(paths, tmp_path / "c", deaths=100, actors=1)
    kept = {path: path.stat().st_ino for path in (tmp_path / "c").rglob("part-*.parquet")}
    assert not (tmp_path / "c" / "rankings" / "aligned.parquet" / "part-00001.parquet").exists()
    capsys.readouterr()
    assert evaluated(paths, tmp_path / "c", deaths=0, actors=1) == undisturbed
    assert "goes on from" in capsys.readouterr().err
    assert kept.items() <= {path: path.stat().st_ino for path in (tmp_path / "c").rglob("part-*.parquet")}.items()
