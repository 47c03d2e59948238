"""The items that can be recommended: ids, titles, categories and how often each occurs in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.utils.errors import UserError
from rosepo.utils.imports import find_callable

ITEMS_FILE = "_items.parquet"
"""What holds it, in the folder of the examples; in that of an evaluation, where items were added."""
COLUMNS = ("item_id", "title", "categories", "train_count")


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Items in a fixed order; an item's place in it is the *item index* used everywhere inside.

    Attributes:
        item_ids: [n_items] int64, or object holding str, as in the user's data.
        titles: [n_items] titles as the model reads and writes them; no two are equal after normalisation.
        categories: [n_items] tuples, empty where unknown.
        train_count: [n_items] int64, interactions in the training part.
        added: how many of the items, the last ones, came after `prepare`: no stage knows them, see `added_items`.
    """

    item_ids: np.ndarray
    titles: list[str]
    categories: list[tuple[str, ...]]
    train_count: np.ndarray
    added: int = 0

    def __len__(self) -> int:
        return len(self.titles)

    def same_items(self, other: Catalogue) -> bool:
        """Whether an item index means the same item and title in both."""
        return np.array_equal(self.item_ids, other.item_ids) and self.titles == other.titles

    @property
    def own(self) -> Catalogue:
        """The items that `prepare` found, without those that were added behind them."""
        n = len(self) - self.added
        return Catalogue(self.item_ids[:n], self.titles[:n], self.categories[:n], self.train_count[:n])

    def save(self, path: Path) -> None:
        """Write one Parquet file (columns item_id, title, categories, train_count), in item order; where items were
        added, a column `added` says which."""
        categories = pa.array([list(entry) or None for entry in self.categories], type=pa.list_(pa.string()))
        id_type = pa.int64() if self.item_ids.dtype.kind == "i" else pa.string()
        table = pa.table(
            {
                "item_id": pa.array(self.item_ids, type=id_type),
                "title": pa.array(self.titles, type=pa.string()),
                "categories": categories,
                "train_count": pa.array(self.train_count, type=pa.int64()),
            }
        )
        if self.added:
            table = table.append_column("added", pa.array(np.arange(len(self)) >= len(self) - self.added))
        pq.write_table(table, path, compression="zstd")

    @classmethod
    def load(cls, path: Path) -> Catalogue:
        """Read what `save` wrote.

        Raises:
            UserError: no such file, not Parquet, or other columns.
        """
        try:
            table = pq.read_table(path, partitioning=None)
        except FileNotFoundError:
            raise UserError(f"catalogue {path} does not exist: run `rosepo prepare` first") from None
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"catalogue {path} cannot be read as Parquet: {error}") from error
        missing = [name for name in COLUMNS if name not in table.column_names]
        if missing:
            raise UserError(f"catalogue {path} has no column '{missing[0]}': run `rosepo prepare` again")
        ids = table["item_id"].combine_chunks()
        integer = pa.types.is_integer(ids.type)
        return cls(
            item_ids=ids.to_numpy().astype(np.int64) if integer else np.array(ids.to_pylist(), dtype=object),
            titles=table["title"].to_pylist(),
            categories=[tuple(entry or ()) for entry in table["categories"].to_pylist()],
            train_count=table["train_count"].to_numpy().astype(np.int64),
            added=int(table["added"].to_numpy().sum()) if "added" in table.column_names else 0,
        )


def ranked_items(examples: Path, evaluation: Path) -> Path:
    """The file of the items that an evaluation ranked: its own where some were added, else that of the examples."""
    own = evaluation / ITEMS_FILE
    return own if own.is_file() else examples / ITEMS_FILE


def made_for(catalogue: Catalogue, path: str, key: str, kind: str) -> Callable[..., Any]:
    """The callable that `module:callable` of the user's own makes for a catalogue.

    Args:
        key: of the configuration that names it, for messages.
        kind: what shall be made, for messages.

    Raises:
        UserError: no such module or callable, it raises, or what it returns is no callable.
    """
    maker = find_callable(path, key)
    try:
        made = maker(catalogue)
    except Exception as error:
        raise UserError(f"{key}: {path} cannot be called with a catalogue: {type(error).__name__}: {error}") from error
    if not callable(made):
        raise UserError(f"{key}: {path} returns {type(made).__name__} and not a {kind}")
    result: Callable[..., Any] = made
    return result
