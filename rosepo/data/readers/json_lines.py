"""JSON Lines by Arrow, with types that hold for all rows: Arrow alone would keep to those of its first block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.json as pajson


def first_schema(stream: pa.NativeFile, block_bytes: int) -> pa.Schema:
    """Keys and types of the rows in the first block."""
    return pajson.open_json(stream, read_options=pajson.ReadOptions(block_size=block_bytes)).schema


def tables(
    stream: pa.NativeFile, types: Mapping[str, pa.DataType], mapping: Mapping[str, str], block_bytes: int
) -> Iterator[pa.Table]:
    """Stretches of rows with the columns of `mapping` (our field to the file's name); keys without one are passed over.

    Args:
        types: those of `first_schema`.
    """
    schema = pa.schema(list({name: _type(field, types[name]) for field, name in mapping.items()}.items()))
    reader = pajson.open_json(
        stream,
        read_options=pajson.ReadOptions(block_size=block_bytes),
        parse_options=pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )
    for batch in reader:
        yield pa.Table.from_batches([batch])


def _type(field: str, first: pa.DataType) -> pa.DataType:
    """The type that all rows are read as, from the one that Arrow infers from the first block."""
    if field in ("rating", "timestamp"):
        numeric = pa.types.is_integer(first) or pa.types.is_floating(first) or pa.types.is_null(first)
        return pa.float64() if numeric else first
    if pa.types.is_null(first) or pa.types.is_timestamp(first):  # Arrow takes text that looks like a date for one
        return pa.string()
    if pa.types.is_list(first) and (pa.types.is_null(first.value_type) or pa.types.is_timestamp(first.value_type)):
        return pa.list_(pa.string())
    return first
