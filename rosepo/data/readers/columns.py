"""From a user's columns to ours: names, types and values, with an error that names file, row and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rosepo.config import ColumnsConfig
from rosepo.data.readers.title_template import columns_of
from rosepo.utils.errors import UserError

FIELDS = {
    "interactions": ("user_id", "item_id", "rating", "timestamp"),
    "items": ("item_id", "title", "categories"),
}
OPTIONAL = ("rating", "categories")
ALIASES = {
    "user_id": ("userId", "user"),
    "item_id": ("itemId", "movieId", "movie_id", "item"),
    "rating": (),
    "timestamp": ("time",),
    "title": ("movie_title", "item_title", "name"),
    "categories": ("genres", "genre", "class", "category"),
}
MOST_NAMED = 20
"""Columns that a message names."""
NO_CATEGORIES = "(no genres listed)"


def match_columns(names: Sequence[str], columns: ColumnsConfig, kind: str, where: str) -> dict[str, str]:
    """Our field name to the file's column name; optional fields that the file does not have, or that are set to null,
    are left out. Of a title that is put together `title` has the first column, and `{name}` each of them.

    Raises:
        UserError: a column is missing (naming the nearest one there is), or several could be meant.
    """
    found: dict[str, str] = {}
    for field in FIELDS[kind]:
        wanted = getattr(columns, field)
        if wanted is None:
            continue
        if field == "title" and (parts := columns_of(wanted)):
            found |= {"title": parts[0]} | {f"{{{name}}}": _there(names, name, field, where) for name in parts}
            continue
        explicit = field in columns.model_fields_set
        others = [] if explicit else [alias for alias in ALIASES[field] if alias in names]
        if wanted in names:
            found[field] = wanted
        elif len(others) == 1:
            found[field] = others[0]
        elif others:
            raise UserError(f"{where}: '{others[0]}' and '{others[1]}' could be {field}: set data.columns.{field}")
        elif explicit or field not in OPTIONAL:
            _there(names, wanted, field, where)
    _check_distinct(found, where)
    return found


def _check_distinct(mapping: Mapping[str, str], where: str) -> None:
    fields: dict[str, str] = {}
    for field, name in mapping.items():
        if field.startswith("{") or field == "title":  # a title may be put together of any columns
            continue
        if name in fields:
            raise UserError(
                f"{where}: column '{name}' cannot be both {fields[name]} and {field}: set data.columns.{field}"
            )
        fields[name] = field


def _there(names: Sequence[str], wanted: str, field: str, where: str) -> str:
    """The column, if it is there. Raises UserError that names the nearest one."""
    if wanted in names:
        return wanted
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? Columns" if near else "columns"
    raise UserError(f"{where} has no column '{wanted}' ({hint}: {named(names)}): {_remedy(names, field)}")


def named(names: Sequence[str]) -> str:
    """Names of columns for a message, of many the first ones."""
    short = [name if len(name) <= 40 else f"{name[:39]}…" for name in names[:MOST_NAMED]]
    return ", ".join(short) + (f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else "")


def _remedy(names: Sequence[str], field: str) -> str:
    if all(_is_number(name) for name in names):
        return "the first line looks like data: put a line with the names of the columns before it"
    return f"set data.columns.{field}"


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def ids(column: pa.ChunkedArray, name: str, where: str, row: int) -> pa.Array:
    """Ids as int64 or text. `row` is the number of the first value, for messages.

    Raises:
        UserError: missing ids, or a type that is neither integer nor text.
    """
    values = flat(column)
    if pa.types.is_string(values.type):
        values = trimmed(values)
    elif pa.types.is_integer(values.type):
        try:
            values = values.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise UserError(f"{where}: column '{name}' does not fit 64-bit integers: store it as text") from error
    elif not pa.types.is_null(values.type):
        raise UserError(f"{where}: column '{name}' is {values.type}: ids must be integers or text")
    if values.null_count:
        raise UserError(
            f"{where}: row {row + _first(pc.is_null(values))} has no '{name}': fill it in or leave the row out"
        )
    return values


def id_type(column: pa.DataType) -> pa.DataType:
    """The type that `ids` gives for a column type."""
    return pa.int64() if pa.types.is_integer(column) else pa.string()


def numbers(column: pa.ChunkedArray, name: str, where: str, row: int, remedy: str) -> pa.Array:
    """Finite float64 values; nulls stay.

    Raises:
        UserError: another type, text that is no number, NaN or infinity.
    """
    values = flat(column)
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        micro = values.cast(pa.timestamp("us", tz=getattr(values.type, "tz", None)), safe=False).cast(pa.int64())
        values = pc.divide(micro.cast(pa.float64(), safe=False), 1e6)
    elif pa.types.is_string(values.type):
        values = _parsed(values, name, where, row, remedy)
    elif pa.types.is_boolean(values.type) or pa.types.is_nested(values.type):
        raise UserError(f"{where}: column '{name}' is {values.type}: {remedy}")
    elif pa.types.is_float32(values.type):
        # By way of the decimal that is meant: 4.1 in float32 is 4.0999999 in float64, below a min_rating of 4.1.
        values = values.cast(pa.string())
    try:
        values = values.cast(pa.float64(), safe=False)
    except pa.ArrowException as error:
        raise UserError(f"{where}: column '{name}' is {values.type}: {remedy}") from error
    finite = pc.fill_null(pc.is_finite(values), True)
    if not pc.all(finite).as_py():
        at = _first(pc.invert(finite))
        raise UserError(f"{where}: row {row + at} has {name} {values[at].as_py()}: mend it or leave the row out")
    return values


def text(column: pa.ChunkedArray, name: str, where: str, row: int) -> pa.Array:
    """Titles with white space collapsed.

    Raises:
        UserError: another type, or a title with nothing in it.
    """
    values = flat(column)
    if pa.types.is_null(values.type):
        values = values.cast(pa.string())
    if not pa.types.is_string(values.type):
        raise UserError(f"{where}: column '{name}' is {values.type}: titles must be text")
    values = pc.utf8_trim_whitespace(pc.replace_substring_regex(values, r"\s+", " "))
    empty = pc.fill_null(pc.equal(values, ""), True)
    if pc.any(empty).as_py():
        raise UserError(f"{where}: row {row + _first(empty)} has an empty {name}: name the item or leave it out")
    return values


def categories(column: pa.ChunkedArray, name: str, where: str, separator: str | None) -> pa.Array:
    """Lists of text; text is split at `separator` (None: one category a row). Empty lists become null.

    Raises:
        UserError: neither text nor a list of text.
    """
    kind = column.type
    if pa.types.is_null(kind):
        return pa.nulls(len(column), pa.list_(pa.string()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if not (pa.types.is_null(kind.value_type) or _is_text(kind.value_type)):
            raise UserError(f"{where}: column '{name}' is {kind}: categories must be text or lists of text")
        entries = column.to_pylist()
    elif _is_text(kind):
        entries = [
            value.split(separator) if value is not None and separator else [value] for value in column.to_pylist()
        ]
    else:
        raise UserError(f"{where}: column '{name}' is {kind}: categories must be text or lists of text")
    cleaned = []
    for entry in entries:
        kept = [value.strip() for value in entry or () if value and value.strip() and value != NO_CATEGORIES]
        cleaned.append(kept or None)
    return pa.array(cleaned, pa.list_(pa.string()))


def integers_if_all(values: pa.Array) -> pa.Array:
    """Text ids as int64 where every one is written as its int64 is (`7`, not `007`); unchanged otherwise."""
    if not pa.types.is_string(values.type) or not len(values):
        return values
    try:
        numeric = values.cast(pa.int64())
    except pa.ArrowInvalid:
        return values
    return numeric if numeric.cast(pa.string()).equals(values) else values


def codes(values: pa.Array | pa.ChunkedArray, known: pa.Array) -> np.ndarray:
    """Places [n] int64 of ids in `known` (distinct, int64 or text), -1 where they are not in it.

    Where one side is text, both are compared as text: `007` is not 7.
    """
    given = flat(values) if isinstance(values, pa.ChunkedArray) else values
    if given.type != known.type:
        given, known = given.cast(pa.string()), known.cast(pa.string())
    places = pc.fill_null(pc.index_in(given, value_set=known), -1)
    nulls = given.is_null().to_numpy(zero_copy_only=False)
    return np.where(nulls, -1, places.to_numpy(zero_copy_only=False)).astype(np.int64)


def _parsed(values: pa.Array, name: str, where: str, row: int, remedy: str) -> pa.Array:
    bare = trimmed(values)
    try:
        return bare.cast(pa.float64())
    except pa.ArrowInvalid as error:
        for number, value in enumerate(bare.to_pylist()):
            try:
                float(value if value is not None else 0)
            except ValueError:
                raise UserError(f"{where}: row {row + number} has {name} {value!r}: {remedy}") from error
        raise UserError(f"{where}: column '{name}' holds text that is no number: {remedy}") from error


def trimmed(values: pa.Array) -> pa.Array:
    """Text without white space around it; null where nothing is left."""
    values = pc.utf8_trim_whitespace(values)
    return pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)


def flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One array, text as `string`, dictionaries as what they stand for."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    if _is_text(column.type) and not pa.types.is_string(column.type):
        column = column.cast(pa.string())
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _first(mask: pa.Array) -> int:
    return int(np.argmax(np.asarray(mask.to_numpy(zero_copy_only=False), dtype=bool)))
