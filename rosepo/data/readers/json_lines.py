"""JSON Lines by Arrow, with types that hold for all rows: Arrow alone would keep to those of its first block."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.json as pajson

from rosepo.utils.errors import UserError


def first_types(stream: pa.NativeFile, block_bytes: int, where: str) -> dict[str, pa.DataType]:
    """Keys of the rows in the first block, and the type of each; text where its values have several.

    By Python, because Arrow refuses a file for a key that changes its type even where nobody reads it.

    Raises:
        UserError: no rows, or a row that is no JSON object.
    """
    block = stream.read(block_bytes)
    lines = block.removeprefix(codecs.BOM_UTF8).split(b"\n")
    if len(block) == block_bytes and len(lines) > 1:
        lines.pop()  # most likely cut in two
    kinds: dict[str, set[pa.DataType]] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            for key, value in _object(line, number, where).items():
                kinds.setdefault(key, set()).add(_kind(value))
    if not kinds:
        raise UserError(f"{where} is empty")
    return {key: _common(found) for key, found in kinds.items()}


def _object(line: bytes, number: int, where: str) -> dict[str, Any]:
    text = line.decode("utf-8").strip()
    if text.startswith("["):
        raise UserError(
            f"{where} is a JSON array: write each of its objects on a line of its own, as `jq -c '.[]'` does"
        )
    try:
        found = json.loads(text)
    except ValueError as error:
        if text.startswith("{'"):
            raise UserError(f"{where}: row {number} is a Python literal, not JSON: write rows by json.dumps") from error
        raise UserError(f"{where} cannot be read as jsonl: row {number} is no JSON object: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{where} cannot be read as jsonl: row {number} is {text[:40]}, no JSON object")
    return found


def _kind(value: Any) -> pa.DataType:
    if isinstance(value, list):
        return pa.list_(_common({_kind(one) for one in value}))
    if isinstance(value, dict):
        return pa.struct([])
    if isinstance(value, int) and not isinstance(value, bool) and value >= 2**63:
        return pa.uint64()
    return _SCALARS[type(value)]


_SCALARS = {type(None): pa.null(), bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
_NUMBERS = (pa.float64(), pa.uint64(), pa.int64())


def _common(kinds: set[pa.DataType]) -> pa.DataType:
    """The type of values of all these types; nulls go with any."""
    some = kinds - {pa.null()}
    if not some:
        return pa.null()
    if all(pa.types.is_list(kind) for kind in some):
        return pa.list_(_common({kind.value_type for kind in some}))
    if some <= set(_NUMBERS):
        return next(kind for kind in _NUMBERS if kind in some)
    return some.pop() if len(some) == 1 else pa.string()


def tables(
    stream: pa.NativeFile, types: Mapping[str, pa.DataType], mapping: Mapping[str, str], block_bytes: int
) -> Iterator[pa.Table]:
    """Stretches of rows with the columns of `mapping` (our field to the file's name); keys without one are passed over.

    Args:
        types: those of `first_types`.
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
    """The type that all rows are read as, from that of the first block."""
    if field in ("rating", "timestamp"):
        numeric = pa.types.is_integer(first) or pa.types.is_floating(first) or pa.types.is_null(first)
        return pa.float64() if numeric else first
    if pa.types.is_null(first):
        return pa.string()
    if pa.types.is_list(first) and pa.types.is_null(first.value_type):
        return pa.list_(pa.string())
    return first
