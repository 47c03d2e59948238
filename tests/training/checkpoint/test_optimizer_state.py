"""Alignment that goes on with the optimizer's state of SFT: whatever ZeRO stage and ranks either of them has."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from rosepo.config import Config, parse_config
from rosepo.lm.rows.batch import Batch
from rosepo.run.paths import RunPaths
from rosepo.training.align import align_in_process, align_task
from rosepo.training.checkpoint.optimizer_state import FILE, begin_with, steps_of
from rosepo.training.checkpoint.saver import agreed_start
from rosepo.training.checkpoint.state import MOMENTS, export_state
from rosepo.training.engine import Engine, prepare_process
from rosepo.training.feed.feed import micro_batches
from rosepo.training.rank import fit_in_process, train_rank
from rosepo.training.sft import sft_task
from rosepo.utils.errors import UserError
from tests.training.checkpoint.test_resume import alone as stoppable
from tests.training.ranks import forked_ranks
from tests.training.tiny_run import assert_same_training, lines, tiny_config, weights, write_groups

KEPT = {"sft": {"keep_optimizer": True}}
ALIGN: dict[str, Any] = {"log_every": 1, "optimizer": "sft", "other": KEPT, "warmup_fraction": 0.0}


@pytest.fixture(scope="module")
def carried(tiny_run: RunPaths, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run with groups whose SFT has left its optimizer's state."""
    outputs = RunPaths(tmp_path_factory.mktemp("carried"))
    fit_in_process(sft_task(tiny_config(keep_optimizer=True, zero_stage=1), tiny_run), outputs.sft)
    write_groups(outputs)
    return outputs


def moments_in(engine: Engine) -> dict[str, np.ndarray]:
    return export_state(engine, MOMENTS, owner=0)


def test_a_training_leaves_both_moments_of_every_parameter_where_no_reader_of_models_looks(carried: RunPaths) -> None:
    found, trained = load_file(carried.sft / FILE), weights(carried.sft)
    assert set(found) == {f"{part}/model.{name}" for name in trained for part in MOMENTS}
    for key, value in found.items():
        assert value.dtype == np.float32
        assert value.shape == tuple(trained[key.partition("/model.")[2]].shape)
        assert value.any()
    steps = len([line for line in lines(carried.sft) if "loss" in line]) * 2  # a line every other step
    assert steps_of(carried.sft / FILE) == steps == 8
    assert [path.name for path in carried.sft.glob("*.safetensors")] == ["model.safetensors"]
    AutoModelForCausalLM.from_pretrained(carried.sft)


def test_an_engine_that_begins_with_them_holds_what_was_kept(carried: RunPaths) -> None:
    kept = load_file(carried.sft / FILE)
    prepare_process()
    for stage in (0, 1, 2, 3):
        task = align_task(tiny_config("align", zero_stage=stage, **ALIGN), carried)
        engine = Engine(task.build(), task.train, 4)
        begin_with(engine, task.moments)
        found = moments_in(engine)
        assert found.keys() == kept.keys()
        assert all(np.array_equal(found[name], kept[name]) for name in kept)
        assert {int(state["step"]) for state in engine.optimizer.state.values()} == {8}
        assert engine.done == 0  # the learning rate's schedule begins anew
        engine.close()


def train_two(rank: int, run: str, config: Config, out: str, section: str) -> None:
    prepare_process()
    outputs = RunPaths(Path(run))
    task: Any = sft_task(config, outputs) if section == "sft" else align_task(config, outputs)
    train_rank(task, micro_batches(task.plan, rank, 2), Path(out))


@pytest.mark.slow
def test_any_stage_and_number_of_workers_leave_and_take_the_same_state(
    tiny_run: RunPaths, carried: RunPaths, tmp_path: Path
) -> None:
    three = tiny_config(keep_optimizer=True, zero_stage=3, micro_batch_size=4)
    assert forked_ranks(2, train_two, str(tiny_run.root), three, str(tmp_path / "sft"), "sft") == [0, 0]
    one, two = load_file(carried.sft / FILE), load_file(tmp_path / "sft" / FILE)
    assert one.keys() == two.keys()
    assert all(np.allclose(one[name], two[name], rtol=1e-3, atol=1e-6) for name in one)
    alone, pair = (tiny_config("align", zero_stage=stage, micro_batch_size=4, epochs=0.75, **ALIGN) for stage in (0, 2))
    align_in_process(alone, carried, tmp_path / "alone")
    assert forked_ranks(2, train_two, str(carried.root), pair, str(tmp_path / "pair"), "align") == [0, 0]
    assert_same_training(tmp_path / "alone", tmp_path / "pair", 1e-5)
    fresh = tiny_config("align", zero_stage=0, micro_batch_size=4, epochs=0.75, log_every=1, warmup_fraction=0.0)
    align_in_process(fresh, carried, tmp_path / "fresh")
    one, two = weights(tmp_path / "alone"), weights(tmp_path / "fresh")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) > 1e-3


def test_the_first_step_is_adam_s_with_the_moments_that_were_kept(carried: RunPaths, tmp_path: Path) -> None:
    settings = {
        **ALIGN,
        "loss": "sft",
        "weight_decay": 0.0,
        "max_grad_norm": 1e9,
        "epochs": 0.25,
        "learning_rate": 1e-3,
    }
    config = tiny_config("align", zero_stage=0, **settings)
    align_in_process(config, carried, tmp_path)
    task = align_task(config, carried)
    module = task.build()
    (arrays,) = micro_batches(task.plan, 0, 1, range(1))
    task.loss(*module(Batch.from_numpy(arrays)), arrays).total.div(8).backward()
    kept, after = load_file(carried.sft / FILE), weights(tmp_path)
    for name, parameter in module.named_parameters():
        m, v = (torch.from_numpy(kept[f"{part}/{name}"]).double() for part in MOMENTS)
        gradient = parameter.grad.double()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        step = (m / (1 - 0.9**9)) / ((v / (1 - 0.999**9)).sqrt() + 1e-8)
        expected = parameter.detach().double() - 1e-3 * step
        assert torch.allclose(after[name.removeprefix("model.")].double(), expected, atol=1e-6), name
    assert steps_of(tmp_path / FILE) == 9  # the next round would go on from here


def test_a_stopped_training_goes_on_with_the_steps_before_it_counted(carried: RunPaths, tmp_path: Path) -> None:
    task = align_task(tiny_config("align", checkpoint_every=1, learning_rate=1e-3, **ALIGN), carried)
    stoppable(task, tmp_path / "whole")
    stoppable(task, tmp_path / "stopped", at=2)
    start = agreed_start(task, tmp_path / "stopped")
    assert start is not None
    stoppable(task, tmp_path / "stopped", start=start)
    assert_same_training(tmp_path / "whole", tmp_path / "stopped", 1e-6)
    one, two = (load_file(tmp_path / name / FILE) for name in ("whole", "stopped"))
    assert all(np.allclose(one[name], two[name], rtol=1e-4, atol=1e-8) for name in one)
    assert steps_of(tmp_path / "stopped" / FILE) == 12


def test_what_is_kept_belongs_to_the_model_that_is_kept(tiny_run: RunPaths, tmp_path: Path) -> None:
    settings = {"best_metric": "ndcg@10", "validation_users": 12, "validate_every": 1, "patience": 2}
    # No look is better than the first one.
    task = sft_task(tiny_config(keep_optimizer=True, learning_rate=1e-6, **settings), tiny_run)
    figures = fit_in_process(task, tmp_path)
    assert figures["best_step"] == figures["steps"] - 2
    assert steps_of(tmp_path / FILE) == figures["best_step"]


def test_an_adapter_s_state_is_carried_over_and_another_model_s_is_refused(
    tiny_run: RunPaths, carried: RunPaths, alone: Path, tmp_path: Path
) -> None:
    lora = {"path": str(alone), "max_length": 128, "lora": {"rank": 2, "dropout": 0.0}}
    outputs = RunPaths(tmp_path / "run")
    fit_in_process(sft_task(tiny_config(model=lora, epochs=0.5, keep_optimizer=True), tiny_run), outputs.sft)
    write_groups(outputs)
    with safe_open(outputs.sft / FILE, framework="numpy") as file:
        assert all("lora_" in name for name in file.keys())  # noqa: SIM118
    align_in_process(tiny_config("align", model=lora, epochs=0.25, **ALIGN), outputs, tmp_path / "out")
    shutil.copyfile(carried.sft / FILE, outputs.sft / FILE)
    with pytest.raises(UserError, match=r"adam.safetensors is the optimizer's state of another model: model\."):
        align_in_process(tiny_config("align", model=lora, epochs=0.25, **ALIGN), outputs, tmp_path / "refused")
    found = load_file(carried.sft / FILE)
    save_file({name: value[:1] for name, value in found.items()}, carried.root / "cut.safetensors", {"steps": "3"})
    prepare_process()
    task = align_task(tiny_config("align", **ALIGN), carried)
    engine = Engine(task.build(), task.train, 4)
    with pytest.raises(UserError, match=r"state of another model: .* has \[1, 16\] there and \[\d+, 16\] in training"):
        begin_with(engine, carried.root / "cut.safetensors")
    engine.close()


def test_a_state_that_is_not_there_is_refused_before_work(run: RunPaths) -> None:
    with pytest.raises(UserError, match=r"sft has none: run `rosepo sft --overwrite`, or use align.optimizer=fresh"):
        align_task(tiny_config("align", **ALIGN), run)
    with pytest.raises(UserError, match=r"align\.optimizer=sft .* set sft\.keep_optimizer=true"):
        parse_config({"align": {"optimizer": "sft"}})


def test_a_later_round_goes_on_with_the_state_of_the_round_before(carried: RunPaths, tmp_path: Path) -> None:
    first, second = RunPaths(tmp_path), RunPaths(tmp_path, round=2)
    shutil.copytree(carried.sft, first.sft)
    shutil.copytree(carried.groups, first.groups)
    write_groups(second)
    other = KEPT | {"pairs": {"rounds": 2}}
    config = tiny_config("align", epochs=0.5, **{**ALIGN, "other": other})
    align_in_process(config, first, first.aligned)
    assert steps_of(first.aligned / FILE) == 10
    align_in_process(config, second, second.aligned)
    assert steps_of(second.aligned / FILE) == 12
    shutil.rmtree((first.aligned / FILE).parent)
    with pytest.raises(UserError, match=r"aligned has none: run `rosepo align --overwrite`"):
        align_task(config, second)
