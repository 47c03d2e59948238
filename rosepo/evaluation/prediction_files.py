"""Other systems' recommendations in a user's file: whose they are, and which items in which order.

A row is a user (or an example) with a list, or one entry of a list with its rank or score.
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
from rosepo.data.titles import normalised
from rosepo.utils.errors import UserError

KEYS = ("example_id", "user_id", "userId", "user")
LISTS = ("item_ids", "items", "titles", "recommendations", "predictions")
ENTRIES = ("item_id", "itemId", "movieId", "movie_id", "item", "title")
ORDERS = ("rank", "score")
UNKNOWN = -2
"""What stands for an entry that is no item of the catalogue."""
_IDS, _TITLES = ("item_id", "item_ids", "itemId", "movieId", "movie_id"), ("title", "titles")
_FORMATS = ("parquet", "csv", "tsv", "jsonl")


@dataclass(frozen=True)
class Layout:
    """What the columns of a file are.

    Attributes:
        key: column that says whose a row is; `by_example` where it names examples.
        entries: column of items; `listed` where a row has a list of them.
        order: column that orders the entries of one list; None where they come as lists.
    """

    key: str
    entries: str
    listed: bool
    order: str | None

    @property
    def by_example(self) -> bool:
        return self.key == "example_id"


@dataclass(frozen=True)
class Answers:
    """A stretch of rows. Where they come as lists, `lengths` int64 says how many of `items` each of `keys` has; else
    keys and items go together and `order` float64 ranks them, lowest first. Items are int32 indexes, or UNKNOWN."""

    keys: pa.Array
    items: np.ndarray
    lengths: np.ndarray | None
    order: np.ndarray | None


class ItemReader:
    """Item ids or titles to item indexes, each text looked up once.

    Args:
        ambiguous: titles may be shared: of `Hamlet` and `Hamlet (2)` nobody but rosepo knows which is which.
    """

    def __init__(self, catalogue: Catalogue, ambiguous: bool) -> None:
        self._catalogue, self._ambiguous = catalogue, ambiguous
        self._titles = {normalised(title): index for index, title in enumerate(catalogue.titles)}
        self._ids = {str(item): index for index, item in enumerate(catalogue.item_ids.tolist())}
        self._known: dict[Any, int] = {}
        self.unknown: list[Any] = []
        self.misnamed: tuple[str, str] | None = None
        """The first column that has names ids (or titles) and holds what is one of the other: its name, and which."""

    def __call__(self, values: pa.Array, column: str, where: str) -> np.ndarray:
        """Item indexes int32 of integers or text, UNKNOWN for what the catalogue does not hold (and for nulls).

        Raises:
            UserError: values of another type, or text that may mean two items.
        """
        if pa.types.is_string_view(values.type):
            values = values.cast(pa.string())
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        if pa.types.is_null(kind):
            return np.full(len(values), UNKNOWN, dtype=np.int32)
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"{where}: column '{column}' holds {kind}: items must be ids (integers or text) or titles")
        coded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
        found = [self._index(value, column, where) for value in coded.dictionary.to_pylist()]
        table = np.array([*found, UNKNOWN], dtype=np.int32)
        return table[coded.indices.fill_null(len(found)).to_numpy(zero_copy_only=False)]

    def _index(self, value: Any, column: str, where: str) -> int:
        if value not in self._known:
            self._known[value] = self._look_up(value, column, where)
            if self._known[value] == UNKNOWN:
                self.unknown.append(value)
        return self._known[value]

    def _look_up(self, value: Any, column: str, where: str) -> int:
        text = str(value).strip()
        by_id = None if column in _TITLES else self._ids.get(text)
        by_title = None if column in _IDS or not isinstance(value, str) else self._titles.get(normalised(text))
        if by_id is not None and by_title not in (None, by_id):
            raise UserError(
                f"{where}: {text!r} is the id of {self._catalogue.titles[by_id]!r} and the title of another item: "
                "name the column item_ids or titles"
            )
        if by_title is not None and self._ambiguous:
            other = self._titles.get(normalised(f"{text} (2)"))
            if other is not None:
                both = " and ".join(map(repr, self._catalogue.item_ids[[by_title, other]].tolist()))
                raise UserError(f"{where}: {text!r} is the title of several items ({both}): give item ids instead")
        found = by_id if by_id is not None else by_title
        if found is None and self.misnamed is None:
            if column in _IDS and normalised(text) in self._titles:
                self.misnamed = column, "titles"
            elif column in _TITLES and text in self._ids:
                self.misnamed = column, "item_ids"
        return UNKNOWN if found is None else found


def layout_of(source: Source, header: Header, key: str) -> Layout:
    """What the columns of a file are.

    Args:
        key: of the configuration, for messages.

    Raises:
        UserError: none says whose the rows are, none has items, or nothing orders them.
    """
    if source.format not in _FORMATS:
        raise UserError(f"{key}: {source.name} is {source.format}: give Parquet, CSV, TSV or JSON Lines")
    have = f"(it has {', '.join(header.names)})"
    whose = next((name for name in KEYS if name in header.names), None)
    if whose is None:
        raise UserError(f"{key}: {source.name} has no column 'user_id' or 'example_id' {have}: rename or add one")
    entries = next((name for name in (*LISTS, *ENTRIES) if name in header.names), None)
    if entries is None:
        raise UserError(
            f"{key}: {source.name} has no column 'items', 'titles', 'item_id' or 'title' {have}: rename one"
        )
    listed = entries in LISTS or _is_list(header.types[entries])
    order = None if listed else next((name for name in ORDERS if name in header.names), None)
    if not listed and order is None:
        raise UserError(
            f"{key}: {source.name} has one item a row and no column 'rank' or 'score' {have}: add one, or give lists "
            "in a column 'items'"
        )
    return Layout(whose, entries, listed, order)


def read_answers(sources: Sequence[Source], reader: ItemReader, key: str) -> Iterator[tuple[Layout, Answers]]:
    """All rows, a stretch at a time.

    Raises:
        UserError: see `layout_of`; files of several layouts; a key, rank or score that is missing or of another type;
            a list that is none.
    """
    first: Layout | None = None
    for source in sources:
        header = read_header(source, "interactions")
        layout = layout_of(source, header, key)
        first = first or layout
        if layout != first:
            raise UserError(f"{key}: {source.name} has other columns than {sources[0].name}: give files of one kind")
        # By the name `rating`, JSON Lines reads numbers as such whichever kind its first rows have.
        columns = {"user_id": layout.key, "item_id": layout.entries}
        columns |= {"rating": layout.order} if layout.order else {}
        for piece in header.pieces:
            for row, table in read_piece(piece, header, columns, "interactions"):
                if len(table):
                    yield layout, _answers(table, layout, reader, f"{key}: {source.name}", row)


def _answers(table: pa.Table, layout: Layout, reader: ItemReader, where: str, row: int) -> Answers:
    keys = ids(table[layout.key], layout.key, where, row)
    column = table[layout.entries].combine_chunks()
    if layout.listed:
        values, lengths, name = _flat_lists(column, layout.entries, where, row)
        return Answers(keys, reader(values, name, where), lengths, None)
    assert layout.order is not None
    remedy = f"'{layout.order}' must be a number in every row"
    order = numbers(table[layout.order], layout.order, where, row, remedy)
    if order.null_count:
        raise UserError(f"{where}: {order.null_count} rows have no {layout.order}: {remedy}")
    ranks = order.to_numpy(zero_copy_only=False)
    return Answers(keys, reader(column, layout.entries, where), None, -ranks if layout.order == "score" else ranks)


def _flat_lists(column: pa.Array, name: str, where: str, row: int) -> tuple[pa.Array, np.ndarray, str]:
    """The entries of all lists end to end, the length of each list, 0 for a null, and the name that says what they are:
    the column's, or that of a field inside of it."""
    if not _is_list(column.type):
        column = _parsed(column, name, where, row)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = column.flatten()
    if pa.types.is_struct(values.type):  # as `rosepo recommend` writes them
        inner = next((field for field in ("item_id", "title") if values.type.get_field_index(field) >= 0), None)
        if inner is None:
            raise UserError(f"{where}: column '{name}' holds {values.type}: give lists of titles or item ids")
        return values.field(inner), lengths, inner
    return values, lengths, name


def _parsed(column: pa.Array, name: str, where: str, row: int) -> pa.Array:
    """Lists out of text that is JSON: of integers where there is nothing else, else of text."""
    rows: list[list[Any]] = []
    for number, text in enumerate(column.to_pylist(), row):
        try:
            entries = json.loads(text) if isinstance(text, str) else [] if text is None else text
        except (ValueError, RecursionError):  # also an integer of thousands of digits, and lists in lists in lists
            entries = text
        if not isinstance(entries, list) or not all(map(_is_entry, entries)):
            shown = str(text)[:60]
            raise UserError(
                f'{where}: row {number}: {name} {shown!r} is not a JSON list such as ["Title A", "Title B"]'
            )
        rows.append(entries)
    given = [entry for entries in rows for entry in entries if entry is not None]
    if all(isinstance(entry, int) and abs(entry) < 2**63 for entry in given):
        return pa.array(rows, pa.list_(pa.int64()))
    made = [[None if entry is None else str(entry) for entry in entries] for entries in rows]
    return pa.array(made, pa.list_(pa.string()))


def _is_entry(value: Any) -> bool:
    """Whether a value of JSON can be an item; a null stands for one that is not known."""
    return value is None or (isinstance(value, (str, int)) and not isinstance(value, bool))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
