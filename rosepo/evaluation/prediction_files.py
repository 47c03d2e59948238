"""Lists of other systems in a user's files: whose they are, and which items they hold in which order.

Parquet, CSV or JSON Lines, in one of two shapes: a row is an example (or a user) with a list `items` of titles or item
ids, which CSV has as JSON; or a row is one entry of a list, an `item_id` with its `rank` (lowest first) or `score`
(highest first).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rosepo.data.catalogue import Catalogue
from rosepo.data.readers.columns import ids, numbers
from rosepo.data.readers.formats import Header, read_header, read_piece
from rosepo.data.readers.sources import Source
from rosepo.data.titles import ItemLookup, normalised
from rosepo.evaluation.rankings import NO_ITEM
from rosepo.utils.errors import UserError

_FORMATS = ("parquet", "csv", "jsonl")
_RANKINGS = {"target", "rank", "items", "scores"}
"""Columns that tell the rankings which `evaluate` writes."""


@dataclass(frozen=True)
class Shape:
    """What the columns of a file are.

    Attributes:
        key: the column that says whose a row is: example_id where there is one, else user_id.
        order: the column that orders entries, rank or score; None where a row has a list.
    """

    key: str
    order: str | None

    @property
    def items(self) -> str:
        """The column of items."""
        return "items" if self.order is None else "item_id"


def shape_of(source: Source, header: Header, key: str) -> Shape:
    """What the columns of a file are.

    Args:
        key: of the configuration, for messages.

    Raises:
        UserError: a file of another format, columns of neither shape or of both, or the rankings of a run.
    """
    where, names = f"{key}: {source.name}", header.names
    if source.format not in _FORMATS:
        raise UserError(f"{where} is {source.format}: give Parquet, CSV or JSON Lines")
    if set(names) >= _RANKINGS:
        raise UserError(
            f"{where} is a ranking of a run, which holds item indexes and no ids: evaluate that run's model "
            "(evaluate.models), or compare the runs (`rosepo compare`)"
        )
    have = f"(it has {', '.join(names)})"
    whose = next((name for name in ("example_id", "user_id") if name in names), None)
    if whose is None:
        raise UserError(f"{where} has no column 'user_id' or 'example_id' {have}: rename or add one")
    columns = [name for name in ("items", "item_id") if name in names]
    if len(columns) != 1:
        few = "both a column 'items' and a column 'item_id'" if columns else "no column 'items' or 'item_id'"
        raise UserError(f"{where} has {few} {have}: give lists in 'items', or an 'item_id' a row")
    if columns == ["items"]:
        return Shape(whose, None)
    orders = [name for name in ("rank", "score") if name in names]
    if len(orders) != 1:
        few = "both a column 'rank' and a column 'score'" if orders else "no column 'rank' or 'score'"
        raise UserError(f"{where} has one item a row and {few} {have}: give one of them, or lists in a column 'items'")
    return Shape(whose, orders[0])


class ItemIndex:
    """Item ids and titles to item indexes.

    Args:
        titles: text may be a title; else it is an id.
        ambiguous: titles may be shared: of `Hamlet` and `Hamlet (2)` nobody but rosepo knows which is which.

    Attributes:
        unknown: the first three entries that the catalogue does not hold.
    """

    def __init__(self, catalogue: Catalogue, titles: bool, ambiguous: bool) -> None:
        self._ids, self._ambiguous = catalogue.item_ids.tolist(), ambiguous
        self._lookup = ItemLookup(catalogue.titles if titles else [], self._ids)
        self.unknown: list[Any] = []

    def __call__(self, values: pa.Array, where: str) -> np.ndarray:
        """Item indexes int32 of integers or text, NO_ITEM for what the catalogue does not hold (and for nulls).

        Raises:
            UserError: values of another type, or text that may mean two items.
        """
        if pa.types.is_string_view(values.type):
            values = values.cast(pa.string())
        encoded = pa.types.is_dictionary(values.type)
        kind = values.type.value_type if encoded else values.type
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"{where} holds {kind}: give item ids (integers or text) or, in lists, titles")
        coded = values if encoded else values.dictionary_encode()
        found = [self._index(value, where) for value in coded.dictionary.to_pylist()]
        table = np.array([*found, NO_ITEM], dtype=np.int32)
        return table[coded.indices.fill_null(len(found)).to_numpy(zero_copy_only=False)]

    def _index(self, value: Any, where: str) -> int:
        found = self._lookup.find(value, where)
        if found is None:
            if len(self.unknown) < 3 and value not in self.unknown:
                self.unknown.append(value)
            return NO_ITEM
        if self._ambiguous and isinstance(value, str):
            items = [self._lookup.by_title.get(normalised(title)) for title in (value, f"{value} (2)")]
            if None not in items:
                both = " and ".join(repr(self._ids[item]) for item in items if item is not None)
                raise UserError(f"{where}: {value!r} is the title of several items ({both}): give item ids instead")
        return found


def read_headers(sources: Sequence[Source], key: str) -> tuple[list[Header], Shape]:
    """The headers of the files, and the shape that all of them have.

    Raises:
        UserError: see `shape_of`; files of several shapes, or one that cannot be read.
    """
    headers = [read_header(source, "interactions") for source in sources]
    first, *others = (shape_of(source, header, key) for source, header in zip(sources, headers, strict=True))
    for source, shape in zip(sources[1:], others, strict=True):
        if shape != first:
            raise UserError(f"{key}: {source.name} has other columns than {sources[0].name}: give files of one kind")
    return headers, first


def read_rows(
    sources: Sequence[Source], headers: Sequence[Header], shape: Shape, index: ItemIndex, key: str
) -> Iterator[tuple[pa.Array, np.ndarray, np.ndarray]]:
    """All rows, a stretch at a time.

    Yields:
        whose the n rows are (int64 or text); their items, indexes int32, of lists one after the other; and of lists
        their lengths int64 [n], of entries what orders them, float64 [n], lowest first.

    Raises:
        UserError: an id, rank or score that is missing or of another type; a list that is none.
    """
    # By the name `rating`, JSON Lines reads numbers as such whichever kind its first rows have.
    columns = {"user_id": shape.key, "item_id": shape.items} | ({"rating": shape.order} if shape.order else {})
    for source, header in zip(sources, headers, strict=True):
        where = f"{key}: {source.name}"
        for piece in header.pieces:
            for row, table in read_piece(piece, header, columns, "interactions"):
                if not len(table):
                    continue
                values = table[shape.items].combine_chunks()
                if shape.order is None:
                    values, numbered = _flat_lists(values, where, row)
                else:
                    numbered = _ordered(table[shape.order], shape.order, where, row)
                keys = ids(table[shape.key], shape.key, where, row)
                yield keys, index(values, f"{where}: column '{shape.items}'"), numbered


def _ordered(column: pa.ChunkedArray, name: str, where: str, row: int) -> np.ndarray:
    remedy = f"'{name}' must be a number in every row"
    values = numbers(column, name, where, row, remedy)
    if values.null_count:
        raise UserError(f"{where}: {values.null_count} rows have no {name}: {remedy}")
    order = values.to_numpy(zero_copy_only=False)
    return -order if name == "score" else order


def _flat_lists(column: pa.Array, where: str, row: int) -> tuple[pa.Array, np.ndarray]:
    """The entries of all lists end to end, and the length of each list, 0 for a null."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        column = _parsed(column, where, row)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return column.flatten(), lengths


def _parsed(column: pa.Array, where: str, row: int) -> pa.Array:
    """Lists out of text that is JSON: of integers where there is nothing else, else of text."""
    rows: list[list[Any]] = []
    for number, text in enumerate(column.to_pylist(), row):
        try:
            entries = json.loads(text) if isinstance(text, str) else [] if text is None else text
        except (ValueError, RecursionError):  # also an integer of thousands of digits, and lists in lists in lists
            entries = text
        if not isinstance(entries, list) or not all(map(_is_entry, entries)):
            raise UserError(
                f"{where}: row {number}: items {str(text)[:60]!r} is not a JSON list such as "
                '["Title A", "Title B"]: write one'
            )
        rows.append(entries)
    try:
        return pa.array(rows, pa.list_(pa.int64()))
    except (pa.ArrowException, OverflowError):
        texts = [[None if entry is None else str(entry) for entry in entries] for entries in rows]
        return pa.array(texts, pa.list_(pa.string()))


def _is_entry(value: Any) -> bool:
    """Whether a value of JSON can be an item; a null stands for one that is not known."""
    return value is None or (isinstance(value, (str, int)) and not isinstance(value, bool))
