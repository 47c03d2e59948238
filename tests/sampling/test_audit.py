"""What `rosepo check --groups` finds, on tables that people may have made themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rosepo.data.prompts import PromptBuilder
from rosepo.sampling.audit import SCORES, audit_candidates, audit_groups
from rosepo.utils.errors import UserError
from tests.helpers import run_table, tiny_builder, tiny_catalogue

Change = Callable[[list[dict[str, Any]]], object]


def write_run(root: Path, change: Change = lambda rows: None, shown: int = 1) -> tuple[Path, Path]:
    """Examples of ten users in two files, whose histories show one item of two (or `shown`), and groups of two rejected
    titles."""
    groups, examples = root / "groups", root / "examples"
    for folder in (groups, examples / "_sequences"):
        folder.mkdir(parents=True)
    tiny_catalogue(20).save(examples / "_items.parquet")
    made = []
    for file in range(2):
        rows, sequences = [], []
        for user in range(5 * file, 5 * file + 5):
            past, target = [user, user + 1], user + 2
            sequences.append({"user_id": user, "items": [*past, target]})
            rows.append({"example_id": f"{user}:2", "user_id": user, "split": "train", "position": 2,
                         "history": past[-shown:], "target": target})  # fmt: skip
            made.append({"example_id": f"{user}:2", "prompt_ids": [1], "chosen_item": target, "chosen_ids": [5, 2],
                         "rejected_items": [user + 5, user + 6], "rejected_ids": [[6, 2], [7, 2]],
                         "strategy": ["uniform", "self_hard"], "epsilon": [0.0, 0.4],
                         "oracle_scores": [1.0, 0.0, 1.0], "ref_logps": [-3.0, -4.0, -5.0]})  # fmt: skip
        pq.write_table(run_table(rows), examples / f"part-{file:05d}.parquet")
        pq.write_table(run_table(sequences), examples / "_sequences" / f"part-{file:05d}.parquet")
    change(made)
    for part in range(0, len(made), 4):
        pq.write_table(run_table(made[part : part + 4]), groups / f"part-{part:05d}.parquet")
    return groups, examples


def test_a_table_that_keeps_its_promises_is_counted(tmp_path: Path) -> None:
    found = audit_groups(*write_run(tmp_path, lambda rows: rows.__delitem__(slice(4, 5))))
    assert found == {
        "groups": 9,
        "pairs": 18,
        "negatives": 2,
        "epsilon": {"self_hard": pytest.approx(0.4), "uniform": 0.0},
        "prompts_cut": None,
    }


def test_a_table_of_titles_alone_is_counted(tmp_path: Path) -> None:
    def titles_alone(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            for name in SCORES:
                del row[name]

    found = audit_groups(*write_run(tmp_path, titles_alone))
    assert (found["groups"], found["epsilon"]) == (10, {})
    with pytest.raises(UserError, match="no column 'strategy'"):
        audit_groups(*write_run(tmp_path / "other", lambda rows: [row.pop("strategy") for row in rows]))


def with_tokens(builder: PromptBuilder, change: Change = lambda rows: None) -> Change:
    def fill(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            items = [row["chosen_item"], *row["rejected_items"]]
            row["prompt_ids"] = builder.prompt([row["chosen_item"] - 1])[0].tolist()
            row["chosen_ids"], *row["rejected_ids"] = (builder.completion(item).tolist() for item in items)
        change(rows)

    return fill


def test_tokens_are_those_that_the_evaluation_decodes(tmp_path: Path) -> None:
    builder = tiny_builder(20)
    assert audit_groups(*write_run(tmp_path, with_tokens(builder)), builder)["prompts_cut"] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[6]["prompt_ids"].pop(), "6:2 has another prompt than its history gives"),
        (lambda rows: rows[6]["chosen_ids"].pop(), "6:2 has a title with other tokens"),
        (lambda rows: rows[6]["rejected_ids"][1].insert(0, 3), "6:2 has a title with other tokens"),
    ],
)
def test_other_tokens_are_told_with_the_example(tmp_path: Path, change: Change, words: str) -> None:
    builder = tiny_builder(20)
    with pytest.raises(UserError, match=words):
        audit_groups(*write_run(tmp_path, with_tokens(builder, change)), builder)


def write_candidates(examples: Path, lists: np.ndarray) -> None:
    """Examples whose target is item 0 of lists [n, C] of item indexes; nothing was seen before."""
    rows = [{"example_id": f"{row}:1", "user_id": row, "split": "train", "position": 0, "history": [], "target": 0,
             "candidates": items} for row, items in enumerate(lists.tolist())]  # fmt: skip
    pq.write_table(run_table(rows), examples / "part-00000.parquet")


def test_a_slot_only_probe_of_even_lists_scores_at_chance(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_candidates(tmp_path, np.stack([rng.permutation(4) for _ in range(4000)]))
    found = audit_candidates(tmp_path)
    assert found is not None
    assert (found["lists"], found["candidates"]) == (4000, 4)
    assert found["probe"] == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("row", "words"), [([1, 2], "without its target"), ([0, 0], "a candidate twice"), ([0, 1], "slot 0")]
)
def test_lists_that_give_the_target_away_are_refused(tmp_path: Path, row: list[int], words: str) -> None:
    write_candidates(tmp_path, np.array([row] * 100))
    with pytest.raises(UserError, match=words):
        audit_candidates(tmp_path)


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
        (
            setting("rejected_items", lambda row: [20, row["rejected_items"][1]]),
            "an item that is none of the 20",
        ),
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
