"""The controls of smoothing: what each pair gets, and that nothing but the pair, the seed and the step has a say."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rosepo.run.paths import RunPaths
from rosepo.training.align import align_in_process, align_task
from rosepo.training.align_task import AlignTask
from rosepo.training.engine import prepare_process
from rosepo.training.feed import pair_epsilon
from rosepo.training.feed.feed import micro_batches
from rosepo.training.feed.pair_epsilon import shuffled
from rosepo.training.rank import train_rank
from rosepo.utils.errors import UserError
from tests.training.ranks import two_ranks
from tests.training.tiny_run import assert_same_training, lines, tiny_config, weights

ALIGN: dict[str, Any] = {"log_every": 1, "learning_rate": 3e-3, "beta": 0.5, "zero_stage": 0}
SPA: dict[str, Any] = {**ALIGN, "epsilon": "spa", "epsilon_value": 0.2, "spa_quantile": 0.3, "epochs": 4}


def stored(run: RunPaths) -> np.ndarray:
    """Epsilon of the table, float32 [rows, K]."""
    rows = pq.read_table(run.groups, columns=["epsilon"])["epsilon"].to_pylist()
    return np.array(rows, dtype=np.float32)


def fed(task: AlignTask, world: int = 1, micro: int = 8) -> dict[bytes, list[float]]:
    """Epsilon by group, as all ranks of an epoch get it; groups are told apart by their reference."""
    plan, found = replace(task.plan, micro_batch_size=micro, epochs=1.0), {}
    for rank in range(world):
        for arrays in filter(None, micro_batches(plan, rank, world)):
            for reference, epsilon in zip(arrays["ref_logps"], arrays["epsilon"], strict=True):
                found[reference.tobytes()] = epsilon.tolist()
    return found


def loss_of(task: AlignTask, scale: float = 1.0) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Loss of the first micro-batch under random log-probabilities, those, and the reference's."""
    arrays = next(micro_batches(task.plan, 0, 1))
    reference = torch.from_numpy(arrays["ref_logps"].copy())
    policy = reference + scale * torch.randn(reference.shape, generator=torch.Generator().manual_seed(0))
    return task.loss(policy.flatten(), torch.ones(policy.numel()), arrays), policy, reference


@given(st.lists(st.floats(0, 0.4375, width=32), min_size=1, max_size=60), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_a_shuffle_keeps_every_value_and_depends_on_seed_and_number_alone(values, k, seed):
    table = np.array([values] * k, dtype=np.float32).T
    places = shuffled(np.arange(table.size, dtype=np.int64).reshape(table.shape), seed).ravel()
    assert sorted(places) == list(range(table.size))
    assert np.array_equal(shuffled(table.copy(), seed).ravel(), table.ravel()[places])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 4), st.integers(1, 8), st.sampled_from([5, 17, 32]))
def test_a_pair_gets_the_same_shuffled_epsilon_from_any_number_of_workers(run, world, micro, groups):
    config = tiny_config("align", epsilon="shuffled", epsilon_max=0.3, **ALIGN)
    task = align_task(config, run, groups)
    found = fed(task, world, micro)
    assert found == fed(align_task(config, run, groups))
    trained = np.minimum(stored(run)[np.arange(groups) * 32 // groups], np.float32(0.3))
    assert sorted(np.ravel(list(found.values()))) == pytest.approx(sorted(trained.ravel()), abs=0)


def test_a_shuffle_parts_epsilon_from_its_pair_by_the_seed(run):
    config = tiny_config("align", epsilon="shuffled", **ALIGN)
    own = fed(align_task(tiny_config("align", **ALIGN), run))
    one = fed(align_task(config, run))
    other = fed(align_task(config.model_copy(update={"seed": 4}), run))
    assert own.keys() == one.keys() == other.keys()
    assert sum(own[key] == one[key] for key in own) < 4
    assert sum(one[key] == other[key] for key in own) < 4


@pytest.mark.parametrize("kind", ["constant", "shuffled"])
def test_the_column_is_read_chunk_by_chunk(run, monkeypatch, kind):
    config = tiny_config("align", epsilon=kind, **ALIGN)
    whole = align_task(config, run, 30)
    monkeypatch.setattr(pair_epsilon, "_CHUNK", 7)
    parts = align_task(config, run, 30)
    assert parts.epsilon_value == (None if kind == "shuffled" else pytest.approx(whole.epsilon_value, abs=1e-9))
    assert fed(parts) == fed(whole)


def test_groups_of_mixed_size_are_refused_before_training(run, tmp_path):
    other = RunPaths(tmp_path)
    other.sft.symlink_to(run.sft)
    other.groups.mkdir()
    rows = pq.read_table(run.groups).to_pylist()
    rows[9]["epsilon"] = rows[9]["epsilon"][:1]
    pq.write_table(pa.Table.from_pylist(rows), other.groups / "part-00000.parquet")
    with pytest.raises(UserError, match="groups of 1 and 2 rejected titles"):
        align_task(tiny_config("align", epsilon="shuffled", **ALIGN), other)


def test_what_workers_get_leaves_the_column_to_the_feeding_actors(run):
    task = align_task(tiny_config("align", epsilon="shuffled", **ALIGN), run)
    sent = copy.copy(task)  # what pickling takes along: its `__getstate__`
    assert (set(task.plan.instead), set(sent.plan.instead)) == ({"epsilon"}, set())
    assert np.array_equal(sent.plan.schedule.indices(0), task.plan.schedule.indices(0))


@pytest.mark.parametrize("groups", [None, 10])
def test_a_constant_without_a_value_is_the_mean_of_the_clamped_epsilon_trained_on(run, groups):
    task = align_task(tiny_config("align", epsilon="constant", epsilon_max=0.3, **ALIGN), run, groups)
    trained = np.minimum(stored(run)[np.arange(groups or 32) * 32 // (groups or 32)], 0.3)
    assert task.epsilon_value == pytest.approx(trained.mean(), abs=1e-7)
    assert task.figures == {"groups": groups or 32, "epsilon_kind": "constant", "epsilon_value": task.epsilon_value}


def test_a_constant_epsilon_is_conservative_dpo(run):
    task = align_task(tiny_config("align", epsilon="constant", epsilon_value=0.2, **ALIGN), run)
    loss, policy, reference = loss_of(task)
    expected = 0.0
    for group in (0.5 * (policy - reference)).tolist():
        pairs = [group[0] - rejected for rejected in group[1:]]
        expected += sum(0.8 * np.log1p(np.exp(-u)) + 0.2 * np.log1p(np.exp(u)) for u in pairs) / len(pairs)
    assert float(loss.total) == pytest.approx(expected, abs=1e-4)


def test_spa_smooths_the_pairs_under_the_threshold_and_no_other(run):
    task = align_task(tiny_config("align", **SPA), run)
    before, _, _ = loss_of(task)
    assert float(before.sums["epsilon"][0]) == 0.0
    assert "spa_threshold" not in before.sums
    task.tracker.update(before.tracked)
    loss, policy, reference = loss_of(task)
    reward = 0.5 * (policy - reference)
    below = (reward[:, :1] - reward[:, 1:]) < task.tracker.threshold
    assert 0 < int(below.sum()) < below.numel()
    assert float(loss.sums["epsilon"][0]) == pytest.approx(0.2 * int(below.sum()))
    assert loss.sums["spa_threshold"] == (task.tracker.threshold, 1)
    assert float(loss.total) != pytest.approx(float(before.total), abs=1e-4)


def test_zero_trains_exactly_as_a_clamp_at_zero(run, tmp_path):
    figures = align_in_process(tiny_config("align", epsilon="zero", **ALIGN), run, tmp_path / "zero")
    align_in_process(tiny_config("align", epsilon_max=0.0, **ALIGN), run, tmp_path / "clamped")
    assert [line.get("loss") for line in lines(tmp_path / "zero")] == [
        line.get("loss") for line in lines(tmp_path / "clamped")
    ]
    zero, clamped = weights(tmp_path / "zero"), weights(tmp_path / "clamped")
    assert all(torch.equal(value, clamped[name]) for name, value in zero.items())
    assert (figures["epsilon_kind"], figures["epsilon_value"], figures["epsilon"]) == ("zero", 0.0, 0.0)


@pytest.mark.parametrize("kind", ["oracle", "constant", "shuffled"])
def test_metrics_show_the_epsilon_that_was_used(run, tmp_path, kind):
    config = tiny_config("align", epsilon=kind, epsilon_max=0.3, **ALIGN | {"log_every": 4})
    figures = align_in_process(config, run, tmp_path)
    used = np.minimum(stored(run), 0.3)
    # One line for the whole epoch: each pair counts once in it.
    line = lines(tmp_path)[-1]
    assert line["epsilon"] == pytest.approx(used.mean(), abs=1e-5)
    assert figures["epsilon_kind"] == kind
    by_strategy = [line[f"epsilon/{name}"] for name in ("self_hard", "semantic", "popularity")]
    if kind == "constant":
        assert by_strategy == pytest.approx([figures["epsilon_value"]] * 3, abs=1e-5)
    else:
        names = np.array(pq.read_table(run.groups)["strategy"].to_pylist())
        own = [used[names == name].mean() for name in ("self_hard", "semantic", "popularity")]
        assert (by_strategy == pytest.approx(own, abs=1e-5)) == (kind == "oracle")


@pytest.fixture(scope="module")
def spa(run, tmp_path_factory) -> Path:
    """Aligned with `spa`, every step at once."""
    out = tmp_path_factory.mktemp("spa")
    align_in_process(tiny_config("align", **SPA), run, out)
    return out


def assert_same_trajectory(one: Path, other: Path) -> None:
    assert_same_training(one, other, 1e-5)
    for name in ("epsilon", "spa_threshold"):
        found, expected = ([line[name] for line in lines(out) if name in line] for out in (one, other))
        assert found == pytest.approx(expected, abs=1e-5)


def test_spa_follows_the_quantile_of_the_margins_in_training(spa):
    found = [line for line in lines(spa) if "loss" in line]
    assert len(found) == 16
    assert found[0]["epsilon"] == 0.0
    assert "spa_threshold" not in found[0]
    shares = [line["epsilon"] / 0.2 for line in found[4:]]
    assert 0.1 < np.mean(shares) < 0.5
    assert len({line["spa_threshold"] for line in found[1:]}) == 15


def test_micro_batches_do_not_change_spa(run, spa, tmp_path):
    align_in_process(tiny_config("align", micro_batch_size=4, **SPA), run, tmp_path)
    assert_same_trajectory(spa, tmp_path)


def test_a_task_that_is_trained_again_begins_anew(run, spa, tmp_path):
    task = align_task(tiny_config("align", **SPA), run)
    prepare_process()
    for name in ("first", "again"):
        train_rank(task, micro_batches(task.plan, 0, 1), tmp_path / name)
        assert_same_trajectory(spa, tmp_path / name)


def align_rank(rank: int, run: str, out: str) -> None:
    """One rank's alignment with `spa` in the process group that is there; leaves its last threshold."""
    prepare_process()
    task = align_task(tiny_config("align", micro_batch_size=4, **SPA), RunPaths(Path(run)))
    train_rank(task, micro_batches(task.plan, rank, 2), Path(out))
    (Path(out) / f"threshold-{rank}").write_text(repr(task.tracker.threshold))


def test_two_ranks_train_as_one_and_agree_on_the_threshold(run, spa, tmp_path):
    two_ranks(align_rank, str(run.root), str(tmp_path))
    assert_same_trajectory(spa, tmp_path)
    assert (tmp_path / "threshold-0").read_text() == (tmp_path / "threshold-1").read_text()
