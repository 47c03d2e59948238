from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rosepo.data.catalogue import Catalogue
from rosepo.lm.model.dropout import disable_dropout
from rosepo.lm.model.policy import load_recommender
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.titles.title_scores import reference_logps
from rosepo.run.paths import RunPaths
from rosepo.training.align import align_in_process, align_task
from rosepo.training.feed.encoders import GroupEncoder
from rosepo.training.feed.feed import micro_batches
from rosepo.training.rank import fit_in_process
from rosepo.training.sft import sft_task
from rosepo.utils.errors import StageError, UserError
from tests.training.tiny_run import lines, tiny_config, weights, write_groups

ALIGN = {"log_every": 1, "learning_rate": 1e-3, "beta": 0.5}


def test_alignment_starts_at_the_reference_and_widens_margins(run, tmp_path):
    figures = align_in_process(tiny_config("align", epochs=4, **ALIGN), run, tmp_path)
    found = [line for line in lines(tmp_path) if "loss" in line]
    assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert found[0]["margin"] == pytest.approx(0.0, abs=1e-3)
    assert found[-1]["margin"] > 0.05
    assert found[-1]["accuracy"] > 0.6
    assert found[-1]["loss"] < found[0]["loss"]
    assert {"accuracy/self_hard", "margin/semantic", "epsilon/popularity", "logp_chosen"} <= found[-1].keys()
    assert figures["groups"] == 32
    assert figures["steps"] == 16
    assert load_recommender(tmp_path).builder.max_length == 128


def test_figures_by_strategy_add_up_to_the_overall_ones(run):
    task = align_task(tiny_config("align", **ALIGN), run)
    arrays = next(micro_batches(task.plan, 0, 1))
    logps = torch.randn(arrays["ref_logps"].size, generator=torch.Generator().manual_seed(0))
    sums = task.loss(logps, torch.ones_like(logps), arrays).sums
    for name in ("margin", "accuracy", "epsilon"):
        parts = [sums[f"{name}/{strategy}"] for strategy in ("self_hard", "semantic", "popularity")]
        assert float(sum(part[0] for part in parts)) == pytest.approx(float(sums[name][0]), abs=1e-4)
        assert float(sum(part[1] for part in parts)) == sums[name][1]


def test_epsilon_is_clamped_by_the_configuration(run):
    for maximum in (0.0, 0.2):
        task = align_task(tiny_config("align", epsilon_max=maximum, **ALIGN), run)
        arrays = next(micro_batches(task.plan, 0, 1))
        sums = task.loss(torch.zeros(arrays["ref_logps"].size), torch.ones(1), arrays).sums
        expected = np.minimum(arrays["epsilon"], maximum).sum()
        assert float(sums["epsilon"][0]) == pytest.approx(expected, abs=1e-5)


def test_titles_of_every_strategy_are_counted_under_a_name(run, tmp_path):
    given = [["uniform", "rival:newest"], ["self_hard", "uniform"]]
    other = changed(run, tmp_path, "strategy", lambda number, value: given[number % 2])
    figures = align_in_process(tiny_config("align", **ALIGN), other, tmp_path / "out")
    assert {"margin/uniform", "margin/own", "margin/self_hard"} <= figures.keys()
    assert not any(name in figures for name in ("margin/semantic", "margin/popularity"))


def test_the_softmax_loss_starts_at_the_log_of_the_group(run, tmp_path):
    align_in_process(tiny_config("align", loss="softmax", target_min=0.0, **ALIGN), run, tmp_path)
    assert lines(tmp_path)[1]["loss"] == pytest.approx(math.log(3), abs=1e-4)
    assert not any(name.startswith("epsilon") for name in lines(tmp_path)[1])


def test_micro_batches_do_not_change_alignment(run, tmp_path):
    for name, micro in (("whole", 8), ("split", 3)):
        align_in_process(tiny_config("align", micro_batch_size=micro, zero_stage=0, **ALIGN), run, tmp_path / name)
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "split")
    assert all(torch.allclose(first[name], second[name], rtol=0, atol=1e-5) for name in first)


def test_fewer_groups_are_spread_over_the_table(run, tmp_path):
    figures = align_in_process(tiny_config("align", **ALIGN), run, tmp_path, max_groups=10)
    assert (figures["groups"], figures["rows"], figures["steps"]) == (10, 10, 2)


def test_groups_of_another_model_are_refused_with_the_example(run, tmp_path):
    other = changed(run, tmp_path, "ref_logps", lambda row, value: [value[0] - (2.0 if row == 3 else 0.0), *value[1:]])
    with pytest.raises(StageError, match="example 3:3 has a reference log-probability of"):
        align_in_process(tiny_config("align", **ALIGN), other, tmp_path / "out")


def test_groups_of_mixed_size_are_refused(run):
    rows = pq.read_table(run.groups / "part-00000.parquet").slice(0, 2).to_pylist()
    rows[1]["rejected_ids"] = rows[1]["rejected_ids"][:1]
    with pytest.raises(UserError, match="groups of 1 and 2 rejected titles"):
        GroupEncoder()(pa.Table.from_pylist(rows), 1)


def test_a_missing_model_is_refused_before_work(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        align_task(tiny_config("align", **ALIGN), RunPaths(tmp_path))


def test_examples_that_number_items_otherwise_than_the_model_are_not_searched(run, tiny_run, tmp_path):
    other = RunPaths(tmp_path / "other")
    other.examples.mkdir(parents=True)
    for folder in (run.sft, run.groups):
        (other.root / folder.name).symlink_to(folder)
    shutil.copyfile(tiny_run.examples / "part-00000.parquet", other.examples / "part-00000.parquet")
    catalogue = Catalogue.load(tiny_run.examples / "_items.parquet")
    catalogue.save(other.examples / "_items.parquet")
    searched = tiny_config("align", validation_users=5, **ALIGN)
    assert len(align_task(searched, other).held_out.targets) == 5
    replace(catalogue, item_ids=catalogue.item_ids[::-1]).save(other.examples / "_items.parquet")
    with pytest.raises(UserError, match=r"on another catalogue \(40 items, the run has 40\): run `rosepo sft` again"):
        align_task(searched, other)


@pytest.mark.parametrize("kind", [{}, {"dora": True}, {"rslora": True}], ids=["lora", "dora", "rslora"])
def test_an_adapter_is_trained_on_and_stays_an_adapter(tiny_run, alone, tmp_path, kind):
    outputs = RunPaths(tmp_path)
    lora = {"path": str(alone), "max_length": 128, "lora": {"rank": 2, "dropout": 0.3, **kind}}
    fit_in_process(sft_task(tiny_config(model=lora, epochs=0.5), tiny_run), outputs.sft)
    write_groups(outputs)
    align_in_process(tiny_config("align", model=lora, epochs=2, **ALIGN), outputs, tmp_path / "out")
    assert lines(tmp_path / "out")[1]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    before, after = weights(outputs.sft), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert any("magnitude" in name for name in changed) == ("dora" in kind)
    saved = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (saved["use_dora"], saved["use_rslora"]) == ("dora" in kind, "rslora" in kind)


def test_the_reference_of_an_adapter_is_the_adapter_and_not_its_base(tiny_run, alone, tmp_path):
    lora = {"path": str(alone), "max_length": 128, "lora": {"rank": 2, "dropout": 0.0}}
    outputs = RunPaths(tmp_path)
    fit_in_process(sft_task(tiny_config(model=lora, epochs=2, learning_rate=5e-2), tiny_run), outputs.sft)
    write_groups(outputs)
    base = RunPaths(tmp_path / "base")
    shutil.copytree(alone, base.sft)
    prompts, completions, stored = [], [], []
    for row in pq.read_table(outputs.groups / "part-00000.parquet").to_pylist():
        prompts.append(np.array(row["prompt_ids"]))
        completions.append([np.array(ids) for ids in (row["chosen_ids"], *row["rejected_ids"])])
        stored.append(row["ref_logps"])
    by_adapter, by_base = (
        reference_logps(LogpsModel(load_recommender(run.sft).model), prompts, completions) for run in (outputs, base)
    )
    assert np.allclose(stored, by_adapter, atol=1e-3)
    assert np.abs(np.array(stored) - np.array(by_base)).max() > 0.1
    # What the base says of the same groups is refused, though an adapter starts as its base.
    wrong = changed(outputs, tmp_path, "ref_logps", lambda row, value: [float(x) for x in by_base[row]])
    with pytest.raises(StageError, match="has a reference log-probability of"):
        align_in_process(tiny_config("align", model=lora, **ALIGN), wrong, tmp_path / "refused")
    align_in_process(tiny_config("align", model=lora, **ALIGN), outputs, tmp_path / "out")
    assert lines(tmp_path / "out")[1]["margin"] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}),
        ("opt", {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32, "layerdrop": 0.5,
                 "word_embed_proj_dim": 16, "attention_dropout": 0.5, "max_position_embeddings": 16}),
    ],
)  # fmt: skip
def test_no_dropout_is_left(family, sizes):
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, vocab_size=32, **sizes)).train()
    disable_dropout(model)
    ids = torch.arange(8)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_dropout_of_fine_tuning_is_kept_where_it_is_asked_for(run, tmp_path):
    scratch = tiny_config().model.scratch.model_dump() | {"dropout": 0.4}
    model = {"scratch": scratch, "max_length": 128}
    align_in_process(tiny_config("align", model=model, dropout=True, epochs=4, **ALIGN), run, tmp_path)
    found = lines(tmp_path)
    # The first step's policy has the reference's weights, and differs from it by its masks alone.
    assert abs(found[1]["margin"]) > 1e-3


def test_dropout_that_fine_tuning_did_not_have_is_refused():
    with pytest.raises(UserError, match=r"align.dropout=true keeps .* model.scratch.dropout is 0"):
        tiny_config("align", dropout=True)


def changed(run: RunPaths, folder: Path, column: str, change) -> RunPaths:
    """The same run with another column of the groups."""
    other = RunPaths(folder / "other")
    shutil.copytree(run.sft, other.sft)
    rows = pq.read_table(run.groups / "part-00000.parquet").to_pylist()
    for number, row in enumerate(rows):
        row[column] = change(number, row[column])
    other.groups.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), other.groups / "part-00000.parquet")
    return other
