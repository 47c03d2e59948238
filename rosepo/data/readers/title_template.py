"""Titles that are put together of several columns: ``{movie_title} ({release_year})``."""

from __future__ import annotations

import string

import pyarrow as pa
import pyarrow.compute as pc

from rosepo.utils.errors import UserError

_EMPTY_BRACKETS = r"\s*(\(\s*\)|\[\s*\])"


def columns_of(title: str) -> tuple[str, ...]:
    """The columns that `data.columns.title` names in braces, in order; none where it is the name of a column.

    Raises:
        UserError: braces that do not close, or hold something else than a name.
    """
    if "{" not in title and "}" not in title:
        return ()
    key = f"data.columns.title={title!r}"
    try:
        parts = list(string.Formatter().parse(title))
    except ValueError as error:
        raise UserError(f"{key}: {error}; write columns in braces, such as '{{name}} ({{year}})'") from None
    wrong = [name for _, name, spec, conversion in parts if name is not None and (not name or spec or conversion)]
    if wrong:
        raise UserError(f"{key}: braces hold the name of a column and nothing else")
    return tuple(dict.fromkeys(name for _, name, _, _ in parts if name is not None))


def filled(title: str, table: pa.Table, where: str) -> pa.ChunkedArray:
    """Titles of text, the columns of `table` filled in. What is missing is left out, with the brackets around it.

    Raises:
        UserError: a column that is neither text nor numbers, naming the file.
    """
    parts: list[pa.ChunkedArray | pa.Scalar] = []
    for text, name, _, _ in string.Formatter().parse(title):
        parts.append(pa.scalar(text, pa.string()))
        if name is not None:
            parts.append(_as_text(table[name], name, where))
    joined = pc.binary_join_element_wise(*parts, "")
    if isinstance(joined, pa.Array):
        joined = pa.chunked_array([joined])
    return pc.replace_substring_regex(joined, _EMPTY_BRACKETS, "")


def _as_text(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_floating(kind) and pc.all(pc.equal(column, pc.trunc(column))).as_py() is not False:
        column = column.cast(pa.int64())  # years with gaps, as pandas stores them
    elif pa.types.is_nested(kind) or pa.types.is_binary(kind):
        raise UserError(f"{where}: column '{name}' is {kind}: a title is made of text and numbers")
    return pc.fill_null(column.cast(pa.string()), "")
