"""The baselines: what is most popular, what most often came next, and the oracle, which was trained to say it.

The first two know nothing of titles and are counted from the training part alone. All rank the titles that the user had
not chosen yet.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa

from rosepo.data.catalogue import Catalogue
from rosepo.data.item_columns import INDEX, flat_items
from rosepo.data.seen import trajectory_batches
from rosepo.evaluation.measured_examples import Batch
from rosepo.run.shard_files import whole_part
from rosepo.utils.arrays import ranges, segment_starts
from rosepo.utils.list_columns import list_column

BatchScores = Callable[[Batch], np.ndarray]
"""Of a batch its scores of the whole catalogue, float [B, n_items]."""

BLOCK_TRANSITIONS = 1 << 22
"""Transitions that are counted at once; bounds memory."""
COUNTS = pa.schema({"after": pa.list_(INDEX), "counts": pa.list_(pa.int32())})


class Popular:
    """The same ranking for everyone: items by how often they occur in training.

    Args:
        train_count: int64 [n_items].
    """

    def __init__(self, train_count: np.ndarray) -> None:
        self._scores = train_count.astype(np.float64)

    def score_all(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Training counts, float64 [B, n_items]."""
        return np.broadcast_to(self._scores, (len(histories), len(self._scores)))


class Markov:
    """Items by how often they directly followed the newest one in training; popularity orders the rest.

    Args:
        transitions: counted in training.
        train_count: int64 [n_items].
    """

    def __init__(self, transitions: Transitions, train_count: np.ndarray) -> None:
        self._transitions = transitions
        # Below one, so that popularity only decides between items that followed equally often.
        self._back_off = train_count / (1.0 + train_count.max(initial=0))

    def score_all(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Transition counts plus the back-off, float64 [B, n_items]; popularity alone after an empty history."""
        scores = np.tile(self._back_off, (len(histories), 1))
        for row, history in enumerate(histories):
            if len(history):
                after, counts = self._transitions.after(int(history[-1]))
                scores[row, after] += counts
        return scores


class Transitions:
    """What `write_transitions` wrote. The file is mapped: what is asked for is read, and processes of a node share it.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        self._blocks = [file.get_batch(number) for number in range(file.num_record_batches)]
        self._starts = np.cumsum([0, *(block.num_rows for block in self._blocks)])

    def after(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        """The items that directly followed an item, int32 [m], ascending, and how often each did, int32 [m]."""
        number = int(np.searchsorted(self._starts, item, side="right")) - 1
        block, row = self._blocks[number], item - int(self._starts[number])
        after, counts = (block[name][row].values.to_numpy() for name in COUNTS.names)
        return after, counts


def write_transitions(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], train_count: np.ndarray, out: Path, most: int = BLOCK_TRANSITIONS
) -> None:
    """Count transitions into the Arrow file `out`, for `Transitions`: a row an item, lists of what followed it.

    This process holds those of one block of items at a time: pairs are dealt out into files beside `out` first.

    Args:
        pairs: batches of (item indexes, indexes of the items right after them), each int64 [m].
        train_count: int64 [n_items], n_items ≥ 1: about how many transitions lead away from each item, at most.
        most: transitions of a block, but for an item that has more.

    Raises:
        StageError: the disk is full.
    """
    n_items = len(train_count)
    starts = segment_starts(np.maximum(np.cumsum(train_count) - 1, 0) // most)
    with whole_part(out) as aside, ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile(dir=out.parent)) for _ in starts]
        for before, after in pairs:
            keys = np.sort(before * n_items + after)
            for file, dealt in zip(files, np.split(keys, np.searchsorted(keys, starts[1:] * n_items)), strict=True):
                file.write(dealt.tobytes())
        with pa.ipc.new_file(str(aside), COUNTS) as writer:
            for file, low, high in zip(files, starts, np.append(starts[1:], n_items), strict=True):
                file.seek(0)
                keys = np.fromfile(file, dtype=np.int64)
                keys.sort()
                places = segment_starts(keys)
                keys, counts = keys[places], np.diff(places, append=len(keys))
                lengths = np.bincount(keys // n_items - low, minlength=high - low)
                columns = (pa.array(keys % n_items, INDEX), pa.array(counts, pa.int32()))
                writer.write_batch(pa.record_batch([list_column(one, lengths) for one in columns], schema=COUNTS))


def training_transitions(examples: Path) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Transitions into every training target of an examples table, batch by batch.

    Rows may share items (a sliding window does); each target is counted once, because only the last `n_targets` of a
    row's items are its targets.
    """
    for table in trajectory_batches(examples):
        items, offsets = flat_items(table, "items")
        targets = table["n_targets"].to_numpy().astype(np.int64)
        after = ranges(offsets[1:] - targets, targets)
        # With no history before it, a row's first item is nobody's successor.
        after = np.setdiff1d(after, offsets[:-1], assume_unique=True)
        yield items[after - 1], items[after]


def baseline(name: str, catalogue: Catalogue, transitions: Path, oracle: Path, device: str) -> BatchScores:
    """A baseline, ready to score. Added items have been chosen by nobody: they come last, and the oracle, which has no
    score for them, ranks none.

    Args:
        name: popular, markov or oracle.
        transitions: file that `write_transitions` wrote, for markov.
        oracle: folder of the oracle.
        device: of the oracle, where that is SASRec.

    Raises:
        UserError: an oracle that cannot be loaded.
    """
    if name == "oracle":
        return _oracle(oracle, catalogue, device)
    counts = catalogue.train_count
    ranker = Popular(counts) if name == "popular" else Markov(Transitions(transitions), counts)
    return lambda batch: ranker.score_all(batch.histories)


def _oracle(folder: Path, catalogue: Catalogue, device: str) -> BatchScores:
    """SASRec trained on all users, or a scorer of one's own over the whole catalogue; -inf for added items."""
    from rosepo.oracle.load import load_scorer, read_kind  # torch, which the other two do without

    own, added = catalogue.own, ((0, 0), (0, catalogue.added))
    if read_kind(folder)["kind"] == "sasrec":
        from rosepo.oracle.crossfit import Oracle

        oracle = Oracle.load(folder, own.item_ids, device)
        return lambda batch: np.pad(oracle.score_all(batch.histories), added, constant_values=-np.inf)
    scorer = load_scorer(folder, own)
    return lambda batch: np.pad(
        scorer.score_all(batch.users.to_pylist(), batch.histories), added, constant_values=-np.inf
    )


def top_k(scores: np.ndarray, excluded: Sequence[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best items of each row outside `excluded`; equal scores in order of item index.

    Args:
        scores: float [B, n_items].
        excluded: B int arrays of item indexes.

    Returns:
        Item indexes int64 [B, k] padded with -1, scores float32 [B, k] padded with -inf.
    """
    allowed = np.array(scores, dtype=np.float64)
    for row, items in enumerate(excluded):
        allowed[row, items] = -np.inf
    width = min(k, allowed.shape[1])
    # A stable sort of the part above the k-th best score keeps ties in item order; partition alone would not.
    threshold = -np.partition(-allowed, width - 1, axis=1)[:, width - 1 : width]
    items = np.full((len(allowed), k), -1, dtype=np.int64)
    best = np.full((len(allowed), k), -np.inf, dtype=np.float32)
    for row in range(len(allowed)):
        candidates = np.flatnonzero((allowed[row] >= threshold[row]) & (allowed[row] > -np.inf))
        order = candidates[np.argsort(-allowed[row, candidates], kind="stable")][:k]
        items[row, : len(order)] = order
        best[row, : len(order)] = allowed[row, order]
    return items, best
