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
from rosepo.lm.rows.batch import Batch
from rosepo.lm.rows.logps import plain_logps
from rosepo.run.paths import RunPaths
from rosepo.sampling.titles import title_spans
from rosepo.training.align import align, align_in_process, align_task
from rosepo.training.engine import prepare_process
from rosepo.training.feed.feed import micro_batches
from rosepo.training.feed.parquet_rows import ParquetRows
from rosepo.training.feed.schedule import WINDOW
from rosepo.training.loop import train_rank
from rosepo.utils.errors import UserError
from tests.training.ranks import two_ranks
from tests.training.tiny_run import ITEMS, assert_same_training, lines, tiny_config

USERS = 9
WHOLE = {"log_every": 1, "learning_rate": 1e-3, "beta": 0.5, "epochs": 3, "zero_stage": 0, "pack_tokens": None}
"""One step an epoch, so that both kinds of rows see the same groups in every step."""

LIKELIHOOD = {"rows", "batch_size", "micro_batch_size", "zero_stage", "epochs", "sft_on", "sft_weight"}
"""Settings that a loss without a preference takes too."""


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
            prompt, dropped = builder.prompt(walk[:place])
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
                    "title_spans": title_spans(builder, walk[:place], dropped, place - 1).tolist(),
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
    sft = {"sft_weight": 0.5, "sft_on": "row"}
    align_in_process(by_user(**sft), users, tmp_path / "whole")
    configs = {
        "packed": by_user(**sft, micro_batch_size=2, pack_tokens=120),
        "cut": by_user(**sft, micro_batch_size=1, row_tokens=40, zero_stage=2),
    }
    two_ranks(train_split, str(users.root), configs, str(tmp_path))
    align_in_process(by_user(**sft, micro_batch_size=2, row_tokens=1), users, tmp_path / "single")
    for name in (*configs, "single"):
        assert_same_training(tmp_path / "whole", tmp_path / name, 1e-5)


def test_every_title_of_a_step_weighs_the_same_in_its_likelihood(users, tmp_path):
    task = align_task(by_user(sft_weight=0.5, sft_on="row"), users)
    (arrays,) = micro_batches(task.plan, 0, 1, range(1))
    logps = torch.randn(int(arrays["row_offsets"][-1]), generator=torch.Generator().manual_seed(0))
    loss = task.loss(logps, torch.ones_like(logps), arrays)
    plain = align_task(by_user(), users).loss(logps[: arrays["ref_logps"].size], torch.ones(1), arrays)
    titles = torch.cat([logps[: arrays["ref_logps"].size : 3], logps[arrays["ref_logps"].size :]])
    assert arrays["titles"] == len(titles) == loss.sums["title_nll"][1]
    expected = plain.total / loss.units - 0.5 * titles.mean()
    assert float(loss.summed(loss.units, len(titles)) / loss.units) == pytest.approx(float(expected), abs=1e-5)


def test_going_on_with_fine_tuning_teaches_a_row_s_titles_without_the_rejected_ones(users):
    found = []
    for loss in ("dpo", "sft"):
        train = {key: value for key, value in by_user(sft_on="row", sft_weight=0.5).align if key in LIKELIHOOD}
        task = align_task(tiny_config("align", loss=loss, **train), users)
        (arrays,) = micro_batches(task.plan, 0, 1, range(1))
        made = task.loss(*task.build()(Batch.from_numpy(arrays)), arrays)
        found.append((float(made.titles.detach()), float(arrays["titles"]), made.units, int(arrays["row_offsets"][-1])))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert found[1][1:3] == found[0][1:3]
    assert found[1][3] == found[0][3] - 2 * found[0][2] == found[1][1]


def test_the_validation_loss_is_the_same_whatever_titles_rows_teach(users, tmp_path):
    held = RunPaths(tmp_path / "run")
    shutil.copytree(users.root, held.root)
    shutil.copyfile(held.groups / "part-00000.parquet", held.groups / "_validation.parquet")
    still = {"learning_rate": 1e-12, "weight_decay": 0.0, "epochs": 1}
    found = [
        align_in_process(by_user(**still, **sft), held, tmp_path / str(number))["validation_loss"]
        for number, sft in enumerate({"sft_weight": 0.5, "sft_on": on} for on in ("chosen", "row"))
    ]
    without = align_in_process(by_user(**still), held, tmp_path / "without")["validation_loss"]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0] > without + 1.0


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


def test_groups_of_an_earlier_version_are_refused_where_titles_are_learned(users, tmp_path):
    other = RunPaths(tmp_path)
    other.sft.symlink_to(users.sft)
    other.groups.mkdir()
    table = pq.read_table(users.groups / "part-00000.parquet").drop_columns("title_spans")
    pq.write_table(table, other.groups / "part-00000.parquet")
    align_task(by_user(sft_weight=1.0), other)
    with pytest.raises(UserError, match=r"no column 'title_spans'.*pairs --overwrite"):
        align_task(by_user(sft_weight=1.0, sft_on="row"), other)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rows": "group", "row_tokens": 512}, "align.rows=trajectory alone"),
        ({"sft_on": "row", "rows": "trajectory"}, "sft_weight above 0"),
        ({"sft_on": "chosen"}, "sft_weight above 0"),
        ({"rows": "group", "sft_on": "row", "sft_weight": 1.0}, "needs align.rows=trajectory"),
    ],
)
def test_settings_of_rows_that_are_not_used_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        parse_config({"align": settings})


@pytest.mark.slow
def test_trajectory_rows_go_through_ray(users, ray_cluster, tmp_path):
    config = by_user(rows="trajectory", sft_weight=0.5, sft_on="row", workers=2, micro_batch_size=3, batch_size=5)
    figures = align(config, users, tmp_path)
    assert figures["steps"] == 6
    assert figures["users"] == USERS
    assert lines(tmp_path)[1]["title_nll"] > 0
    assert math.isfinite(figures["loss"])
