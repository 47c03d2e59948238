"""Files to raw Arrow tables, a stretch of rows at a time: Parquet, CSV, TSV, JSON Lines, MovieLens `.dat`, RecBole.

A type never depends on which rows a block happens to hold: text formats give every column as text, and JSON Lines are
read with the types of the first BLOCK_BYTES, ratings and times that are numbers as float64.
"""

from __future__ import annotations

import codecs
import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from rosepo.data.readers import dat_files, json_lines
from rosepo.data.readers.columns import FIELDS
from rosepo.data.readers.sources import Source, filesystem, open_stream, path_columns
from rosepo.utils.errors import UserError, said

BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class Piece:
    """What one read task reads: a file, or a row group of a Parquet file. `first_row` counts from 1."""

    source: Source
    row_group: int | None = None
    first_row: int = 1


@dataclass(frozen=True)
class Header:
    """What a file says about itself without being read through.

    Attributes:
        names: column names, in file order.
        types: Arrow type of each column; text formats have text alone, JSON Lines what their first block tells.
        sequences: RecBole columns of type `token_seq`, split at spaces.
        delimiter: of text formats.
        rows: where the file tells it (Parquet).
        pieces: the read tasks.
        of_path: columns that stand in the file's path, as Hive's `year=2024/`, with their one value.
    """

    names: tuple[str, ...]
    types: dict[str, pa.DataType]
    pieces: tuple[Piece, ...]
    sequences: frozenset[str] = frozenset()
    delimiter: str = ","
    rows: int | None = None
    of_path: Mapping[str, str | None] = field(default_factory=dict)


def read_header(source: Source, kind: str) -> Header:
    """Column names and types of a file; `kind` is interactions or items.

    Raises:
        UserError: a file that is empty, cannot be opened, is not of its format, or is not UTF-8.
    """
    with _explained(source):
        header = _own_header(source, kind)
    of_path = {name: value for name, value in path_columns(source).items() if name not in header.names}
    types = {**header.types, **dict.fromkeys(of_path, pa.string())}
    return replace(header, names=(*header.names, *of_path), types=types, of_path=of_path)


def _own_header(source: Source, kind: str) -> Header:
    if source.format == "parquet":
        return _parquet_header(source)
    if source.format == "jsonl":
        return _json_header(source)
    return _text_header(source, kind)


def _text_header(source: Source, kind: str) -> Header:
    line = _first_line(source)
    if source.format == "dat":
        names = FIELDS[kind]
        if line.count("::") < len(names) - 1:
            expected = "::".join(names)
            raise UserError(f"{source.name}: row 1 is not {expected} (got {line[:80]!r}); set data.format")
        return Header(names, dict.fromkeys(names, pa.string()), (Piece(source),), delimiter="::")
    delimiter = "," if source.format == "csv" else "\t"
    if source.format == "csv" and "," not in line:
        delimiter = next((other for other in "\t;" if other in line), ",")
    if source.format == "recbole":
        raw = [name.strip() for name in line.split(delimiter)]
    else:
        raw = [name.strip() for name in next(csv.reader([line], delimiter=delimiter))]
    names = tuple(name.split(":")[0] for name in raw) if source.format == "recbole" else tuple(raw)
    if source.format == "recbole" and len(names) == 1 and raw[0].count(" ") > 1:
        raise UserError(f"{source.name}: spaces stand between its columns, where RecBole's files have tabs")
    _check_repeated(source, names)
    sequences = frozenset(name.split(":")[0] for name in raw if name.endswith(":token_seq"))
    return Header(names, dict.fromkeys(names, pa.string()), (Piece(source),), sequences, delimiter)


def read_piece(piece: Piece, header: Header, mapping: Mapping[str, str], kind: str) -> Iterator[tuple[int, pa.Table]]:
    """Stretches of rows with the columns of `mapping` (our field to the file's name), each with its first row's number.

    Raises:
        UserError: malformed or undecodable text, unreadable Parquet.
    """
    row = piece.first_row
    own = {ours: name for ours, name in mapping.items() if name not in header.of_path}
    with _explained(piece.source):
        for table in _tables(piece, header, own, kind):
            for name in header.of_path.keys() & mapping.values():
                table = table.append_column(name, pa.repeat(pa.scalar(header.of_path[name], pa.string()), len(table)))
            yield row, table
            row += table.num_rows


def _tables(piece: Piece, header: Header, mapping: Mapping[str, str], kind: str) -> Iterator[pa.Table]:
    source, columns = piece.source, list(dict.fromkeys(mapping.values()))
    if source.format == "parquet":
        files, path = filesystem(source.uri)
        with files.open_input_file(path) as handle, pq.ParquetFile(handle) as file:
            groups = None if piece.row_group is None else [piece.row_group]
            for batch in file.iter_batches(batch_size=1 << 20, row_groups=groups, columns=columns):
                yield pa.Table.from_batches([batch])
        return
    with open_stream(source) as stream:
        if source.format == "jsonl":
            yield from json_lines.tables(stream, header.types, mapping, BLOCK_BYTES)
        elif source.format == "dat":
            yield from dat_files.tables(source.name, stream, header.names, _as_text(columns), kind)
        else:
            yield from _csv_tables(source, stream, header, columns)


def _csv_tables(source: Source, stream: pa.NativeFile, header: Header, columns: list[str]) -> Iterator[pa.Table]:
    """Rows behind the header line, all columns as text, empty fields as null."""
    # Between tabs a quote is a character like any other, which must not swallow the rows up to the next one.
    quote = header.delimiter != "\t"
    reader = pacsv.open_csv(
        stream,
        read_options=pacsv.ReadOptions(
            column_names=[name for name in header.names if name not in header.of_path],
            skip_rows=1,
            block_size=BLOCK_BYTES,
        ),
        parse_options=pacsv.ParseOptions(
            delimiter=header.delimiter, quote_char='"' if quote else False, newlines_in_values=quote
        ),
        convert_options=_as_text(columns),
    )
    for batch in reader:
        table = pa.Table.from_batches([batch])
        if not quote and source.format != "recbole":
            table = pa.table([_unquoted(column) for column in table.columns], names=table.column_names)
        yield table


def _unquoted(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Fields in quotes as a whole (as pandas writes those that hold a quote) without them; others as they are."""
    inside = pc.replace_substring(pc.utf8_slice_codeunits(values, 1, -1), '""', '"')
    return pc.if_else(pc.match_substring_regex(values, r'^"([^"]|"")*"$'), inside, values)


def _as_text(columns: list[str]) -> pacsv.ConvertOptions:
    return pacsv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()),
        include_columns=columns,
        null_values=[""],
        strings_can_be_null=True,
    )


def _parquet_header(source: Source) -> Header:
    files, path = filesystem(source.uri)
    with files.open_input_file(path) as handle, pq.ParquetFile(handle) as file:
        schema, metadata = file.schema_arrow, file.metadata
        pieces, row = [], 1
        for group in range(metadata.num_row_groups):
            pieces.append(Piece(source, group, row))
            row += metadata.row_group(group).num_rows
        _check_repeated(source, schema.names)
        types = {field.name: field.type for field in schema}
        return Header(tuple(schema.names), types, tuple(pieces), rows=metadata.num_rows)


def _json_header(source: Source) -> Header:
    with open_stream(source) as stream:
        types = json_lines.first_types(stream, BLOCK_BYTES, source.name)
    return Header(tuple(types), types, (Piece(source),))


def _check_repeated(source: Source, names: Sequence[str]) -> None:
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise UserError(f"{source.name}: two columns are named '{repeated[0]}': rename one")


def _first_line(source: Source) -> str:
    with open_stream(source) as stream:
        start = stream.read(1 << 16)
        while b"\n" not in start and len(start) < BLOCK_BYTES and (more := stream.read(1 << 20)):
            start += more
    if not start.strip():
        raise UserError(f"{source.name} is empty")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{source.name} is UTF-16 text: convert it, `iconv -f utf-16 -t utf-8`")
    line, *rest = start.split(b"\n", 1)
    if not rest and b"\r" in line.rstrip(b"\r"):
        raise UserError(f"{source.name} ends its lines with carriage returns alone: convert it, `tr '\\r' '\\n'`")
    return line.rstrip(b"\r").decode("utf-8" if source.format != "dat" else "latin-1")


@contextmanager
def _explained(source: Source) -> Iterator[None]:
    """Turn what goes wrong while a file is read into one sentence that names it."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError, EOFError) as error:
        if isinstance(error, UnicodeDecodeError) or (isinstance(error, pa.ArrowInvalid) and "UTF8" in str(error)):
            raise UserError(f"{source.name} is not UTF-8 text: convert it, e.g. `iconv -f latin1 -t utf-8`") from error
        what = said(error)
        raise UserError(f"{source.name} cannot be read as {source.format}: {what}") from error
