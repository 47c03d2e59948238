"""A training whose micro-batches have a bounded number of tokens is the same training, whoever brings how much."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rosepo.lm.model.policy import load_recommender
from rosepo.lm.rows.batch import Batch, collate
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.rows.prefix_sharing import Group, user_rows
from rosepo.run.paths import RunPaths
from rosepo.training.align import align_in_process, align_task
from rosepo.training.engine import Engine, prepare_process
from rosepo.training.feed.feed import micro_batches
from rosepo.training.rank import fit_in_process, train_rank
from rosepo.training.sft import sft_task
from tests.training.ranks import two_ranks
from tests.training.tiny_run import ITEMS, assert_same_training, lines, tiny_config

MOST = 160
WINDOW = 16
"""Titles of a history at most; it begins anew at every multiple of half of them."""


def uneven_run(alone: Path, folder: Path, positives: list[int]) -> RunPaths:
    """A run whose users have so many groups of two titles each."""
    outputs = RunPaths(folder)
    shutil.copytree(alone, outputs.sft)
    recommender = load_recommender(outputs.sft)
    builder, model = recommender.builder, LogpsModel(recommender.model)
    rng = np.random.default_rng(4)
    rows: list[dict[str, Any]] = []
    for user, count in enumerate(positives):
        walk = rng.integers(ITEMS, size=count + 1)
        groups = []
        for place in range(1, count + 1):
            start = max(0, -(-(place - WINDOW) // (WINDOW // 2)) * (WINDOW // 2))
            items = [walk[place], (walk[place] + 7) % ITEMS]
            groups.append(Group(builder.prompt(walk[start:place])[0], [builder.completion(int(one)) for one in items]))
        logps = np.zeros((count, 2), dtype=np.float32)
        with torch.no_grad():
            for found in user_rows(groups, 512):
                logps[found.groups] = model(collate([found.row]))[0].view(-1, 2).numpy()
        for place, (group, ref) in enumerate(zip(groups, logps, strict=True)):
            rows.append(
                {
                    "example_id": f"{user}:{place}",
                    "user_id": f"u{user}",
                    "prompt_ids": group.prompt.tolist(),
                    "chosen_ids": group.completions[0].tolist(),
                    "rejected_ids": [group.completions[1].tolist()],
                    "strategy": ["self_hard"],
                    "epsilon": [float(rng.uniform(0, 0.49))],
                    "oracle_scores": rng.normal(size=2).tolist(),
                    "ref_logps": ref.tolist(),
                }
            )
    outputs.groups.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), outputs.groups / "part-00000.parquet", row_group_size=100)
    return outputs


@pytest.fixture(scope="module")
def uneven(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    return uneven_run(alone, tmp_path_factory.mktemp("uneven"), [1, 60, 2, 1, 3, 1, 30])


@contextmanager
def forwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Lines and tokens, padding included, of every batch that a model sees."""
    seen: list[tuple[int, int]] = []
    forward = LogpsModel.forward

    def noted(model: LogpsModel, batch: Batch) -> Any:
        if model.training:  # not where the reference is looked at before the first step
            seen.append((len(batch.input_ids), batch.input_ids.numel()))
        return forward(model, batch)

    with monkeypatch.context() as patched:
        patched.setattr(LogpsModel, "forward", noted)
        yield seen


ALIGN = {"batch_size": 7, "micro_batch_size": 7, "row_tokens": 96, "epochs": 2, "log_every": 1, "learning_rate": 1e-3}


def aligning(**train: Any) -> Any:
    if train.get("rows") == "group":
        return tiny_config("align", **{name: value for name, value in ALIGN.items() if name != "row_tokens"} | train)
    return tiny_config("align", **ALIGN | {"rows": "trajectory"} | train)


@pytest.mark.parametrize("pack_tokens", [None, 100])
@pytest.mark.parametrize("rows", ["group", "trajectory"])
@pytest.mark.parametrize("loss", ["softmax", "pairwise"])
def test_alignment_does_not_depend_on_the_bound(
    uneven: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, rows: str, pack_tokens: int | None
) -> None:
    found = {}
    kind = {"loss": loss, "rows": rows, "sft_weight": 0.3, "pack_tokens": pack_tokens, "epochs": 1}
    for most in (2**20, MOST):
        with forwards(monkeypatch) as seen:
            align_in_process(aligning(micro_batch_tokens=most, **kind), uneven, tmp_path / str(most))
        found[most] = seen
    assert_same_training(tmp_path / str(2**20), tmp_path / str(MOST), 1e-5)
    for one, other in zip(lines(tmp_path / str(2**20)), lines(tmp_path / str(MOST)), strict=True):
        for name in ("margin", "accuracy", "logp_chosen", "margin/self_hard"):
            assert one.get(name) == pytest.approx(other.get(name), abs=1e-4)
    assert max(tokens for _, tokens in found[2**20]) > MOST
    assert all(tokens <= MOST or count == 1 for count, tokens in found[MOST])
    assert len(found[MOST]) > len(found[2**20])


@pytest.mark.parametrize("pack_tokens", [None, 100])
def test_fine_tuning_does_not_depend_on_the_bound(
    tiny_run: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack_tokens: int | None
) -> None:
    for most in (None, MOST):
        config = tiny_config(micro_batch_tokens=most, pack_tokens=pack_tokens, log_every=1)
        with forwards(monkeypatch) as seen:
            fit_in_process(sft_task(config, tiny_run), tmp_path / str(most))
        assert (max(tokens for _, tokens in seen) > MOST) == (most is None)
    assert_same_training(tmp_path / "None", tmp_path / str(MOST), 1e-5)
    tokens = [[line["token_loss"] for line in lines(tmp_path / str(most))[1:]] for most in (None, MOST)]
    assert tokens[0] == pytest.approx(tokens[1], abs=1e-5)


def test_a_user_of_2000_positives_trains(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = uneven_run(alone, tmp_path, [2, 2000, 1])
    settings = {"batch_size": 2, "micro_batch_size": 2, "row_tokens": 256, "epochs": 1}
    for most, bound in ((1024, 1024), (None, 2 * 256)):
        with forwards(monkeypatch) as seen:
            config = aligning(**settings, loss="softmax", micro_batch_tokens=most)
            figures = align_in_process(config, run, tmp_path / str(most))
        assert max(tokens for _, tokens in seen) <= bound
        assert sum(tokens for _, tokens in seen) > 50 * bound
        assert (figures["steps"], figures["groups"], figures["users"]) == (2, 2003, 3)
    assert_same_training(tmp_path / "1024", tmp_path / "None", 1e-5)


def train_unevenly(rank: int, run: str, configs: dict[str, Any], out: str) -> None:
    prepare_process()
    calls: list[bool] = []
    accumulate = Engine.accumulate

    def counted(engine: Engine, loss: torch.Tensor, units: float, last: bool = True) -> None:
        calls.append(last)
        accumulate(engine, loss, units, last)

    Engine.accumulate = counted  # type: ignore[method-assign]
    for name, config in configs.items():
        task = align_task(config, RunPaths(Path(run)))
        mine = len(list(filter(None, micro_batches(task.plan, rank, 2))))
        train_rank(task, micro_batches(task.plan, rank, 2), Path(out) / name)
        (Path(out) / f"{name}-{rank}.txt").write_text(f"{mine} {len(calls)} {sum(calls)}")
        calls.clear()


def test_ranks_of_very_unequal_users_train_as_one(uneven: RunPaths, tmp_path: Path) -> None:
    align_in_process(aligning(micro_batch_tokens=2**20, zero_stage=0, loss="softmax"), uneven, tmp_path / "alone")
    bounded = {"micro_batch_size": 2, "micro_batch_tokens": MOST, "loss": "softmax", "workers": 2}
    configs = {f"zero-{stage}": aligning(**bounded, zero_stage=stage) for stage in (1, 3)}
    two_ranks(train_unevenly, str(uneven.root), configs, str(tmp_path))
    for name in configs:
        assert_same_training(tmp_path / "alone", tmp_path / name, 1e-5)
        (mine, calls, steps), (others, other_calls, other_steps) = (
            map(int, (tmp_path / f"{name}-{rank}.txt").read_text().split()) for rank in range(2)
        )
        assert mine != others
        assert calls == other_calls >= max(mine, others)
        assert steps == other_steps == 2
