"""A file of scores that another model gave: Parquet with one row a pair of an example and an item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.data.readers.sources import Source, filesystem, find_sources
from rosepo.utils.errors import UserError

KEY = "oracle.scores"
COLUMNS = ("example_id", "item_id", "score")
BATCH_ROWS = 1 << 20


def score_files(location: str) -> list[Source]:
    """The files behind `oracle.scores`, after their headers were checked.

    Raises:
        UserError: nothing there, a file that is no Parquet, a column that is missing or of another type, or no rows.
    """
    sources = find_sources(location, "parquet", KEY)
    if not count_scores(sources):
        raise UserError(f"{KEY}={location} has no rows: write one for each example and item that were scored")
    return sources


def count_scores(sources: Sequence[Source]) -> int:
    """Rows of all files, as their footers say."""
    return sum(_checked_rows(source) for source in sources)


def read_scores(sources: Sequence[Source]) -> Iterator[tuple[str, pa.DictionaryArray, np.ndarray, np.ndarray]]:
    """The rows, a million at a time.

    Yields:
        name of the file; example ids [n] (dictionary of text); item ids [n] int64, or object holding str; scores
        float32 [n].

    Raises:
        UserError: a file that cannot be read, a value that is missing, or a score that is not finite in float32.
    """
    for source in sources:
        files, path = filesystem(source.uri)
        try:
            with files.open_input_file(path) as handle, pq.ParquetFile(handle) as file:
                for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(COLUMNS)):
                    yield source.name, *_columns(source.name, batch)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{KEY}: {source.name} cannot be read as Parquet: {error}") from error


def _columns(name: str, batch: pa.RecordBatch) -> tuple[pa.DictionaryArray, np.ndarray, np.ndarray]:
    for column in COLUMNS:
        if batch.column(column).null_count:
            raise UserError(f"{KEY}: {name} has rows without {column}: fill it in or leave them out")
    examples = batch.column("example_id")
    if not pa.types.is_dictionary(examples.type):
        examples = examples.dictionary_encode()
    items = batch.column("item_id")
    if pa.types.is_dictionary(items.type):
        items = items.dictionary_decode()
    whole = pa.types.is_integer(items.type)
    item_ids = items.to_numpy(zero_copy_only=False).astype(np.int64 if whole else object)
    scores = batch.column("score").to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        scores = scores.astype(np.float32)
    if not np.isfinite(scores).all():
        row = int(np.argmin(np.isfinite(scores)))
        example, item = examples[row].as_py(), items[row].as_py()
        raise UserError(
            f"{KEY}: {name} has a score that is not finite in float32 for example_id {example!r} and item_id {item!r}: "
            "mend it or leave the row out"
        )
    return examples, item_ids, scores


def _checked_rows(source: Source) -> int:
    """Rows of one file, its columns checked."""
    try:
        files, path = filesystem(source.uri)
        with files.open_input_file(path) as handle, pq.ParquetFile(handle) as file:
            schema, rows = file.schema_arrow, int(file.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{KEY}: {source.name} cannot be read as Parquet: {error}") from error
    for column, test, expected in (
        ("example_id", _is_text, "text"),
        ("item_id", lambda kind: _is_text(kind) or pa.types.is_integer(kind), "integers or text"),
        ("score", lambda kind: pa.types.is_floating(kind) or pa.types.is_integer(kind), "numbers"),
    ):
        if column not in schema.names:
            have = ", ".join(schema.names)
            raise UserError(f"{KEY}: {source.name} has no column '{column}' (it has {have}): rename or add it")
        if schema.names.count(column) > 1:
            raise UserError(f"{KEY}: {source.name} has two columns named '{column}': rename one")
        kind = schema.field(column).type
        if not test(kind):
            raise UserError(f"{KEY}: {source.name}: column '{column}' is {kind} and must be {expected}: store it so")
    return rows


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
