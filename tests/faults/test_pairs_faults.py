"""What becomes of the groups table when an actor is killed, memory runs short or the disk is full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rosepo.run.paths import RunPaths
from rosepo.run.ray_session import RESTARTS
from rosepo.sampling.pairs import pairs
from rosepo.utils.errors import StageError
from tests.faults.strategies import SCRATCH
from tests.sampling.runs import configure, read

# Titles alone: actors that load no model start in a moment.
DEADLY = {"strategies": {"tests.faults.strategies:deadly": 1.0}, "score": False}


@pytest.fixture(scope="module")
def undisturbed(run: RunPaths, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    return sampled(run, tmp_path_factory.mktemp("groups"), deaths=0)


def sampled(run: RunPaths, out: Path, deaths: int, **section: Any) -> pa.Table:
    (SCRATCH / "deaths").write_text(str(deaths))
    pairs(configure(**DEADLY, **section), run, out)
    return read(out)


@pytest.mark.parametrize("actors", [1, 2])
def test_a_killed_actor_costs_its_shard_and_nothing_else(
    actors: int,
    undisturbed: pa.Table,
    run: RunPaths,
    tmp_path: Path,
) -> None:
    assert sampled(run, tmp_path, deaths=1, actors=actors, cpus_per_actor=0.5).equals(undisturbed)
    assert (SCRATCH / "deaths").read_text() == "0"
    assert all(path.name.startswith("part-") for path in tmp_path.iterdir())


def test_a_shard_that_kills_every_actor_ends_the_stage_and_a_rerun_goes_on_from_the_others(
    undisturbed: pa.Table,
    run: RunPaths,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(StageError, match=r"^a sampling actor died.* of 4 parts are finished and kept: run the same"):
        sampled(run, tmp_path, deaths=100)
    assert int((SCRATCH / "deaths").read_text()) >= 100 - 2 * (RESTARTS + 1)
    kept = {path.name: path.stat().st_ino for path in tmp_path.glob("part-*.parquet")}
    assert 0 < len(kept) < 4
    capsys.readouterr()
    assert sampled(run, tmp_path, deaths=0).equals(undisturbed)
    assert f"goes on from {len(kept)} of 4 parts" in capsys.readouterr().err
    now = {path.name: path.stat().st_ino for path in tmp_path.glob("part-*.parquet")}
    assert len(now) == 4
    assert kept.items() <= now.items()


def test_a_full_disk_ends_the_stage_with_one_sentence_and_no_part_that_looks_finished(
    run: RunPaths,
    ray_cluster: None,
    tmp_path: Path,
) -> None:
    config = configure(strategies={"tests.faults.strategies:crowded": 1.0}, score=False)
    (SCRATCH / "crowded").write_text(str(tmp_path))
    with pytest.raises(StageError, match=r"^no space is left on the disk of .* for part-00001.parquet: free some and"):
        pairs(config, run, tmp_path)
    assert not (tmp_path / "part-00001.parquet").exists()
    kept = {path.name for path in tmp_path.glob("part-*.parquet")}
    (SCRATCH / "crowded").write_text("")
    pairs(config, run, tmp_path)
    assert kept < {path.name for path in tmp_path.glob("part-*.parquet")}


def test_an_actor_without_memory_ends_the_stage_with_one_sentence(
    run: RunPaths,
    ray_cluster: None,
    tmp_path: Path,
) -> None:
    with pytest.raises(StageError, match=r"^a sampling actor ran out of memory"):
        pairs(configure(strategies={"tests.faults.strategies:hungry": 1.0}, score=False), run, tmp_path)
    assert not list(tmp_path.glob("part-*"))
