"""Every loss of `align.loss` in training: where it starts, that it widens margins, and what it asks of the groups."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rosepo.config import LOSSES, Config
from rosepo.objectives.likelihood import drawn_weights
from rosepo.run.paths import RunPaths
from rosepo.training.align import align_in_process, align_task
from rosepo.training.feed.feed import micro_batches
from rosepo.utils.errors import UserError
from tests.training.tiny_run import lines, tiny_config, weights

PLAIN: dict[str, Any] = {"log_every": 1, "learning_rate": 1e-3, "zero_stage": 0, "epochs": 2}
ALIGN: dict[str, Any] = {**PLAIN, "beta": 0.5}
START = {
    "pairwise": math.log(2),
    "softmax": math.log(3),
    "dpo": math.log(2),
    "cdpo": math.log(2),
    "spa": math.log(2),
    "robust": math.log(2),
    "ipo": 1 / (4 * 0.5**2),
    "rpo": math.log(2),
    "sdpo": math.log(3),
    "dmpo": math.log(2),
    "ada_dpo": 0.1 * (math.log(2) - 0.5931),
}
"""Loss where the policy still is the reference, for two rejected titles; `simpo` has no such place."""
EPSILON = {"pairwise": "oracle", "cdpo": "constant", "spa": "spa", "robust": "constant"}


@pytest.mark.parametrize("loss", [name for name, facts in LOSSES.items() if facts.preference])
def test_every_loss_starts_where_its_formula_says_and_widens_margins(run, tmp_path, loss):
    options = {"target_min": 1.0} if loss == "softmax" else {}
    figures = align_in_process(tiny_config("align", loss=loss, **options, **ALIGN), run, tmp_path)
    found = [line for line in lines(tmp_path) if "loss" in line]
    if loss in START:
        also = -found[0]["logp_chosen"] if loss == "rpo" else 0.0
        assert found[0]["loss"] == pytest.approx(START[loss] + also, abs=1e-4)
        assert found[0]["margin"] == pytest.approx(0.0, abs=1e-3)
    first, second = (sum(line["margin"] for line in found[part]) / 4 for part in (slice(0, 4), slice(4, 8)))
    assert second > first + 0.005  # an epoch is the same groups as the one before
    assert figures["steps"] == 8
    assert figures.get("epsilon_kind") == EPSILON.get(loss)
    assert ("epsilon" in found[-1]) == (loss in EPSILON)
    assert ("ada_tau" in found[-1]) == (loss == "ada_dpo")
    assert LOSSES[loss].described in (tmp_path / "README.md").read_text()


def test_a_loss_under_a_rival_s_name_is_the_smoothed_loss_with_that_smoothing(run, tmp_path):
    for name, other in (
        ({"loss": "dpo"}, {"epsilon": "zero"}),
        ({"loss": "cdpo", "epsilon_value": 0.2}, {"epsilon": "constant", "epsilon_value": 0.2}),
        ({"loss": "spa", "epsilon_value": 0.2}, {"epsilon": "spa", "epsilon_value": 0.2}),
        ({"loss": "sdpo"}, {"loss": "softmax", "target_min": 1.0}),
        ({"loss": "rpo"}, {"loss": "dpo", "sft_weight": 1}),
    ):
        tasks = [align_task(tiny_config("align", **options, **ALIGN), run) for options in (name, other)]
        for pair in zip(*(micro_batches(task.plan, 0, 1, range(3)) for task in tasks), strict=True):
            logps = torch.from_numpy(pair[0]["ref_logps"].copy()).flatten()
            logps = logps + torch.randn(logps.shape, generator=torch.Generator().manual_seed(len(logps)))
            one, two = (task.loss(logps, torch.ones_like(logps), arrays) for task, arrays in zip(tasks, pair))
            assert torch.equal(one.total, two.total), name
            for task, made in zip(tasks, (one, two), strict=True):
                if task.tracker is not None:
                    task.tracker.update(made.tracked)


def test_a_weight_adds_the_likelihood_of_the_chosen_titles_to_any_loss(run):
    for loss in ("pairwise", "simpo", "softmax"):
        plain, both = (
            align_task(tiny_config("align", loss=loss, sft_weight=weight, **ALIGN), run) for weight in (0.0, 0.3)
        )
        arrays = next(micro_batches(plain.plan, 0, 1))
        groups = len(arrays["strategy"])
        logps = -torch.rand(arrays["strategy"].size + groups)
        counts = torch.full(logps.shape, 4)
        expected = plain.loss(logps, counts, arrays).total - 0.3 * logps.view(groups, -1)[:, 0].sum()
        assert float(both.loss(logps, counts, arrays).total) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("loss", ["simpo", "rpo"])
def test_micro_batches_do_not_change_a_rival(run, tmp_path, loss):
    for name, micro in (("whole", 8), ("split", 3)):
        align_in_process(tiny_config("align", loss=loss, micro_batch_size=micro, **ALIGN), run, tmp_path / name)
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "split")
    assert all(torch.allclose(first[name], second[name], rtol=0, atol=1e-5) for name in first)


def test_a_loss_without_a_reference_needs_no_log_probabilities_of_one(run, tmp_path):
    other = without_reference(run, tmp_path)
    task = align_task(tiny_config("align", loss="simpo", **ALIGN), other)
    assert "ref_logps" not in next(micro_batches(task.plan, 0, 1))
    align_in_process(tiny_config("align", loss="simpo", **ALIGN), other, tmp_path / "without")
    align_in_process(tiny_config("align", loss="simpo", **ALIGN), run, tmp_path / "with")
    one, two = weights(tmp_path / "without"), weights(tmp_path / "with")
    assert all(torch.equal(one[name], two[name]) for name in one)
    line = lines(tmp_path / "without")[1]
    assert line["reward_chosen"] > 0.5 * line["logp_chosen"]  # a mean over tokens, beta times


def test_going_on_with_fine_tuning_reads_prompts_and_chosen_titles_alone(run, tmp_path):
    other = RunPaths(tmp_path / "other")
    other.groups.mkdir(parents=True)
    other.sft.symlink_to(run.sft)
    table = pq.read_table(run.groups)
    kept = table.select(["example_id", "user_id", "prompt_ids", "chosen_ids"])
    pq.write_table(kept, other.groups / "part-00000.parquet")
    pq.write_table(table.slice(0, 8), other.groups / "_validation.parquet")
    figures = align_in_process(tiny_config("align", loss="sft", **PLAIN), other, tmp_path / "out")
    found = [line for line in lines(tmp_path / "out") if "loss" in line]
    for line in found:
        assert line["loss"] == pytest.approx(-line["logp_chosen"], rel=1e-5)
    assert sum(line["loss"] for line in found[4:]) < sum(line["loss"] for line in found[:4])
    assert "validation_loss" in figures
    assert not {"margin", "accuracy", "logp_rejected", "validation_margin", "epsilon"} & figures.keys()
    assert f"Trained by {LOSSES['sft'].described}" in (tmp_path / "out" / "README.md").read_text()


def test_titles_drawn_from_the_oracle_are_learned_by_their_weights(run, tmp_path):
    with pytest.raises(UserError, match=r"no column 'oracle_rest', .* titles were not drawn from the oracle"):
        align_task(distilling(), run)
    other = RunPaths(tmp_path / "other")
    other.groups.mkdir(parents=True)
    other.sft.symlink_to(run.sft)
    table = pq.read_table(run.groups).drop_columns("ref_logps")
    scores = torch.tensor(table["oracle_scores"].to_pylist())
    rest = torch.logsumexp(scores[:, 1:], 1) + 0.5  # more titles than these could have been drawn
    pq.write_table(
        table.append_column("oracle_rest", pa.array(rest.tolist(), pa.float32())), other.groups / "part-00000.parquet"
    )
    task = align_task(distilling(), other)
    arrays = next(micro_batches(task.plan, 0, 1))
    groups = len(arrays["strategy"])
    logps = -5 * torch.rand(groups, 3)
    found = task.loss(logps.flatten(), torch.ones(groups * 3), arrays)
    kept = drawn_weights(*(torch.from_numpy(arrays[name].copy()) for name in ("oracle_scores", "oracle_rest")))
    assert float(found.total) == pytest.approx(-float((kept * logps).sum()), rel=1e-5)
    assert not {"margin", "accuracy"} & found.sums.keys()
    align_in_process(distilling(epochs=4), other, tmp_path / "out")
    losses = [line["loss"] for line in lines(tmp_path / "out") if "loss" in line]
    assert sum(losses[-4:]) < sum(losses[:4]) - 0.1
    assert LOSSES["distill"].described in (tmp_path / "out" / "README.md").read_text()


def distilling(**train: Any) -> Config:
    return tiny_config("align", loss="distill", other={"pairs": {"strategies": {"oracle": 1}}}, **{**PLAIN, **train})


def test_targets_may_be_a_mix_of_the_oracle_s_and_the_reference_s(run):
    arrays, totals = None, {}
    for mix in (None, 0.0, 0.5):
        options = {} if mix is None else {"target_mix": mix}
        task = align_task(tiny_config("align", loss="softmax", target_min=0.0, **options, **ALIGN), run)
        arrays = next(micro_batches(task.plan, 0, 1))
        logps = torch.linspace(-9, -1, arrays["ref_logps"].size)
        totals[mix] = task.loss(logps, torch.ones_like(logps), arrays).total
    assert torch.equal(totals[None], totals[0.0])
    scores, reference = (torch.from_numpy(arrays[name].copy()) for name in ("oracle_scores", "ref_logps"))
    targets = torch.softmax((scores + reference) / 2, 1)
    rewards = 0.5 * (logps.view_as(reference) - reference)
    assert float(totals[0.5]) == pytest.approx(float(-(targets * torch.log_softmax(rewards, 1)).sum()), rel=1e-5)


def test_going_on_with_fine_tuning_is_the_weighted_term_of_any_loss_alone(run):
    for weight in (1.0, 0.3):
        alone, plain, both = (
            align_task(tiny_config("align", loss=loss, sft_weight=other, **PLAIN), run)
            for loss, other in (("sft", weight), ("dpo", 0.0), ("dpo", weight))
        )
        arrays = next(micro_batches(plain.plan, 0, 1))
        groups = len(arrays["strategy"])
        logps = -torch.rand(groups, arrays["strategy"].shape[1] + 1)
        counts = torch.ones(logps.numel(), dtype=torch.int64)
        term = both.loss(logps.flatten(), counts, arrays).total - plain.loss(logps.flatten(), counts, arrays).total
        chosen = next(micro_batches(alone.plan, 0, 1))
        assert (chosen["row_offsets"][-1], arrays["row_offsets"][-1]) == (groups, 3 * groups)
        made = alone.loss(logps[:, 0], counts[:groups], chosen)
        assert float(made.total) == pytest.approx(float(term), abs=1e-4)
        assert set(made.sums) == {"logp_chosen"}


def without_reference(run: RunPaths, folder: Path) -> RunPaths:
    """The same run with groups that lack the reference's log-probabilities."""
    other = RunPaths(folder / "other")
    other.groups.mkdir(parents=True)
    other.sft.symlink_to(run.sft)
    table = pa.concat_tables(pq.read_table(path) for path in sorted(run.groups.glob("part-*.parquet")))
    pq.write_table(table.drop_columns("ref_logps"), other.groups / "part-00000.parquet")
    return other
