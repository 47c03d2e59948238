"""Histories as people write them, item ids or titles, to item indexes."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rosepo.data.catalogue import Catalogue
from rosepo.data.titles import ItemLookup, normalised
from rosepo.utils.errors import UserError

COLUMNS = ("user_id", "history")


class HistoryReader:
    """Item ids or titles to item indexes, see `ItemLookup`."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._lookup = ItemLookup(catalogue.titles, catalogue.item_ids.tolist())
        self._titles = catalogue.titles

    def indexes(self, entries: Sequence[Any], where: str) -> np.ndarray:
        """Item indexes int64 of ids or titles, oldest first.

        Raises:
            UserError: an entry that is neither, naming `where` it stands and the nearest titles; or text that is the
                title of one item and the id of another.
        """
        return np.array([self._index(entry, where) for entry in entries], dtype=np.int64)

    def _index(self, entry: Any, where: str) -> int:
        found = self._lookup.find(entry, where)
        if found is not None:
            return found
        near = difflib.get_close_matches(normalised(str(entry)), self._lookup.by_title, n=3, cutoff=0.5)
        titles = ", ".join(repr(self._titles[self._lookup.by_title[name]]) for name in near)
        hint = f"the nearest titles are {titles}" if near else "no title comes near it"
        raise UserError(f"{where}: {entry!r} is neither a title nor an item id of the model's catalogue; {hint}")


def read_histories(file: str, reader: HistoryReader) -> tuple[list[int | str | None] | None, list[np.ndarray]]:
    """`user_id` of every row (None without that column) and the histories as item indexes.

    CSV gives text; Parquet and JSON Lines may give integers too.

    Raises:
        UserError: no such file, a kind that is not read, no column `history`, no row, or (naming the row) an unknown
            title, or a user_id that is neither text nor an integer.
    """
    names, rows = _read_rows(Path(file))
    if rows and "history" not in names:
        raise UserError(f"{file} has no column 'history' (it has {', '.join(names)})")
    if not rows:
        raise UserError(f"{file} holds no rows")
    users, histories = [], []
    for number, row in enumerate(rows, 1):
        where = f"{file}, row {number}"
        users.append(_user(row.get("user_id"), where))
        histories.append(reader.indexes(_entries(row.get("history"), where), where))
    return (users if "user_id" in names else None), histories


def _user(value: Any, where: str) -> int | str | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, str))):
        raise UserError(f"{where}: user_id {str(value)!r} is neither text nor an integer: store it as text")
    return value


def _entries(value: Any, where: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise UserError(f'{where}: history {value!r} is not a JSON list such as ["Title A", "Title B"]') from None
    if not isinstance(value, list) or any(entry is None for entry in value):
        raise UserError(f"{where}: history {value!r} is not a list of titles or item ids")
    return value


def _read_rows(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of all columns, and the rows with those that are used."""
    import pyarrow.csv
    import pyarrow.parquet

    kind = path.suffix.lower()
    try:
        if kind in (".jsonl", ".json", ".ndjson"):
            return _json_rows(path)
        if kind == ".parquet":
            found = pyarrow.parquet.read_table(path)
        elif kind == ".csv":
            text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string()))
            found = pyarrow.csv.read_csv(path, convert_options=text)
        else:
            raise UserError(f"--file {path}: give a .parquet, .csv or .jsonl file")
    except FileNotFoundError:
        raise UserError(f"--file {path} does not exist") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"--file {path} cannot be read: {error}") from error
    used = [name for name in COLUMNS if name in found.column_names]
    return found.column_names, found.select(used).to_pylist()


def _json_rows(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    # Not by Arrow, which takes text that looks like a date for one, and no list of both numbers and text.
    rows = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(f"--file {path}, line {number} is not JSON: {error}") from None
            if not isinstance(rows[-1], dict):
                raise UserError(f"--file {path}, line {number} is not a JSON object with a history: {line[:80]!r}")
    return list(dict.fromkeys(name for row in rows for name in row)), rows
