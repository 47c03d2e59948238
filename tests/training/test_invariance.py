"""An alignment is one trajectory, however its steps are split: micro-batches, accumulation, workers, packing, ZeRO."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rosepo.config import Config
from rosepo.run.paths import RunPaths
from rosepo.training.align import align_task
from rosepo.training.engine import prepare_process
from rosepo.training.feed.feed import micro_batches
from rosepo.training.rank import train_rank
from tests.training.ranks import two_ranks
from tests.training.tiny_run import lines, tiny_config, weights

GROUPS = 30  # batches of eight: the last is short, and some of its micro-batches are empty
SPLITS = {"8x1x1": 8, "2x4x1": 2, "2x2x2": 2, "1x4x2": 1}
"""Micro-batch × accumulation × workers; the micro-batch."""
PACKING = {"padded": None, "packed": 120}


def configs(world: int) -> dict[str, Config]:
    """Trainings of one number of workers, by name."""
    fixed = {"batch_size": 8, "log_every": 1, "learning_rate": 1e-3, "beta": 0.5, "epochs": 2}
    found = {
        f"{split}-{packing}": tiny_config("align", micro_batch_size=micro, pack_tokens=tokens, zero_stage=1, **fixed)
        for split, micro in SPLITS.items()
        for packing, tokens in PACKING.items()
        if split.endswith(f"x{world}")
    }
    if world == 2:
        found |= {
            f"zero-{stage}": tiny_config("align", micro_batch_size=2, zero_stage=stage, **fixed) for stage in range(4)
        }
    return found


def align_all(rank: int, root: str, out: str, world: int = 2) -> None:
    prepare_process()
    for name, config in configs(world).items():
        task = align_task(config, RunPaths(Path(root)), GROUPS)
        train_rank(task, micro_batches(task.plan, rank, world), Path(out) / name)


@pytest.fixture(scope="module")
def trained(run: RunPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("splits")
    two_ranks(align_all, str(run.root), str(out))
    align_all(0, str(run.root), str(out), world=1)
    return out


NAMES = [name for world in (1, 2) for name in configs(world)]


def test_the_splits_are_those_that_are_named():
    for name, config in {**configs(1), **configs(2)}.items():
        if name[0].isdigit():
            micro, accumulation, world = map(int, name.partition("-")[0].split("x"))
            assert config.align.micro_batch_size == micro
            assert micro * accumulation * world == config.align.batch_size


@pytest.mark.parametrize("name", NAMES)
def test_loss_gradient_norm_and_weights_do_not_depend_on_the_split(trained: Path, name: str) -> None:
    expected, found = lines(trained / "8x1x1-padded"), lines(trained / name)
    assert len(found) == len(expected) == 1 + 2 * 4
    for one, other in zip(found[1:], expected[1:], strict=True):
        for figure in ("loss", "grad_norm", "margin", "accuracy", "epsilon"):
            assert one[figure] == pytest.approx(other[figure], rel=1e-5, abs=1e-5), (name, one["step"], figure)
    last, first = weights(trained / name), weights(trained / "8x1x1-padded")
    assert last.keys() == first.keys()
    for weight, value in first.items():
        torch.testing.assert_close(last[weight], value, rtol=0, atol=1e-5, msg=weight)


def test_the_trajectory_went_somewhere(trained: Path, run: RunPaths) -> None:
    # Trajectories that stand still are equal too.
    found = lines(trained / "8x1x1-padded")
    assert found[-1]["loss"] < found[1]["loss"] - 0.005
    assert min(line["grad_norm"] for line in found[1:]) > 1e-2
    before, after = weights(run.sft), weights(trained / "8x1x1-padded")
    assert max((after[name] - before[name]).abs().max() for name in before) > 2e-3
