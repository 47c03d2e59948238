"""The running mean of the weights: what it is at every ZeRO stage, and that it is what is looked at and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rosepo.config import Config, parse_config
from rosepo.lm.rows.batch import Batch
from rosepo.pipeline.fingerprints import stage_settings
from rosepo.run.paths import RunPaths
from rosepo.run.stages import find_stage
from rosepo.training.checkpoint.optimizer_state import FILE, steps_of
from rosepo.training.checkpoint.saver import agreed_start
from rosepo.training.ema import WeightMean, mean_in_place
from rosepo.training.engine import Engine, prepare_process
from rosepo.training.feed.feed import micro_batches
from rosepo.training.rank import fit_in_process, train_rank
from rosepo.training.sft import sft_task
from rosepo.utils.errors import UserError
from tests.training.checkpoint.test_resume import alone
from tests.training.ranks import forked_ranks
from tests.training.tiny_run import assert_same_training, lines, tiny_config, weights

DECAY = 0.5


def masters(engine: Engine) -> dict[str, torch.Tensor]:
    found = engine.state_dict()
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "float32"), (1, "float32"), (2, "bfloat16"), (3, "float32"), (3, "bfloat16")]
)
def test_the_mean_is_that_of_the_weights_after_every_step(tiny_run: RunPaths, stage: int, precision: str) -> None:
    prepare_process()
    task = sft_task(tiny_config(zero_stage=stage, precision=precision, ema=DECAY, learning_rate=0.05), tiny_run)
    engine = Engine(task.build(), task.train, 4)
    mean = WeightMean(engine, DECAY)
    batches = [Batch.from_numpy(arrays) for arrays in micro_batches(task.plan, 0, 1, range(4))]
    expected = masters(engine)
    for step, batch in enumerate(batches, 1):
        logps, _ = engine.forward(batch)
        engine.accumulate(-logps.sum(), len(logps))
        engine.step()
        mean.follow(step)
        keep = min(DECAY, (1 + step) / (10 + step))
        expected = {name: keep * expected[name] + (1 - keep) * value for name, value in masters(engine).items()}
    trained = masters(engine)
    with torch.no_grad():
        before = engine.forward(batches[0])[0].float()
        with mean_in_place(mean):
            found, within = masters(engine), engine.forward(batches[0])[0].float()
        after = engine.forward(batches[0])[0].float()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, trained[name]) for name, value in masters(engine).items())
    assert torch.equal(before, after)
    module = task.build()
    module.load_state_dict(found)
    with torch.no_grad():
        direct = module(batches[0])[0]
    error, apart = ((one - direct).abs().mean() for one in (within, before))
    assert error < (1e-5 if precision == "float32" else 0.3 * apart)
    assert apart > 0.1
    engine.close()


def test_the_model_that_is_kept_is_the_mean_that_was_looked_at(tiny_run: RunPaths, tmp_path: Path) -> None:
    for patience, stops in ((None, False), (1, True)):
        # A large step, so that mean and weights, and one look and the next, are far apart.
        settings: dict[str, Any] = {
            "validate_every": 2,
            "learning_rate": 0.2 if stops else 0.05,  # at 0.2 the second look is worse, far beyond rounding
            "epochs": 2 if stops else 1,
            "warmup_fraction": 0.0,
        }
        settings |= {"best_metric": "validation_loss", "patience": patience, "keep_optimizer": True}
        task = sft_task(tiny_config(zero_stage=2, ema=0.8, **settings), tiny_run)
        out = tmp_path / str(patience)
        figures = fit_in_process(task, out)
        assert (figures["best_step"] < figures["steps"]) == stops
        assert steps_of(out / FILE) == figures["best_step"]
        module = task.build().eval()
        module.load_state_dict({f"model.{name}": value for name, value in weights(out).items()}, strict=False)
        total = count = 0.0
        with torch.no_grad():
            for arrays in task.validation:
                logps, _ = module(Batch.from_numpy(arrays))
                total, count = total - float(logps.sum()), count + len(logps)
        assert total / count == pytest.approx(figures["validation_loss"], rel=1e-4)


def test_a_stopped_training_goes_on_with_its_mean(tiny_run: RunPaths, tmp_path: Path) -> None:
    task = sft_task(tiny_config(zero_stage=1, ema=0.9, checkpoint_every=3, learning_rate=0.02), tiny_run)
    alone(task, tmp_path / "whole")
    alone(task, tmp_path / "stopped", at=5)
    start = agreed_start(task, tmp_path / "stopped")
    assert start is not None
    assert start.step == 3
    alone(task, tmp_path / "stopped", start=start)
    assert_same_training(tmp_path / "whole", tmp_path / "stopped", 1e-6)


def train_two(rank: int, run: str, config: Config, out: str) -> None:
    prepare_process()
    task = sft_task(config, RunPaths(Path(run)))
    train_rank(task, micro_batches(task.plan, rank, 2), Path(out))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_mean_does_not_depend_on_stage_and_workers(tiny_run: RunPaths, tmp_path: Path, stage: int) -> None:
    fit_in_process(sft_task(tiny_config(zero_stage=1, ema=0.8), tiny_run), tmp_path / "one")
    two = tiny_config(zero_stage=stage, ema=0.8, micro_batch_size=4)
    assert forked_ranks(2, train_two, str(tiny_run.root), two, str(tmp_path / "two")) == [0, 0]
    assert_same_training(tmp_path / "one", tmp_path / "two", 1e-5)
    looks = [[line["validation_loss"] for line in lines(tmp_path / name) if "validation_loss" in line]
             for name in ("one", "two")]  # fmt: skip
    assert looks[0] == pytest.approx(looks[1], abs=1e-4)


def test_a_mean_makes_another_model_of_fine_tuning_and_of_nothing_else() -> None:
    sft, align = find_stage("sft"), find_stage("align")
    plain, mean = tiny_config(), tiny_config(ema=0.995)
    assert (stage_settings(plain, sft)["sft.ema"], stage_settings(mean, sft)["sft.ema"]) == (None, 0.995)
    assert stage_settings(plain, align) == stage_settings(mean, align)
    for decay in (0.0, 1.0):
        with pytest.raises(UserError, match=r"sft\.ema"):
            parse_config({"sft": {"ema": decay}})
