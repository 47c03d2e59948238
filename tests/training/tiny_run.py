"""A tiny run to train on: forty items, sixty users, one clear pattern (the next item is the neighbour)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from rosepo.config import Config, parse_config
from rosepo.data.catalogue import Catalogue
from rosepo.data.item_columns import INDEX
from rosepo.run.paths import RunPaths
from tests.helpers import run_table

ITEMS, USERS = 40, 60


def tiny_config(
    section: str = "sft", model: dict[str, Any] | None = None, other: dict[str, Any] | None = None, **train: Any
) -> Config:
    """A configuration that trains in seconds; keys go to the named section, `other` sections stand beside it."""
    scratch = {"hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 32, "vocab_size": 300, "dropout": 0.0}
    base = {"batch_size": 8, "micro_batch_size": 8, "learning_rate": 5e-3, "epochs": 1.0, "log_every": 2}
    if section == "align":
        base |= {"loss": "pairwise", "rows": "group"}
    return parse_config(
        {
            "seed": 3,
            "model": model or {"scratch": scratch, "max_length": 128},
            section: {**base, "cpus_per_worker": 0.5, **train},
            **(other or {}),
        }
    )


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """The `examples` folder of a run."""
    outputs = RunPaths(tmp_path_factory.mktemp("run"))
    rng = np.random.default_rng(0)
    titles = [f"Film {chr(65 + index % 26)}{index}" for index in range(ITEMS)]
    (outputs.examples / "_trajectories").mkdir(parents=True)
    Catalogue(np.arange(ITEMS, dtype=np.int64) + 100, titles, [()] * ITEMS, np.full(ITEMS, 3, np.int64)).save(
        outputs.examples / "_items.parquet"
    )
    walks = [(int(rng.integers(ITEMS)) + np.arange(int(rng.integers(3, 8)))) % ITEMS for _ in range(USERS)]
    _write_examples(outputs.examples, walks)
    trajectories = pa.table(
        {
            "user_id": list(range(USERS)),
            "items": pa.array([walk[:-1].tolist() for walk in walks], pa.list_(INDEX)),
            "n_targets": pa.array([len(walk) - 2 for walk in walks], pa.int32()),
        }
    )
    for part in range(3):
        pq.write_table(
            trajectories.slice(part * 20, 20),
            outputs.examples / "_trajectories" / f"part-{part:05d}.parquet",
            row_group_size=7,
        )
    return outputs


@pytest.fixture(scope="session")
def alone(tiny_run: RunPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained by one rank, the whole batch at once, with plain data parallelism."""
    from rosepo.training.rank import fit_in_process
    from rosepo.training.sft import sft_task

    out = tmp_path_factory.mktemp("alone")
    fit_in_process(sft_task(tiny_config(zero_stage=0, epochs=2), tiny_run), out)
    return out


@pytest.fixture(scope="session")
def run(tiny_run: RunPaths, alone: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run with a model and groups."""
    outputs = RunPaths(tmp_path_factory.mktemp("aligned"))
    shutil.copytree(alone, outputs.sft)
    write_groups(outputs)
    return outputs


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in lines(folder) if "loss" in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    name = "adapter_model.safetensors" if (folder / "adapter_config.json").exists() else "model.safetensors"
    return load_file(folder / name)


def assert_same_training(one: Path, other: Path, tolerance: float) -> None:
    assert losses(one) == pytest.approx(losses(other), abs=10 * tolerance)
    norms = [[line["grad_norm"] for line in lines(folder) if "grad_norm" in line] for folder in (one, other)]
    assert norms[0] == pytest.approx(norms[1], rel=10 * tolerance, abs=10 * tolerance)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value, second[name], rtol=0, atol=tolerance), name


def write_groups(outputs: RunPaths, negatives: int = 2, rows: int = 32) -> Path:
    """A groups table with the log-probabilities of the model in `outputs.reference`, one row a completion."""
    from rosepo.lm.model.policy import load_recommender
    from rosepo.lm.rows.plain_rows import plain_logps

    recommender = load_recommender(outputs.reference)
    rng = np.random.default_rng(1)
    made = []
    for row in range(rows):
        history = (rng.integers(ITEMS) + np.arange(3)) % ITEMS
        items = [(history[-1] + 1) % ITEMS, *rng.choice(np.delete(np.arange(ITEMS), history), negatives, replace=False)]
        prompt, _ = recommender.builder.prompt(history)
        completions = [recommender.builder.completion(int(item)) for item in items]
        with torch.no_grad():
            logps, _ = plain_logps(recommender.model, [prompt] * len(items), completions)
        ids = [completion.tolist() for completion in completions]
        made.append(
            {
                "example_id": f"{row}:3",
                "user_id": row,
                "prompt_ids": prompt.tolist(),
                "chosen_item": int(items[0]),
                "chosen_ids": ids[0],
                "rejected_items": [int(item) for item in items[1:]],
                "rejected_ids": ids[1:],
                "strategy": [("self_hard", "semantic", "popularity")[(row + k) % 3] for k in range(negatives)],
                "epsilon": rng.uniform(0, 0.49, negatives).tolist(),
                "oracle_scores": rng.normal(size=1 + negatives).tolist(),
                "ref_logps": logps.tolist(),
            }
        )
    outputs.groups.mkdir(exist_ok=True)
    pq.write_table(run_table(made), outputs.groups / "part-00000.parquet", row_group_size=10)
    return outputs.groups


def _write_examples(folder: Path, walks: list[np.ndarray]) -> None:
    rows = [
        {
            "example_id": f"{user}:{position}",
            "user_id": user,
            "split": "validation" if position == len(walk) - 1 else "train",
            "position": position,
            "history": walk[:position].tolist(),
            "target": int(walk[position]),
        }
        for user, walk in enumerate(walks)
        for position in range(1, len(walk))
    ]
    pq.write_table(run_table(rows), folder / "part-00000.parquet")


@pytest.fixture(scope="module")
def base_model(tiny_run: RunPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model that adapters are trained on."""
    from rosepo.training.rank import fit_in_process
    from rosepo.training.sft import sft_task
    from tests.training.kills import config_of

    out = tmp_path_factory.mktemp("base")
    fit_in_process(sft_task(config_of(0, epochs=0.2), tiny_run), out)
    return out
