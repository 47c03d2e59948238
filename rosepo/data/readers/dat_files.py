"""MovieLens `.dat` files to Arrow tables: `::` between fields, no header, no quotes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.csv as pacsv

from rosepo.utils.errors import UserError

BLOCK_BYTES = 16 << 20
_FIELD = "\x1f"
"""Stands for `::`, which Arrow's CSV reader cannot split on; MovieLens titles hold no control characters."""


def tables(
    name: str, stream: pa.NativeFile, names: Sequence[str], convert: pacsv.ConvertOptions, kind: str
) -> Iterator[pa.Table]:
    """Stretches of rows, all fields as text.

    Args:
        name: of the file, for messages.
        names: of its fields.
        convert: the columns that are wanted.
        kind: `interactions` or `items`.

    Raises:
        UserError: a line of items with too few fields.
    """
    lines = io.BufferedReader(stream)
    while block := b"".join(lines.readlines(BLOCK_BYTES)):
        if not block.strip():
            continue
        text = _text(block)
        if kind == "items":
            yield _items(name, text, names).select(convert.include_columns)
        else:
            yield pacsv.read_csv(
                io.BytesIO(text.replace("::", _FIELD).encode()),
                read_options=pacsv.ReadOptions(column_names=list(names), block_size=2 * BLOCK_BYTES),
                parse_options=pacsv.ParseOptions(delimiter=_FIELD, quote_char=False),
                convert_options=convert,
            )


def _items(name: str, text: str, names: Sequence[str]) -> pa.Table:
    """A title may hold `::` itself: the id ends at the first, the categories begin at the last."""
    # Not splitlines(), which parts titles at U+0085 and U+2028 too.
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    wrong = next((line for line in lines if line.count("::") < 2), None)
    if wrong is not None:
        raise UserError(f"{name}: {wrong[:80]!r} is not {'::'.join(names)}")
    ids, titles = zip(*(line.split("::", 1) for line in lines))
    titles, categories = zip(*(entry.rsplit("::", 1) for entry in titles))
    return pa.table(dict(zip(names, (pa.array(part, pa.string()) for part in (ids, titles, categories)))))


def _text(block: bytes) -> str:
    """MovieLens 1M and 10M are Latin-1, newer data of this shape UTF-8, and some files hold lines of both."""
    try:
        return block.decode("utf-8")
    except UnicodeDecodeError:
        return "\n".join(_line(line) for line in block.split(b"\n"))


def _line(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")
