"""The user's files as tables with our columns: items into memory, interactions as a stream through Ray Data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rosepo.config import DataConfig
from rosepo.data.readers import columns as cols
from rosepo.data.readers.formats import Header, Piece, read_header, read_piece
from rosepo.data.readers.sources import EMBEDDED, Source, find_sources, size_of
from rosepo.data.readers.times import times
from rosepo.data.readers.title_template import columns_of, filled
from rosepo.utils.errors import UserError

if TYPE_CHECKING:
    from ray.data import Dataset

NUMBER = "give a number"
FILE_ROWS = 1 << 40
"""No file has more rows."""


@dataclass(frozen=True)
class Plan:
    """What is to be read, after everything that can be known from headers was checked.

    Attributes:
        files: the files and what their headers say.
        mappings: for each file, our field name to its column name.
        types: of our id columns: int64 or text.
        named: the key that says where the files lie, and what it says, for messages.
    """

    files: tuple[tuple[Source, Header], ...]
    mappings: tuple[dict[str, str], ...]
    types: dict[str, pa.DataType]
    named: str

    @property
    def pieces(self) -> list[tuple[int, Piece]]:
        """The read tasks, each with the number of its file."""
        return [(number, piece) for number, (_, header) in enumerate(self.files) for piece in header.pieces]

    @property
    def rows(self) -> int | None:
        """Rows, where the files tell without being read through."""
        counts = [header.rows for _, header in self.files]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def bytes(self) -> int:
        """Bytes of the files as stored."""
        return sum(size_of(source) for source, _ in self.files)

    def has(self, field: str) -> bool:
        """Whether a file has the field."""
        return any(field in mapping for mapping in self.mappings)


def plan_reading(config: DataConfig, kind: str) -> Plan:
    """Find the files of `kind` (interactions or items) and check their headers.

    Raises:
        UserError: no data configured, a missing or empty file or column, an unreadable file.
    """
    return plan_files(config, kind, _location(config, kind), config.format, f"data.{kind}")


def plan_files(config: DataConfig, kind: str, location: str, data_format: str, key: str) -> Plan:
    """The same of files that lie elsewhere than `data.interactions` and `data.items` say.

    Args:
        config: says what their columns are called.
        location, data_format, key: see `find_sources`.
    """
    sources = find_sources(location, data_format, key)
    files = tuple((source, read_header(source, kind)) for source in sources)
    mappings = tuple(cols.match_columns(header.names, config.columns, kind, source.name) for source, header in files)
    types = {}
    for field in ("user_id", "item_id"):
        found = {cols.id_type(header.types[m[field]]) for (_, header), m in zip(files, mappings) if field in m}
        if found:
            types[field] = pa.int64() if found == {pa.int64()} else pa.string()
    plan = Plan(files, mappings, types, f"{key}={location}")
    if plan.rows == 0:
        raise UserError(f"{plan.named} has no rows")
    return plan


def data_files(config: DataConfig) -> dict[str, Source]:
    """The files behind `data.interactions` and `data.items`, by name.

    Raises:
        UserError: as `plan_reading`.
    """
    plans = [plan_reading(config, kind) for kind in ("interactions", "items")]
    return {source.name: source for plan in plans for source, _ in plan.files}


def interaction_schema(plan: Plan) -> pa.Schema:
    """Columns of normalised interactions: ids int64 or text, rating float64 or null, timestamp float64 Unix seconds,
    row int64: where it stands in all files together, which are sorted by path (with gaps between files)."""
    return pa.schema(
        [
            ("user_id", plan.types["user_id"]),
            ("item_id", plan.types["item_id"]),
            ("rating", pa.float64()),
            ("timestamp", pa.float64()),
            ("row", pa.int64()),
        ]
    )


def interaction_tables(plan: Plan, number: int, piece: Piece) -> Iterator[pa.Table]:
    """Normalised interactions of one read task.

    Raises:
        UserError: naming file and row, for a value that is missing, not of its type, NaN or infinite.
    """
    source, header = plan.files[number]
    mapping, where = plan.mappings[number], source.name
    for row, table in read_piece(piece, header, mapping, "interactions"):
        if not table.num_rows:
            continue
        timestamp = times(table[mapping["timestamp"]], "timestamp", where, row)
        ratings = pa.nulls(table.num_rows, pa.float64())
        if "rating" in mapping:
            ratings = cols.numbers(table[mapping["rating"]], "rating", where, row, NUMBER)
        arrays = [
            _typed(cols.ids(table[mapping[field]], field, where, row), plan.types[field], field, where)
            for field in ("user_id", "item_id")
        ]
        places = pa.array(np.arange(row, row + table.num_rows) + number * FILE_ROWS)
        yield pa.table([*arrays, ratings, timestamp, places], schema=interaction_schema(plan))


def read_interactions(plan: Plan, counter: Any) -> Dataset:
    """The interactions as a Ray Dataset of normalised rows, with a column `fault`: null, or what is wrong with a file.

    `counter` is the handle of an actor whose `add` is told how many rows were read.

    Faults travel as rows, so that they reach the user as one sentence instead of the traceback of a failed task.
    """
    import ray

    tasks = [{"task": number} for number in range(len(plan.pieces))]
    read = partial(_read_task, plan, counter)
    return ray.data.from_items(tasks, override_num_blocks=max(1, len(tasks))).map_batches(
        read, batch_size=1, batch_format="pyarrow"
    )


def read_items(config: DataConfig) -> pa.Table:
    """All items: item_id (int64 or text; integers where all text is), title, categories (list of text or null).

    Sorted by item_id: that order is the item order everywhere.

    Raises:
        UserError: as the plan, and for duplicate ids and empty titles.
    """
    items = listed_items(plan_reading(config, "items"), config.columns.title)
    items = items.set_column(0, "item_id", cols.integers_if_all(items["item_id"].combine_chunks()))
    return items.sort_by("item_id").combine_chunks()


def listed_items(plan: Plan, title: str) -> pa.Table:
    """The same in the order of the files, ids in the type that the files have.

    Args:
        title: `data.columns.title`.

    Raises:
        UserError: see `read_items`.
    """
    tables = []
    for number, piece in plan.pieces:
        source, header = plan.files[number]
        mapping, where = plan.mappings[number], source.name
        separator = " " if mapping.get("categories") in header.sequences else "|"
        for row, table in read_piece(piece, header, mapping, "items"):
            if table.num_rows:
                tables.append(_item_table(table, mapping, where, row, separator, plan, title))
    if not tables:
        raise UserError(f"{plan.named} has no rows")
    items = pa.concat_tables(tables)
    counts = items["item_id"].combine_chunks().value_counts()
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        value, count = repeated[0]["values"].as_py(), repeated[0]["counts"].as_py()
        raise UserError(f"{plan.named}: item_id {value!r} occurs {count} times: keep one row an item")
    return items


def _item_table(
    table: pa.Table, mapping: dict[str, str], where: str, row: int, separator: str, plan: Plan, title: str
) -> pa.Table:
    categories = pa.nulls(table.num_rows, pa.list_(pa.string()))
    if name := mapping.get("categories"):
        categories = cols.categories(table[name], name, where, separator)
    titles = filled(title, table, where) if columns_of(title) else table[mapping["title"]]
    return pa.table(
        {
            "item_id": _typed(
                cols.ids(table[mapping["item_id"]], "item_id", where, row), plan.types["item_id"], "item_id", where
            ),
            "title": cols.text(titles, "title", where, row),
            "categories": categories,
        }
    )


def _read_task(plan: Plan, counter: Any, batch: pa.Table) -> Iterator[pa.Table]:
    schema = interaction_schema(plan)
    for task in batch["task"].to_pylist():
        number, piece = plan.pieces[task]
        try:
            yield _with_fault(schema.empty_table(), None)
            for table in interaction_tables(plan, number, piece):
                counter.add.remote(table.num_rows)
                yield _with_fault(table, None)
        except UserError as error:
            row = pa.table([pa.nulls(1, field.type) for field in schema], schema=schema)
            yield _with_fault(row, str(error))


def _with_fault(table: pa.Table, fault: str | None) -> pa.Table:
    return table.append_column("fault", pa.array([fault] * table.num_rows, pa.string()))


def _typed(values: pa.Array, kind: pa.DataType, field: str, where: str) -> pa.Array:
    if values.type == kind:
        return values
    if pa.types.is_string(kind):
        return values.cast(kind)
    raise UserError(f"{where}: column '{field}' is text here and integers elsewhere: store it in one type")


def _location(config: DataConfig, kind: str) -> str:
    if config.dataset is not None:
        return f"{EMBEDDED}{config.dataset.replace('-', '_')}/{kind}.parquet"
    location = getattr(config, kind)
    if location is None:
        raise UserError(
            f"data.{kind} is not set: name files with data.interactions and data.items, "
            "or take data.dataset=movietweetings-100k"
        )
    return str(location)
