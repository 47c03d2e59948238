"""The parts of the benchmarks that can be wrong without anybody seeing it: what is counted, and what is compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import ceiling, dpo, gpu, new_items, reference, synthetic, trajectory
from benchmarks.command import Source, chosen
from benchmarks.flops import Size, Work, peak_flops, size_of, step_flops, work_of
from benchmarks.groups_run import make_run, read_groups, split_table, write_groups, write_model
from benchmarks.ranks import on_ranks
from benchmarks.scaling import rank_training
from rosepo.config import load_config
from rosepo.data.added_items import with_items
from rosepo.data.catalogue import Catalogue
from rosepo.lm.rows.batch import collate
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.rows.rows import group_row
from rosepo.run.paths import RunPaths
from tests.evaluation.runs import write_examples
from tests.helpers import tiny_catalogue, tiny_model

TINY = synthetic.SHAPE.model_copy(
    update={"hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 32, "vocab_size": 400}
)


def test_counted_weights_are_those_that_the_forward_pass_multiplies_by() -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    batch = collate([group_row(np.arange(3, 20), [np.arange(5, 9), np.arange(30, 34)])])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        LogpsModel(model)(batch)
    size, length = size_of(model), batch.input_ids.shape[1]
    # The model computes padding and pairs that the mask forbids too.
    computed = Work(length, len(batch.gather), length**2)
    # Older Transformers multiply positions by the rotary frequencies as matrices.
    rotary = sum(sum(ops.values()) for name, ops in counter.get_flop_counts().items() if name.endswith("rotary_emb"))
    assert counter.get_total_flops() - rotary == step_flops(size, computed) / 3


def test_work_is_unique_tokens_predicting_positions_and_the_pairs_of_the_mask() -> None:
    # Four prompt tokens, the chosen title's two inputs on the trunk, the rejected title's two branching off.
    batch = collate([group_row(np.arange(4), [np.array([10, 11, 2]), np.array([20, 21, 2])])])
    trunk, branch = 6 * 7 // 2, (4 + 1) + (4 + 2)
    # The prompt's last token predicts both titles' first.
    assert work_of(batch) == Work(tokens=8, predicted=5, pairs=trunk + branch)


def test_frozen_weights_cost_no_gradient() -> None:
    work = Work(tokens=10, predicted=2, pairs=55)
    full = step_flops(Size(body=100, head=50, adapters=0, attention=8), work)
    assert full == 6 * 100 * 10 + 6 * 50 * 2 + 12 * 8 * 55
    lora = step_flops(Size(body=100, head=50, adapters=7, attention=8), work)
    assert lora == 4 * 100 * 10 + 4 * 50 * 2 + 12 * 8 * 55 + 6 * 7 * 10


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("NVIDIA H200", 989.0), ("NVIDIA A100-SXM4-80GB", 312.0), ("NVIDIA A10G", 70.0), ("NVIDIA L40S", 362.0)],
)
def test_peaks_are_found_by_the_name_of_the_device(name: str, tflops: float) -> None:
    assert peak_flops(name) == tflops * 1e12
    assert peak_flops("CPU") is None


def test_log_probs_that_differ_end_the_gpu_program() -> None:
    gpu.check(1e-5, "float32")
    gpu.check(0.5, "bfloat16")
    for apart, precision in ((0.01, "float32"), (float("nan"), "float32"), (float("nan"), "bfloat16")):
        with pytest.raises(ValueError, match="differ from plain ones"):
            gpu.check(apart, precision)


def test_losses_that_differ_are_no_comparison() -> None:
    ours = {"losses": [0.693, 0.68]}
    dpo.same_losses("row", {"rosepo": ours, "TRL": {"losses": [0.693, 0.6805]}}, 1e-3)
    with pytest.raises(ValueError, match=r"row: losses differ by 2.0e-02, more than 0.001"):
        dpo.same_losses("row", {"rosepo": ours, "TRL": {"losses": [0.693, 0.70]}}, 1e-3)
    with pytest.raises(ValueError, match="zip"):
        dpo.same_losses("row", {"rosepo": ours, "TRL": {"losses": [0.693]}}, 1e-3)


def test_a_name_means_its_row_or_else_all_that_begin_with_it() -> None:
    sources = dict.fromkeys(("train.k1.live", "train.k1.live.bf16", "align.overhead"), Source("", ""))
    assert chosen(sources, ["train.k1.live"]) == ["train.k1.live"]
    assert chosen(sources, ["align", "train.k1"]) == list(sources) == chosen(sources, [])
    with pytest.raises(KeyError):
        chosen(sources, ["train.k"])


@pytest.mark.slow
def test_the_gpu_program_runs_on_a_cpu_with_a_tiny_model(tmp_path: Path, capsys: Any) -> None:
    arguments = ["--device", "cpu", "--shape", "tiny", "--quick", "--only", "parity", "--only", "speed"]
    assert gpu.main([*arguments, "--json", str(tmp_path / "rows.json")]) == 0
    rows = {row["name"]: row["value"] for row in json.loads((tmp_path / "rows.json").read_text())}
    assert rows["parity.float32"] < gpu.PARITY_TOLERANCE
    assert all(rows[f"speed.tiny.{method}.k{k}"] > 0 for method in ("full", "lora") for k in (1, 7))
    assert f"CPU, torch {torch.__version__}" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device on this machine")
def test_without_a_cuda_device_the_gpu_program_says_so(capsys: Any) -> None:
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == "benchmarks/gpu.py needs a CUDA device, and torch finds none on this machine\n"


def test_a_users_groups_train_alike_as_one_trajectory_row_and_as_rows_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "SHAPE", TINY)
    outputs = RunPaths(tmp_path)
    write_model(outputs)
    write_groups(outputs, trajectory.prefixes(80, 3, 400), users=[0] * trajectory.BOUNDARIES)
    one, own = (trajectory.product(outputs, 2, together)() for together in (True, False))
    assert one["losses"] == pytest.approx(own["losses"], abs=1e-5)
    assert one["tokens"] < own["tokens"] / 2


def test_a_turn_of_the_product_trains_on_all_groups_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "SHAPE", TINY)
    monkeypatch.setattr(reference, "PROMPT", 40)
    figures = dpo.product(make_run(tmp_path, 4, 3), 4, 2, "float32")()
    assert figures["losses"][0] == pytest.approx(np.log(2), abs=1e-4)
    assert figures["losses"][1] < figures["losses"][0]
    assert figures["seconds"] > 0


def test_a_split_table_holds_the_same_groups_in_as_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "SHAPE", TINY)
    monkeypatch.setattr(reference, "PROMPT", 40)
    outputs = make_run(tmp_path, 7, 1)
    whole = read_groups(outputs)
    split_table(outputs, 3)
    assert len(list(outputs.groups.iterdir())) == 3
    for one, other in zip(whole.prompts, read_groups(outputs).prompts, strict=True):
        assert np.array_equal(one, other)


def test_counted_steps_of_a_rank_meet_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "SHAPE", TINY)
    monkeypatch.setattr(reference, "PROMPT", 40)
    figures = on_ranks(1, 1, rank_training, make_run(tmp_path, 8, 1), 3, 1)
    assert figures["checkpoints"] > 0
    assert figures["compute"] > 0


def test_an_aligned_model_at_the_optimum_is_told_to_be_there() -> None:
    generator = np.random.default_rng(0)
    policy, teacher, noise = generator.normal(size=(3, 40, 30)).astype(np.float32)
    policy[:, :5] = -np.inf
    nearness = ceiling.Nearness()
    for rows in (slice(0, 25), slice(25, 40)):
        optimum = policy[rows] + 2 * teacher[rows]
        nearness.add(optimum, optimum, policy[rows], teacher[rows])
    assert str(nearness) == "100% of the first ten, slope 2.00, correlation 1.00"
    far = ceiling.Nearness()
    far.add(policy + 2 * teacher, policy + noise, policy, teacher)
    shared = float(str(far).partition("%")[0])
    assert 30 < shared < 70
    first = [np.argsort(-scores, axis=1)[:, :10] for scores in (policy + 2 * teacher, policy + noise)]
    assert shared == pytest.approx(10 * np.mean([len({*a} & {*b}) for a, b in zip(*first)]), abs=0.5)
    moved, wanted = (np.take_along_axis(scores, first[0], 1) for scores in (noise, teacher))
    moved, wanted = (values - values.mean(axis=1, keepdims=True) for values in (moved, wanted))
    assert f"correlation {np.corrcoef(moved.ravel(), wanted.ravel())[0, 1]:.2f}" in str(far)


def test_a_ceiling_counts_a_tie_against_the_target() -> None:
    scores = np.array([[0.0, 2.0, 1.0, 1.0], [3.0, -np.inf, 3.0, 3.0]])
    assert ceiling.ranks_in(scores, np.array([1, 0])).tolist() == [0, 2]
    assert ceiling.ranks_in(scores, np.array([2, 3])).tolist() == [2, 2]


def test_items_that_are_held_out_are_nowhere_in_the_log_and_targets_alone_afterwards(tmp_path: Path) -> None:
    catalogue, full = tiny_catalogue(30), tmp_path / "full"
    write_examples(full, catalogue, users=40)
    ids, titles = catalogue.item_ids.tolist(), catalogue.titles
    log = {"user_id": [item % 7 for item in ids], "item_id": ids, "timestamp": list(range(30))}
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    pq.write_table(pa.table({"item_id": [*ids, 999], "title": [*titles, "Seldom"]}), tmp_path / "all.parquet")
    config = load_config(None, [f"data.interactions={tmp_path}/log.parquet", f"data.items={tmp_path}/all.parquet"])
    held = new_items.hold_out(config, tmp_path, 0.3)
    assert 3 < len(held) < 15
    left, kept, new = (
        pq.read_table(tmp_path / f"{name}.parquet")["item_id"].to_pylist() for name in ("interactions", "items", "new")
    )
    assert set(new) == held < set(ids)
    assert sorted(left) == sorted(set(ids) - held)
    assert set(kept) == {*ids, 999} - held
    run = [item for item in ids if item not in held and item != ids[4]]  # one more that the run does not keep
    places = [ids.index(item) for item in run]
    own = Catalogue(np.array(run), [titles[place] for place in places], [()] * len(run), np.ones(len(run), np.int64))
    more, _ = with_items(own, config, str(tmp_path / "new.parquet"), "new")
    found = new_items.new_targets(RunPaths(full).examples, held, more, tmp_path)
    examples = [
        row
        for row in pq.read_table(full / "examples" / "part-00000.parquet").to_pylist()
        if row["split"] != "train" and ids[row["target"]] in held
    ]
    assert len(found.targets) == len(examples) > 5
    assert set(found.targets) <= held
    expected = {(row["user_id"], ids[row["target"]]): [ids[item] for item in row["history"]] for row in examples}
    for user, history, target in zip(found.users, found.histories, found.targets, strict=True):
        assert history == [item for item in expected[user, target] if item != ids[4]]
