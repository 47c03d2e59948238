"""Alignment on trajectory rows: the same steps as on rows of one group, however users are split."""

from __future__ import annotations

import itertools
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rosepo.config import parse_config
from rosepo.lm.model.policy import load_recommender
from rosepo.lm.rows.plain_rows import plain_logps
from rosepo.run.paths import RunPaths
from rosepo.training.align import align, align_in_process, align_task
from rosepo.training.engine import prepare_process
from rosepo.training.feed.feed import micro_batches
from rosepo.training.feed.parquet_rows import ParquetRows
from rosepo.training.feed.schedule import WINDOW
from rosepo.training.rank import train_rank
from rosepo.utils.errors import UserError
from tests.training.ranks import two_ranks
from tests.training.tiny_run import ITEMS, assert_same_training, lines, tiny_config

USERS = 9
WHOLE = {"log_every": 1, "learning_rate": 1e-3, "beta": 0.5, "epochs": 3, "zero_stage": 0, "pack_tokens": None}
"""One step an epoch, so that both kinds of rows see the same groups in every step."""


@pytest.fixture(scope="module")
def users(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run whose users have one to seven groups of three titles each, in two parts that split a user."""
    outputs = RunPaths(tmp_path_factory.mktemp("users"))
    shutil.copytree(alone, outputs.sft)
    recommender = load_recommender(outputs.sft)
    builder = recommender.builder
    rng = np.random.default_rng(4)
    rows: list[dict[str, Any]] = []
    for user in range(USERS):
        walk = (rng.integers(ITEMS) + np.arange(2 + user % 7)) % ITEMS
        for place in range(1, len(walk)):
            items = [walk[place], *rng.choice(np.setdiff1d(np.arange(ITEMS), walk), 2, replace=False)]
            prompt, _ = builder.prompt(walk[:place])
            titles = [builder.completion(int(item)) for item in items]
            rows.append(
                {
                    "example_id": f"{user}:{place}",
                    "user_id": f"u{user}",
                    "prompt_ids": prompt.tolist(),
                    "chosen_ids": titles[0].tolist(),
                    "rejected_ids": [ids.tolist() for ids in titles[1:]],
                    "strategy": [("self_hard", "semantic", "popularity")[(place + k) % 3] for k in range(2)],
                    "epsilon": rng.uniform(0, 0.49, 2).tolist(),
                    "oracle_scores": rng.normal(size=3).tolist(),
                    "ref_logps": logps_of(recommender.model, prompt, titles),
                }
            )
    outputs.groups.mkdir()
    table = pa.Table.from_pylist(rows)
    for part, (start, stop) in enumerate([(0, 14), (14, len(table))]):
        pq.write_table(table.slice(start, stop - start), outputs.groups / f"part-{part:05d}.parquet", row_group_size=4)
    return outputs


def logps_of(model: torch.nn.Module, prompt: np.ndarray, titles: list[np.ndarray]) -> list[float]:
    """Log-probabilities of titles behind a prompt, one row a title."""
    with torch.no_grad():
        found: list[float] = plain_logps(model, [prompt] * len(titles), titles)[0].tolist()
    return found


def by_group(**train: Any) -> Any:
    return tiny_config("align", **WHOLE | {"batch_size": 64, "micro_batch_size": 64} | train)


def by_user(**train: Any) -> Any:
    return tiny_config(
        "align", **WHOLE | {"rows": "trajectory", "batch_size": USERS, "micro_batch_size": USERS} | train
    )


def train_split(rank: int, run: str, configs: dict[str, Any], out: str) -> None:
    prepare_process()
    for name, config in configs.items():
        task = align_task(config, RunPaths(Path(run)))
        train_rank(task, micro_batches(task.plan, rank, 2), Path(out) / name)


@pytest.mark.parametrize(
    "beside",
    [
        {},
        {"sft_weight": 0.3},
        {"epsilon": "shuffled"},
        {"epsilon": "spa"},
        {"loss": "softmax"},
        {"loss": "simpo"},
        {"loss": "ipo", "ipo_average": True},
    ],
)
def test_trajectory_rows_train_as_rows_of_one_group(users, tmp_path, beside):
    groups = align_in_process(by_group(**beside), users, tmp_path / "groups")
    figures = align_in_process(by_user(**beside), users, tmp_path / "users")
    assert_same_training(tmp_path / "groups", tmp_path / "users", 1e-5)
    assert figures["users"] == figures["rows"] / 3 == USERS
    assert figures["groups"] == groups["groups"] == len(ParquetRows(users.groups))
    assert figures["tokens"] < 0.8 * groups["tokens"]
    for name in ("margin", "accuracy", "logp_chosen", "margin/semantic"):
        assert figures[name] == pytest.approx(groups[name], abs=1e-4)


def test_neither_ranks_nor_micro_batches_nor_rows_nor_packing_change_what_users_teach(users, tmp_path):
    sft = {"sft_weight": 0.5}
    align_in_process(by_user(**sft), users, tmp_path / "whole")
    configs = {
        "packed": by_user(**sft, micro_batch_size=2, pack_tokens=120),
        "cut": by_user(**sft, micro_batch_size=1, row_tokens=40, zero_stage=2),
    }
    two_ranks(train_split, str(users.root), configs, str(tmp_path))
    align_in_process(by_user(**sft, micro_batch_size=2, row_tokens=1), users, tmp_path / "single")
    for name in (*configs, "single"):
        assert_same_training(tmp_path / "whole", tmp_path / name, 1e-5)


def test_the_pad_share_is_that_of_the_batches(users, tmp_path):
    for number, pack_tokens in enumerate((None, 200)):
        config = by_user(micro_batch_size=3, pack_tokens=pack_tokens, epochs=1)
        align_in_process(config, users, tmp_path / str(number))
        batches = [arrays for arrays in micro_batches(align_task(config, users).plan, 0, 1) if arrays]
        tokens, size = (sum(f(arrays["segment"]) for arrays in batches) for f in (lambda s: (s >= 0).sum(), np.size))
        assert lines(tmp_path / str(number))[-1]["pad_share"] == pytest.approx(1 - tokens / size, abs=1e-6)


def test_users_are_found_across_parts_and_row_groups(users):
    names = pa.concat_tables([pq.read_table(path) for path in sorted(users.groups.glob("*"))])["user_id"].to_pylist()
    offsets = align_task(by_user(), users).plan.offsets
    assert [set(names[start:stop]) for start, stop in itertools.pairwise(offsets)] == [{f"u{n}"} for n in range(USERS)]
    assert offsets[-1] == len(names)


def test_rows_of_users_are_shuffled_among_about_as_many_groups(users):
    alone, together = (align_task(config, users).plan for config in (by_group(), by_user()))
    assert alone.window == WINDOW
    assert together.window * together.n_table_rows / together.n_rows == pytest.approx(WINDOW, rel=1e-3)


def test_fewer_groups_are_those_of_whole_users(users, tmp_path):
    for epsilon in ("oracle", "shuffled"):
        plan = align_task(by_user(epsilon=epsilon), users, max_groups=14).plan
        assert plan.n_rows == USERS * 14 // len(ParquetRows(users.groups))
        (arrays,) = micro_batches(plan, 0, 1, range(1))
        table = plan.take(ParquetRows(plan.folder, list(plan.columns)), np.arange(plan.n_rows))
        assert len(table) == plan.n_table_rows == arrays["units"]
        assert len(set(table["user_id"].to_pylist())) == plan.n_rows


def test_a_column_of_an_earlier_version_is_passed_over(users, tmp_path):
    other = RunPaths(tmp_path)
    other.sft.symlink_to(users.sft)
    other.groups.mkdir()
    for path in sorted(users.groups.glob("part-*.parquet")):
        table = pq.read_table(path)
        spans = pa.array([[1, 3]] * len(table), pa.list_(pa.int32()))
        pq.write_table(table.append_column("title_spans", spans), other.groups / path.name)
    found, plain = (next(micro_batches(align_task(by_user(), run).plan, 0, 1)) for run in (other, users))
    assert found.keys() == plain.keys()
    assert all(np.array_equal(found[name], plain[name]) for name in plain)


def test_a_setting_of_trajectories_is_refused_where_rows_are_groups():
    with pytest.raises(UserError, match=r"align\.rows=trajectory alone"):
        parse_config({"align": {"rows": "group", "row_tokens": 512}})


@pytest.mark.slow
def test_trajectory_rows_go_through_ray(users, ray_cluster, tmp_path):
    config = by_user(rows="trajectory", sft_weight=0.5, workers=2, micro_batch_size=3, batch_size=5)
    figures = align(config, users, tmp_path)
    assert figures["steps"] == 6
    assert figures["users"] == USERS
    assert math.isfinite(figures["loss"])
