"""Other systems' recommendations, scored by the rules of the others (`evaluate.predictions`).

A list holds for its example, or for all examples of its user. Entries that no title of the catalogue answers to, that
stand in the list already or that the user had chosen before take their places as wrong answers; an example without a
list is a miss. All of it is counted and told.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rosepo.config.evaluation import ExternalSystem
from rosepo.data.catalogue import Catalogue
from rosepo.data.readers.columns import codes as places_of
from rosepo.evaluation.external_models import sources_of
from rosepo.evaluation.measured_examples import Part, part_batches
from rosepo.evaluation.prediction_files import ItemIndex, Shape, read_headers, read_rows
from rosepo.evaluation.rankings import DEPTH, NO_ITEM, rankings_table, write_part
from rosepo.utils.arrays import ranges
from rosepo.utils.errors import UserError

PENDING = 1 << 22
"""Entries (16 bytes each) that may wait before all but the first `DEPTH` of each list are dropped; as many as are kept,
if those are more."""


@dataclass
class Predictions:
    """One system's lists, of the examples that are measured alone: 84 bytes an example at most.

    Attributes:
        name: of the system.
        lists: int32 [n_keys, DEPTH] item indexes, best first, NO_ITEM for a wrong place, padded with -1.
        of_example: int64 [N], the row of `lists` of every example; -1 without one.
        counts: what was found and what was amiss.
        unknown: some entries that the catalogue does not hold.
    """

    name: str
    lists: np.ndarray
    of_example: np.ndarray
    counts: Counter[str] = field(default_factory=Counter)
    unknown: list[Any] = field(default_factory=list)

    def rank(self, examples: Path, out: Path, parts: list[Part]) -> None:
        """Write the parts of the rankings into the folder `out`; entries that were seen, or that are none of their
        example's candidates where it has some, are counted on the way."""
        out.mkdir(exist_ok=True)
        start, seen, unlisted = 0, 0, 0
        for part in parts:
            tables = []
            for batch in part_batches(examples, part):
                rows = self.of_example[start : start + len(batch.targets)]
                items = np.where(rows[:, None] >= 0, self.lists[rows], -1).astype(np.int64)
                chosen = np.stack([np.isin(found, before) for found, before in zip(items, batch.seen, strict=True)])
                seen += int(chosen.sum())
                if batch.candidates is not None:
                    inside = (items[:, :, None] == batch.candidates[:, None, :]).any(axis=2)
                    unlisted += int(((items >= 0) & ~inside & ~chosen).sum())
                tables.append(rankings_table(batch, items, np.full(items.shape, np.nan)))
                start += len(rows)
            write_part(out, part, tables)
        self.counts["seen_entries"] = seen
        if unlisted:
            self.counts["unlisted_entries"] = unlisted

    def told(self) -> str:
        """What was found in the file, in a sentence."""
        counts = self.counts
        such_as = f" (such as {', '.join(repr(value) for value in self.unknown[:3])})" if self.unknown else ""
        wrong = [
            (counts["unknown_entries"], f"no item of the catalogue{such_as}"),
            (counts["repeated_entries"], "repeated"),
            (counts["seen_entries"], "chosen before"),
            (counts["unlisted_entries"], "none of the example's candidates"),
        ]
        parts = [
            f"{self.name}: lists for {counts['examples'] - counts['missing']:,} of {counts['examples']:,} examples",
            f"without a list, so a miss: {counts['missing']:,}" if counts["missing"] else "",
            f"lists shorter than {DEPTH}: {counts['shorter']:,}" if counts["shorter"] else "",
            ", ".join(f"{number:,} {what}" for number, what in wrong if number),
            f"lists of nobody who is measured: {counts['not_measured']:,}" if counts["not_measured"] else "",
        ]
        if parts[3]:
            parts[3] = f"entries that take their places as wrong answers: {parts[3]}"
        if counts["shared"]:
            parts.append(f"examples that share the list of their user: {counts['shared']:,} (give example_id instead)")
        return "; ".join(part for part in parts if part)


def read_predictions(system: ExternalSystem, catalogue: Catalogue, examples: Path, ambiguous: bool) -> Predictions:
    """The lists of a system.

    Args:
        examples: file that `write_examples` wrote.
        ambiguous: see `ItemIndex`.

    Raises:
        UserError: see `read_headers` and `read_rows`; a list that stands twice, two entries of one rank, and files in
            which no list or no item belongs to the run.
    """
    sources = sources_of(system)
    headers, shape = read_headers(sources, system.key)
    index = ItemIndex(catalogue, shape.order is None, ambiguous)
    collected = _Lists(shape, examples, f"{system.key}: {system.location}")
    add = collected.add_lists if shape.order is None else collected.add_entries
    read = 0
    for keys, items, numbered in read_rows(sources, headers, shape, index, system.key):
        add(keys, items, numbered)
        read += len(keys)
    if not read:
        raise UserError(f"{system.key}: {system.location} has no rows: write one for each user")
    lists, counts = collected.finish(), collected.counts
    if not collected.present.any():
        raise UserError(
            f"{system.key}: nobody in {system.location} is among the {counts['examples']:,} measured examples "
            f"({shape.key} such as {collected.name_of(0)}): check ids and evaluate.split"
        )
    if not (lists >= 0).any():
        shown = f"it has {', '.join(map(repr, index.unknown))}, " if index.unknown else ""
        raise UserError(
            f"{system.key}: no entry of {system.location} is an item of the catalogue ({shown}the catalogue "
            f"{catalogue.titles[0]!r}, id {catalogue.item_ids[:1].tolist()[0]!r}): give item ids or, in lists, titles"
        )
    rows = np.where(collected.present[collected.of_example], collected.of_example, -1)
    repeated = _repeated(lists)
    counts["missing"] = int((rows < 0).sum())
    counts["shorter"] = int((lists[collected.present, -1] == -1).sum())
    counts["unknown_entries"] = int((lists == NO_ITEM).sum())
    counts["repeated_entries"] = int(repeated.sum())
    lists[repeated] = NO_ITEM
    if shape.key == "user_id":
        shared = np.bincount(rows[rows >= 0], minlength=len(lists))
        counts["shared"] = int(shared[shared > 1].sum())
    return Predictions(system.name, lists, rows, counts, index.unknown)


class _Lists:
    """The rows of a file, sorted into lists by whose they are.

    Attributes:
        of_example: int64 [N], the list of every measured example.
        present: bool, whether each list was in the file.
        counts: as in `Predictions`.
    """

    def __init__(self, shape: Shape, examples: Path, where: str) -> None:
        self._shape, self._where = shape, where
        coded = pq.read_table(examples, columns=[shape.key]).column(0).combine_chunks().dictionary_encode()
        self._keys: pa.Array = coded.dictionary
        self.of_example = coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        self.present = np.zeros(len(self._keys), dtype=bool)
        self.counts: Counter[str] = Counter({"examples": len(coded)})
        self._lists = np.full((len(self._keys), DEPTH), -1, dtype=np.int32)
        self._entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._waiting = 0
        self._strangers: list[pa.Array] = []

    def name_of(self, code: int) -> str:
        """Whose a list is, for messages."""
        return repr(self._keys[code].as_py())

    def add_lists(self, keys: pa.Array, items: np.ndarray, lengths: np.ndarray) -> None:
        """Whole lists, which stand end to end in `items`."""
        codes = places_of(keys, self._keys)
        self.counts["not_measured"] += int((codes < 0).sum())
        named, times = np.unique(codes[codes >= 0], return_counts=True)
        twice = named[(times > 1) | self.present[named]]
        if len(twice):
            raise UserError(f"{self._where} has two lists of {self._shape.key} {self.name_of(twice[0])}: keep one")
        self.present[named] = True
        row, place = np.repeat(codes, lengths), ranges(np.zeros_like(lengths), lengths)
        kept = (row >= 0) & (place < DEPTH)
        self._lists[row[kept], place[kept]] = items[kept]

    def add_entries(self, keys: pa.Array, items: np.ndarray, order: np.ndarray) -> None:
        """Entries of any lists."""
        codes = places_of(keys, self._keys)
        known = codes >= 0
        self._strangers.append(pc.unique(keys.filter(pa.array(~known))))
        self._entries.append((codes[known].astype(np.int32), items[known], order[known]))
        self._waiting += int(known.sum())
        if self._waiting > max(PENDING, len(self._entries[0][0])):
            self._entries, self._waiting = [self._first_entries()], 0

    def finish(self) -> np.ndarray:
        """All lists, int32 [n, DEPTH], when all rows were added."""
        if self._entries:
            self.counts["not_measured"] = len(pc.unique(pa.chunked_array(self._strangers)))
            codes, items, _ = self._first_entries()
            self.present[codes] = True
            self._lists[codes, np.arange(len(codes)) - np.searchsorted(codes, codes)] = items
        return self._lists

    def _first_entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of all entries so far the first `DEPTH` of each list, in order: code of the list, item, order."""
        codes, items, order = (np.concatenate(parts) for parts in zip(*self._entries, strict=True))
        sorting = np.lexsort((order, codes))
        codes, items, order = codes[sorting], items[sorting], order[sorting]
        same = np.flatnonzero((codes[1:] == codes[:-1]) & (order[1:] == order[:-1]))
        if len(same) and self._shape.order == "rank":  # entries of one score keep the order of the file
            raise UserError(
                f"{self._where} has two entries of rank {order[same[0]]:g} for {self._shape.key} "
                f"{self.name_of(codes[same[0]])}: give every entry of a list a rank of its own"
            )
        kept = np.arange(len(codes)) - np.searchsorted(codes, codes) < DEPTH
        return codes[kept], items[kept], order[kept]


def _repeated(lists: np.ndarray) -> np.ndarray:
    """Which entries stand further in front of their list already: bool like `lists` int32 [n, DEPTH]."""
    found = np.zeros(lists.shape, dtype=bool)
    for place in range(1, lists.shape[1]):
        entry = lists[:, place : place + 1]
        found[:, place] = ((lists[:, :place] == entry) & (entry >= 0)).any(1)
    return found
