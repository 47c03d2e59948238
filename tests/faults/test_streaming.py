"""Pairs and align at the same time: the same model as one after the other, and one stops when the other does."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import WorkerCrashedError

from rosepo.config import Config, parse_config
from rosepo.data.example_shards import planned_users, read_shard, shards_of
from rosepo.pipeline.planning import plan_run
from rosepo.pipeline.runner import run_stages
from rosepo.pipeline.streaming import Production, lost_process
from rosepo.run.folders import continuing, partial_folder
from rosepo.run.manifest import MANIFEST, read_manifest
from rosepo.run.paths import RunPaths
from rosepo.sampling.audit import audit_groups
from rosepo.sampling.group_files import part_path
from rosepo.sampling.pairs import plan_sampling
from rosepo.training.align import align_in_process, align_task
from rosepo.training.feed.incremental_table import IncrementalTable, wanted_order
from rosepo.utils.errors import StageError
from rosepo.utils.files import now, write_json
from tests.faults.strategies import SCRATCH
from tests.manifests import finish
from tests.sampling.runs import read
from tests.training.tiny_run import assert_same_training

WATCHFUL = "tests.faults.strategies:watchful"


def configure(**align: Any) -> Config:
    train = {"batch_size": 64, "learning_rate": 1e-3, "log_every": 1, "cpus_per_worker": 0.5, "epochs": 1.5, **align}
    return parse_config(
        {
            "seed": 5,
            "data": {"dataset": "movietweetings-100k"},
            "model": {"max_length": 128},
            "oracle": {"folds": 1, "hidden_size": 16},
            "pairs": {"strategies": {WATCHFUL: 1.0}, "reference_cache": "no", "stream": True, "cpus_per_actor": 0.5},
            "align": train,
        }
    )


@pytest.fixture
def ready(run: RunPaths, tmp_path: Path) -> RunPaths:
    """A run's folder in which the stages before pairs are done."""
    for name in ("examples", "sft", "oracle"):
        shutil.copytree(run.root / name, tmp_path / name)
    finish(tmp_path, configure(), "prepare", "sft", "oracle")
    for name in ("examples", "sft", "oracle"):
        manifest = read_manifest(tmp_path / name) or {}
        write_json(tmp_path / name / MANIFEST, manifest | {"created": now(), "seconds": 1.0})
    return RunPaths(tmp_path)


def watch(paths: RunPaths, config: Config, then: str) -> list[int]:
    """Have something happen in the part that training wants last; returns the order in which it wants them."""
    production = Production(plan_sampling(config, paths), paths.root / ".partial", lambda work: None)
    order = wanted_order(align_task(config, paths, growing=production.table).plan, production.table)
    last = read_shard(plan_sampling(config, paths).shards[order[-1]], None)["user_id"]
    about = {"user": last[len(last) // 2].as_py(), "run": str(paths.root), "then": then}
    (SCRATCH / "watchful").write_text(json.dumps(about))
    return order


@pytest.mark.slow
def test_a_streamed_run_trains_before_the_last_part_is_there_and_ends_as_one_that_was_not_streamed(
    ready: RunPaths,
    ray_cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = configure()
    # The actors stop for good in the last part, while training waits for it.
    watch(ready, config, "raise")
    with pytest.raises(StageError, match=r"^a sampling actor died or failed.*no titles today; 3 of 4 parts"):
        run_stages(plan_run(config, ready.root, ["align"]))
    assert not ready.groups.exists()
    assert not ready.aligned.exists()
    (partial,) = ready.root.glob(".groups.*.partial")
    kept = {path.name: path.stat().st_ino for path in partial.glob("part-*.parquet")}
    assert len(kept) == 3
    capsys.readouterr()
    # Now that part waits for training's first step.
    watch(ready, config, "go on")
    made = run_stages(plan_run(config, ready.root, ["align"]))
    told = capsys.readouterr().err
    assert "pairs goes on from 3 of 4 parts" in told
    assert "align: align with preferences, while pairs samples" in told
    now = {path.name: path.stat().st_ino for path in ready.groups.glob("*")}
    assert kept.items() <= now.items()
    assert set(now) == {f"part-{number:05d}.parquet" for number in range(4)} | {"_manifest.json", "_validation.parquet"}
    assert made["pairs"]["figures"]["groups"] == audit_groups(ready.groups, ready.examples)["groups"]
    assert made["pairs"]["figures"]["streamed"]
    assert made["align"]["figures"]["streamed"]
    assert made["align"]["inputs"]["pairs"] == made["pairs"]["fingerprint"]
    assert not [path for path in ready.root.iterdir() if path.name.startswith(".")]
    # The next command finds both up to date, and training on the finished table gives the same model.
    assert not plan_run(config, ready.root, ["pairs", "align"]).left
    again = tmp_path_factory.mktemp("again")
    align_in_process(config, ready, again)
    assert_same_training(ready.aligned, again, 1e-6)
    users = [user for column in planned_users(ready.examples, None) for user in column.to_pylist()]
    assert users == read(ready.groups)["user_id"].to_pylist()


def test_sampling_ends_at_once_when_training_fails(ready: RunPaths, ray_cluster: None) -> None:
    config = configure()
    order = watch(ready, config, "sleep")
    (SCRATCH / "asleep").unlink(missing_ok=True)

    def pairs(work: Any) -> None:
        with continuing(ready.groups, "key") as aside:
            work(config, ready, aside)

    production = Production(plan_sampling(config, ready), partial_folder(ready.groups, "key"), pairs)
    production.start(order)
    while not (SCRATCH / "asleep").exists():
        time.sleep(0.1)
    assert len(list(production.table.folder.glob("part-*.parquet"))) == 3
    production.stop()
    assert production.error is None
    assert not production.told()
    for _ in range(300):
        if not running(int((SCRATCH / "asleep").read_text())):
            break
        time.sleep(0.1)
    assert not running(int((SCRATCH / "asleep").read_text()))
    assert not ready.groups.exists()
    assert len(list(production.table.folder.glob("part-*.parquet"))) == 3


def test_a_streamed_training_of_another_oracle_does_not_go_on_from_a_checkpoint(ready: RunPaths) -> None:
    config = configure()
    shards = shards_of(config.pairs, ready.examples)
    names = tuple(part_path(ready.groups, shard).name for shard in shards)
    table = IncrementalTable(ready.root / ".partial", ready.groups, names, tuple(shard.count for shard in shards))

    def origin() -> str:
        return align_task(config, ready, growing=table).origin

    first = origin()
    assert origin() == first
    for folder in (ready.oracle, ready.examples):
        write_json(folder / MANIFEST, (read_manifest(folder) or {}) | {"fingerprint": "another"})
        assert origin() != first
        first = origin()


def test_a_lost_sampling_process_is_told_of_in_a_sentence() -> None:
    told = str(lost_process(WorkerCrashedError()))
    assert re.match(r"the sampling process was lost \(WorkerCrashedError: .+\): run the same command again; ", told)
    assert "\n" not in told


def running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
