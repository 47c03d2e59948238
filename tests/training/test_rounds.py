"""Alignment after the first round: where it starts, and which model its groups must have been compared with."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from rosepo.lm.model.policy import load_policy
from rosepo.run.paths import RunPaths
from rosepo.training.align import align_in_process, align_task
from rosepo.training.engine import prepare_process
from rosepo.training.feed.feed import micro_batches
from rosepo.training.rank import fit_in_process, train_rank
from rosepo.training.sft import sft_task
from rosepo.utils.errors import StageError
from tests.training.ranks import two_ranks
from tests.training.tiny_run import losses, tiny_config, weights, write_groups

ALIGN = {"log_every": 1, "learning_rate": 1e-3, "beta": 0.5}


def second(first: RunPaths, root: Path, moved: bool) -> RunPaths:
    """The second round of a run whose first one is done, with groups of the right reference."""
    inputs = RunPaths(root, 2, moved)
    for folder in (first.sft, first.aligned):
        shutil.copytree(folder, root / folder.name)
    write_groups(inputs)
    return inputs


@pytest.fixture(scope="module")
def first(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run whose first round is done."""
    outputs = RunPaths(tmp_path_factory.mktemp("first"))
    shutil.copytree(alone, outputs.sft)
    write_groups(outputs)
    align_in_process(tiny_config("align", epochs=4, **ALIGN), outputs, outputs.aligned)
    return outputs


def started_from(task_weights: dict[str, Tensor], folder: Path) -> bool:
    """Whether no weight is further from the folder's than a step too small to see can take it."""
    found = weights(folder)
    return all(torch.allclose(value, found[name], rtol=0, atol=1e-6) for name, value in task_weights.items())


@pytest.mark.parametrize("moved", [False, True])
def test_a_later_round_starts_from_the_model_of_the_one_before(first: RunPaths, tmp_path: Path, moved: bool) -> None:
    inputs = second(first, tmp_path, moved)
    still = {**ALIGN, "learning_rate": 1e-12, "epochs": 0.25}
    align_in_process(tiny_config("align", **still), inputs, inputs.aligned)
    assert inputs.aligned == tmp_path / "aligned-2"
    assert started_from(weights(inputs.aligned), first.aligned)
    assert not started_from(weights(inputs.aligned), first.sft)
    card = (inputs.aligned / "README.md").read_text()
    assert "rosepo align --round 2 " in card
    assert f"| reference | {'the model of the round before' if moved else 'the SFT model'} |" in card


def test_a_moved_reference_starts_at_margin_0_and_a_frozen_one_where_the_round_before_came_to(
    first: RunPaths, tmp_path: Path
) -> None:
    for moved in (True, False):
        inputs = second(first, tmp_path / str(moved), moved)
        align_in_process(tiny_config("align", **ALIGN), inputs, inputs.aligned)
        start = losses(inputs.aligned)[0]
        assert (start == pytest.approx(math.log(2), abs=1e-4)) == moved


@pytest.mark.parametrize(("moved", "reference"), [(False, "sft"), (True, "aligned")])
def test_groups_of_another_reference_are_refused(first: RunPaths, tmp_path: Path, moved: bool, reference: str) -> None:
    inputs = second(first, tmp_path, moved)
    config = tiny_config("align", **ALIGN)
    path = inputs.groups / "part-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[3]["ref_logps"][1] += 2.0
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(StageError, match=rf"than .*/{reference}: example 3:3 .*`rosepo pairs --round 2`"):
        align_in_process(config, inputs, tmp_path / "out")
    # The groups of the other kind of reference are as wrong.
    other = RunPaths(tmp_path, 2, not moved)
    write_groups(other)
    with pytest.raises(StageError, match=rf"another model, tokenizer or template than .*/{reference}: example"):
        align_in_process(config, inputs, tmp_path / "out")
    align_in_process(config, other, tmp_path / "out")


def test_an_adapter_goes_on_from_the_adapter_of_the_round_before(tiny_run, alone, tmp_path) -> None:
    run = RunPaths(tmp_path)
    lora = {"path": str(alone), "max_length": 128, "lora": {"rank": 2, "dropout": 0.3}}
    fit_in_process(sft_task(tiny_config(model=lora, epochs=0.5), tiny_run), run.sft)
    write_groups(run)
    align_in_process(tiny_config("align", model=lora, epochs=2, **ALIGN), run, run.aligned)
    inputs = RunPaths(tmp_path, 2)
    write_groups(inputs)
    align_in_process(tiny_config("align", model=lora, epochs=2, **ALIGN), inputs, inputs.aligned)
    assert losses(inputs.aligned)[-1] < losses(run.aligned)[-1]
    before, after = weights(run.aligned), weights(inputs.aligned)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert load_policy(inputs.aligned).peft_config["default"].base_model_name_or_path == str(alone)


def align_ranks(rank: int, root: str, out: str) -> None:
    """A second round under ZeRO-3 in the process group that is there; tampered groups are refused by both."""
    prepare_process()
    inputs = RunPaths(Path(root), 2)
    task = align_task(tiny_config("align", zero_stage=3, micro_batch_size=4, **ALIGN), inputs)
    train_rank(task, micro_batches(task.plan, rank, 2), Path(out))
    rows = task.probed.to_pylist()
    rows[3]["ref_logps"][1] += 2.0
    task.probed = pa.Table.from_pylist(rows)
    with pytest.raises(StageError, match="another model, tokenizer or template"):
        train_rank(task, micro_batches(task.plan, rank, 2), Path(root) / "refused")


def test_two_ranks_verify_and_train_a_later_round_as_one(first: RunPaths, tmp_path: Path) -> None:
    inputs = second(first, tmp_path / "run", moved=False)
    two_ranks(align_ranks, str(inputs.root), str(tmp_path / "two"))
    align_in_process(tiny_config("align", zero_stage=0, **ALIGN), inputs, tmp_path / "one")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], rtol=0, atol=1e-5) for name in one)
