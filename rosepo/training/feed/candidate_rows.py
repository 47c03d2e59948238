"""Fine-tuning on prompts that list candidates: every training example is a row of its own.

Prompts of one user are no prefixes of one another when each lists candidates of its own, so no row can teach several
of a user's titles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rosepo.data.item_columns import item_lists, item_matrix, items_of
from rosepo.data.prompts import PromptBuilder
from rosepo.lm.rows.rows import Row, group_row
from rosepo.training.feed.encoders import collated
from rosepo.training.feed.plan import Arrays
from rosepo.utils.errors import UserError

COLUMNS = ("history", "target", "candidates")


@dataclass(frozen=True)
class ExampleEncoder:
    """Rows of the examples table as micro-batches of rows of one completion, the target's."""

    builder: PromptBuilder
    pack_tokens: int | None = None
    most_tokens: int | None = None

    def __call__(self, rows: pa.Table, parts: int) -> list[Arrays]:
        return collated(example_rows(rows, self.builder), parts, self.pack_tokens, self.most_tokens)


def example_rows(examples: pa.Table, builder: PromptBuilder) -> list[Row]:
    """One row an example (columns history, target, and candidates where prompts list them): prompt, then target."""
    listed = item_matrix(examples, "candidates") if builder.lists_candidates else None
    prompts, _ = builder.prompts(item_lists(examples, "history"), listed)
    targets = items_of(examples, "target").tolist()
    return [group_row(prompt, [builder.completion(target)]) for prompt, target in zip(prompts, targets, strict=True)]


def training_rows(examples: Path) -> np.ndarray:
    """Where the training examples stand in the table of examples, all its files in order: int64 [n], ascending.

    Raises:
        UserError: there are none.
    """
    found, start = [np.zeros(0, dtype=np.int64)], 0
    for table in _tables(examples, ["split"]):
        found.append(start + np.flatnonzero(pc.equal(table["split"], "train").to_numpy()))
        start += len(table)
    rows = np.concatenate(found)
    if not len(rows):
        raise UserError(f"{examples} holds no training examples: lower prepare.min_history, or take more data")
    return rows


def check_room(examples: Path, builder: PromptBuilder) -> None:
    """Refuse candidates that leave no room in a prompt for the newest item, before any work; all splits are looked at.

    Raises:
        UserError: no candidates, or the example that needs the most tokens.
    """
    worst, name = 0, ""
    cost = builder.piece_lengths
    for table in _tables(examples, ["example_id", "history", "candidates"]):
        if not len(table):
            continue
        listed = cost[item_matrix(table, "candidates")].sum(axis=1)
        newest = [history[-1:] for history in item_lists(table, "history")]
        needed = listed + np.array([int(cost[items].sum()) for items in newest])
        row = int(needed.argmax())
        if needed[row] > worst:
            worst, name = int(needed[row]), table["example_id"][row].as_py()
    least = builder.template_tokens + worst + builder.longest_completion
    if least > builder.max_length:
        raise UserError(
            f"model.max_length={builder.max_length} has no room for the candidates of example {name} beside one item "
            f"of its history: raise it to {least}, or lower prepare.candidates"
        )


def _tables(examples: Path, columns: list[str]) -> Iterator[pa.Table]:
    """These columns of every file, in the order in which `ParquetRows` numbers rows."""
    for path in sorted(examples.glob("part-*.parquet")):
        if "candidates" not in pq.read_schema(path).names:
            raise UserError(
                f"{path} has no candidate lists, which prompts list under model.template.candidates=true: set "
                "prepare.candidates to at least 2 and run `rosepo prepare` again"
            )
        yield pq.read_table(path, columns=columns, partitioning=None)
