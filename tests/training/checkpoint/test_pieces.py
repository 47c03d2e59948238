"""Checkpoints in pieces: who writes what, that nobody sends anything for them, and who can go on from them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from rosepo.config import Config
from rosepo.run.paths import RunPaths
from rosepo.training.checkpoint import checkpoint_files
from rosepo.training.checkpoint.checkpoint_files import (
    FOLDER,
    Checkpoint,
    complete_checkpoints,
    newest_checkpoint,
    of_another_version,
)
from rosepo.training.checkpoint.pieces import PieceReader, Place, write_pieces
from rosepo.training.checkpoint.saver import Saver, agreed_start
from rosepo.training.checkpoint.state import import_state, own_state
from rosepo.training.engine import Engine, prepare_process
from rosepo.training.loop import Loop
from rosepo.training.rank import build_engine
from rosepo.training.sft import sft_task
from rosepo.training.zero import WEIGHT, master_shares, moment_shares
from rosepo.utils.errors import StageError
from tests.training.checkpoint.test_resume import alone, go_on
from tests.training.kills import config_of, resumed, train_rank_of
from tests.training.ranks import forked_ranks, two_ranks
from tests.training.tiny_run import assert_same_training, tiny_config


class Collectives(TorchDispatchMode):
    """Counts what goes through a process group."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.seen[func.name()] += 1
        return func(*args, **(kwargs or {}))


def counted(method: Callable[..., Any], into: Counter[str]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        with Collectives() as mode:
            found = method(*arguments)
        into.update(mode.seen)
        return found

    return call


def train_counted(rank: int, run: str, configs: dict[str, Config], out: str) -> None:
    """Trainings that leave what collectives their checkpoints took and their steps, and their checkpoints."""
    for name, config in configs.items():
        saving, stepping = Counter[str](), Counter[str]()
        with pytest.MonkeyPatch.context() as patched:
            for method in ("save", "settle"):
                patched.setattr(Saver, method, counted(getattr(Saver, method), saving))
            patched.setattr(Loop, "_step", counted(Loop._step, stepping))
            resumed(sft_task(config, RunPaths(Path(run))), Path(out) / name)
        (Path(out) / f"{name}-{rank}.json").write_text(json.dumps([saving, stepping]))


@pytest.fixture(scope="module")
def trained(tiny_run: RunPaths, base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained by two ranks at every stage, with a running mean, and an adapter: a checkpoint after every step."""
    settings = {"epochs": 0.4, "checkpoint_every": 1, "validate_every": 50, "ema": 0.9}
    configs = {f"full-{stage}": config_of(stage, **settings) for stage in (0, 1, 2, 3)}
    configs["half-3"] = config_of(3, precision="bfloat16", **settings)
    configs["lora-3"] = config_of(3, base_model, **settings)
    out = tmp_path_factory.mktemp("pieces")
    two_ranks(train_counted, str(tiny_run.root), configs, str(out))
    return out


KINDS = ("full-0", "full-1", "full-2", "full-3", "half-3", "lora-3")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_sent_for_a_checkpoint(trained: Path, kind: str) -> None:
    for rank in range(2):
        saving, stepping = json.loads((trained / f"{kind}-{rank}.json").read_text())
        assert stepping  # they are seen
        assert not saving


def pieces_of(checkpoint: Checkpoint) -> dict[str, list[tuple[Place, int, int]]]:
    """Place, size and rank of all pieces by name."""
    found: dict[str, list[tuple[Place, int, int]]] = {}
    for rank in range(checkpoint.world):
        own = PieceReader([checkpoint.path(rank)], "none")._places(checkpoint.path(rank))
        for key, (place, size) in own.items():
            found.setdefault(key, []).append((place, size, rank))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_written_once_and_ranks_share_the_work(trained: Path, kind: str) -> None:
    checkpoint = complete_checkpoints(trained / kind)[-1]
    found = pieces_of(checkpoint)
    names = {key.partition("/")[2] for key in found}
    assert {key.partition("/")[0] for key in found} == {"weight", "exp_avg", "exp_avg_sq", "mean"}
    assert len(found) == 4 * len(names)
    assert all(("lora_" in name) == kind.startswith("lora") for name in names)
    written = Counter[int]()
    for key, pieces in found.items():
        ends = 0
        for place, size, rank in sorted(pieces):
            assert place.start == ends, key
            ends += size
            written[rank] += size
        assert ends == pieces[0][0].whole, key
    assert 0.8 < written[0] / written[1] < 1.25


def read_into(rank: int, run: str, config: Config, out: str) -> None:
    """Fails where an engine that a checkpoint was put into would write another one."""
    prepare_process()
    engine = build_engine(sft_task(config, RunPaths(Path(run))))
    checkpoint = newest_checkpoint(Path(out))
    import_state(engine, checkpoint)
    pieces, places = own_state(engine, {WEIGHT: master_shares(engine)} | moment_shares(engine))
    reader = checkpoint.reader(rank)
    for key, numbers in pieces.items():
        start, whole = places[key]
        assert np.array_equal(numbers, reader.read(key, start, start + len(numbers), whole)), key
    check_weights(engine)
    engine.close()


def check_weights(engine: Engine) -> None:
    """What is computed with are the masters, rounded."""
    masters = engine.state_dict()
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=engine.train.zero_stage == 3):
            assert masters is None or torch.equal(parameter, masters[name].to(parameter.dtype)), name


@pytest.mark.parametrize(("written", "stage"), [("full-3", 0), ("full-0", 3), ("full-1", 2), ("lora-3", 1)])
def test_any_stage_takes_what_another_one_wrote(
    trained: Path, tiny_run: RunPaths, base_model: Path, written: str, stage: int
) -> None:
    config = config_of(stage, base_model if written.startswith("lora") else None)
    for world in (1, 3):
        found = forked_ranks(world, read_into, str(tiny_run.root), config, str(trained / written))
        assert found == [0] * world


def test_one_worker_of_zero_0_and_two_of_zero_3_go_on_from_one_another(tiny_run: RunPaths, tmp_path: Path) -> None:
    plain = {"scratch": {**config_of(1).model.scratch_config.model_dump(), "dropout": 0.0}, "max_length": 128}
    settings = {"model": plain, "epochs": 2, "checkpoint_every": 3, "log_every": 1, "ema": 0.8}
    one = sft_task(tiny_config(zero_stage=0, micro_batch_size=2, **settings), tiny_run)
    two = tiny_config(zero_stage=3, micro_batch_size=1, workers=2, **settings)
    out = tmp_path / "stopped"
    alone(one, tmp_path / "whole")
    alone(one, out, at=30)
    assert forked_ranks(2, go_on, str(tiny_run.root), two, str(out), 20) == [1, 1]
    start = newest_checkpoint(out)
    assert start.world == 2
    alone(one, out, start=start)
    assert_same_training(tmp_path / "whole", out, 1e-5)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_step_waits_until_what_it_changes_is_read(
    tiny_run: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    def slow(*arguments: Any) -> None:
        time.sleep(0.2)
        write_pieces(*arguments)

    task = sft_task(config_of(stage, epochs=1, ema=0.8), tiny_run)
    alone(task, tmp_path / "whole")
    monkeypatch.setattr(checkpoint_files, "write_pieces", slow)
    alone(task, tmp_path / "stopped", at=20)
    for thread in threading.enumerate():
        if thread.name == "rosepo-checkpoint":
            thread.join()
    start = agreed_start(task, tmp_path / "stopped")
    assert start is not None
    alone(task, tmp_path / "stopped", start=start)
    assert_same_training(tmp_path / "whole", tmp_path / "stopped", 1e-6)


def dying(path: Path, pieces: Any, places: Any) -> None:
    """Writes half of a file, and ends the process."""
    write_pieces(path, pieces, places)
    if path.parent.name.endswith("6") and dist.get_rank() == 1:
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)


def killed_writing(rank: int, run: str, config: Config, out: str) -> None:
    checkpoint_files.write_pieces = dying
    resumed(sft_task(config, RunPaths(Path(run))), Path(out))


def test_a_checkpoint_that_was_being_written_is_passed_over(tiny_run: RunPaths, tmp_path: Path) -> None:
    run, config = str(tiny_run.root), config_of(3, epochs=1)
    assert forked_ranks(2, killed_writing, run, config, str(tmp_path / "killed"))[1] == -signal.SIGKILL
    left = tmp_path / "killed" / FOLDER / "step-000000006"
    assert list(left.glob(".rank-00001*"))
    assert newest_checkpoint(tmp_path / "killed").step == 3
    for out in ("killed", "whole"):
        two_ranks(train_rank_of, run, config, str(tmp_path / out), None)
    assert_same_training(tmp_path / "whole", tmp_path / "killed", 1e-6)


def test_a_checkpoint_of_another_version_is_known_and_not_gone_on_from(tiny_run: RunPaths, tmp_path: Path) -> None:
    task = sft_task(config_of(1), tiny_run)
    alone(task, tmp_path, at=40)
    assert not of_another_version(tmp_path)
    for path in (tmp_path / FOLDER).glob("*/checkpoint.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
    assert of_another_version(tmp_path)
    assert agreed_start(task, tmp_path) is None
    assert not of_another_version(tmp_path)


@pytest.fixture
def two_files(tmp_path: Path) -> PieceReader:
    """A parameter of ten numbers in two files, and a vector that the first alone has."""
    whole = np.arange(10, dtype=np.float32)
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for path, (start, stop) in zip(paths, ((0, 6), (6, 10)), strict=True):
        pieces = {"weight/w": whole[start:stop], "rng/0": np.zeros(3, np.uint8)}
        write_pieces(path, pieces, {"weight/w": Place(start, 10)})
    return PieceReader(paths, "mend it")


def test_any_numbers_are_read_from_wherever_they_are(two_files: PieceReader) -> None:
    for start, stop in ((0, 10), (0, 3), (4, 8), (6, 7), (9, 10), (10, 10)):
        assert np.array_equal(two_files.read("weight/w", start, stop, 10), np.arange(start, stop))


def test_numbers_that_are_not_there_are_an_error(two_files: PieceReader) -> None:
    with pytest.raises(ValueError, match=r"of 10 numbers for a parameter of 12"):
        two_files.read("weight/w", 0, 12, 12)
    with pytest.raises(ValueError, match=r"holds no weight/v"):
        two_files.read("weight/v", 0, 2, 2)
    PieceReader(two_files.paths[:1], "mend it").read("weight/w", 0, 6, 10)
    with pytest.raises(ValueError, match=r"or 4 of its numbers are missing"):
        PieceReader(two_files.paths[:1], "mend it").read("weight/w", 0, 10, 10)
    shutil.copyfile(__file__, two_files.paths[1])
    with pytest.raises(StageError, match=r"b.safetensors cannot be read .*: mend it"):
        PieceReader(two_files.paths, "mend it").read("weight/w", 0, 10, 10)
