"""What `rosepo check --groups` finds, on tables that people may have made themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rosepo.errors import UserError
from rosepo.sampling.audit import audit_groups
from tests.helpers import tiny_catalogue

Change = Callable[[list[dict[str, Any]]], object]


def write_run(root: Path, change: Change = lambda rows: None) -> tuple[Path, Path]:
    """Examples of ten users in two files, whose histories show one item of two, and groups of two rejected titles."""
    groups, examples = root / "groups", root / "examples"
    for folder in (groups, examples / "_sequences"):
        folder.mkdir(parents=True)
    catalogue = tiny_catalogue(20)
    catalogue.save(examples / "_items.parquet")
    items = catalogue.item_ids.tolist()
    made = []
    for file in range(2):
        rows, sequences = [], []
        for user in range(5 * file, 5 * file + 5):
            past, target = [items[user], items[user + 1]], items[user + 2]
            sequences.append({"user_id": user, "items": [*past, target]})
            rows.append({"example_id": f"{user}:2", "user_id": user, "split": "train", "position": 2,
                         "history": past[1:], "target": target})  # fmt: skip
            made.append({"example_id": f"{user}:2", "chosen_item": target, "chosen_ids": [5, 2],
                         "rejected_items": [items[user + 5], items[user + 6]], "rejected_ids": [[6, 2], [7, 2]],
                         "strategy": ["uniform", "self_hard"], "epsilon": [0.0, 0.4],
                         "oracle_scores": [1.0, 0.0, 1.0], "ref_logps": [-3.0, -4.0, -5.0]})  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), examples / f"part-{file:05d}.parquet")
        pq.write_table(pa.Table.from_pylist(sequences), examples / "_sequences" / f"part-{file:05d}.parquet")
    change(made)
    for part in range(0, len(made), 4):
        pq.write_table(pa.Table.from_pylist(made[part : part + 4]), groups / f"part-{part:05d}.parquet")
    return groups, examples


def test_a_table_that_keeps_its_promises_is_counted(tmp_path: Path) -> None:
    found = audit_groups(*write_run(tmp_path, lambda rows: rows.__delitem__(slice(4, 5))))
    assert found == {
        "groups": 9,
        "pairs": 18,
        "negatives": 2,
        "epsilon": {"self_hard": pytest.approx(0.4), "uniform": 0.0},
    }


def setting(key: str, value: Any) -> Change:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[6][key] = value(rows[6]) if callable(value) else value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (setting("rejected_items", lambda row: [row["chosen_item"], row["rejected_items"][1]]), "rejects its chosen"),
        (setting("rejected_items", lambda row: [row["rejected_items"][0]] * 2), "one title twice"),
        (setting("rejected_items", lambda row: [row["chosen_item"] - 2, row["rejected_items"][1]]), "chosen before"),
        (setting("rejected_items", lambda row: [10**9, row["rejected_items"][1]]), "not one of the 20"),
        (setting("rejected_items", lambda row: row["rejected_items"][:1]), "another number of rejected titles"),
        (setting("chosen_item", lambda row: row["rejected_items"][0] + 1), "another chosen title"),
        (setting("epsilon", [0.5, 0.1]), "outside"),
        (setting("epsilon", [math.nan, 0.1]), "outside"),
        (setting("ref_logps", [-3.0, -math.inf, -5.0]), "ref_logps that are not finite"),
        (setting("oracle_scores", [1.0, 0.0]), "oracle_scores for another number"),
        (setting("rejected_ids", [[5, 2], [7, 2]]), "same tokens"),
        (setting("example_id", "5:2"), "twice"),
        (setting("example_id", "nobody:2"), "nobody:2 is no training example"),
    ],
)
def test_a_broken_promise_is_told_with_the_example(tmp_path: Path, change: Change, words: str) -> None:
    with pytest.raises(UserError, match=words):
        audit_groups(*write_run(tmp_path, change))


def test_a_folder_without_groups_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rosepo pairs"):
        audit_groups(tmp_path, tmp_path)
