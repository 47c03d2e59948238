"""Runs of small real models for the tests of the pairs stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rosepo.config import Config, parse_config
from rosepo.data.catalogue import Catalogue
from rosepo.lm.cards.record import model_record
from rosepo.lm.model.model_folder import save_policy
from rosepo.oracle.sasrec import SASRec, SASRecConfig
from rosepo.run.paths import RunPaths
from rosepo.utils.files import write_json
from tests.helpers import run_table, tiny_catalogue, tiny_model, tiny_tokenizer

N_USERS, N_ITEMS = 320, 30


def configure(**section: Any) -> Config:
    cache = {} if section.get("score") is False else {"reference_cache": "no"}
    candidates = {"prepare": {"candidates": 5}} if "candidates" in section.get("strategies", {}) else {}
    tree = {"seed": 5, "model": {"max_length": 128}, "pairs": {"negatives": 2, **cache, **section}, **candidates}
    return parse_config(tree)


def write_examples(folder: Path, catalogue: Catalogue) -> None:
    """Users with three to eight items, leave one out; two files."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(N_USERS):
        items = random.permutation(len(catalogue))[: 3 + user % 6].tolist()
        for position in range(1, len(items)):
            split = {len(items) - 1: "test", len(items) - 2: "validation"}.get(position, "train")
            rows.append({"example_id": f"{user}:{position}", "user_id": user, "split": split, "position": position,
                         "history": items[:position], "target": items[position]})  # fmt: skip
    table = run_table(rows)
    folder.mkdir()
    for number in range(2):
        half = len(table) // 2
        pq.write_table(table.slice(number * half, half + number), folder / f"part-{number:05d}.parquet")
    catalogue.save(folder / "_items.parquet")


def save_oracle(run: RunPaths, model: SASRec, item_ids: np.ndarray) -> None:
    """One model for all users."""
    model.save(run.oracle, item_ids, tau=0.7)
    write_json(run.oracle / "folds.json", {"folds": 1, "seed": 0})


def make_run(root: Path) -> RunPaths:
    """A run's folder with examples, an untrained policy and an untrained oracle."""
    outputs, catalogue = RunPaths(root), tiny_catalogue(N_ITEMS)
    write_examples(outputs.examples, catalogue)
    save_policy(
        outputs.sft, tiny_model(max_length=128), tiny_tokenizer(N_ITEMS), catalogue, model_record(configure(), "sft")
    )
    torch.manual_seed(0)
    save_oracle(outputs, SASRec(SASRecConfig(n_items=N_ITEMS, hidden_size=16)), catalogue.item_ids)
    return outputs


def borrow(run: RunPaths, root: Path, *names: str) -> RunPaths:
    """A run's folder with some outputs of another one."""
    root.mkdir()
    for name in names:
        (root / name).symlink_to(getattr(run, name))
    return RunPaths(root)


def read(folder: Path) -> pa.Table:
    """The table of a folder of parts."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))])
