"""A table of scores as an oracle: (example, item) to a number, in sorted arrays that processes of a machine share.

The arrays are written once, by the `oracle` stage, and mapped, not read, by whoever asks: `examples.npy` uint64 [E],
the sorted keys of the run's examples; `pairs.npy` uint64 [R], sorted, each ``row of the example * n_items + item``;
`scores.npy` float32 [R]. An example's key is a 64-bit hash of its id: among ten million examples
the chance that two share one is 3e-6.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rosepo.data.catalogue import Catalogue
from rosepo.data.random import example_keys
from rosepo.data.readers.sources import Source
from rosepo.oracle.protocol import Users
from rosepo.oracle.score_files import KEY, count_scores, read_scores
from rosepo.utils.arrays import ranges
from rosepo.utils.errors import UserError

EXAMPLES_FILE, PAIRS_FILE, SCORES_FILE = "examples.npy", "pairs.npy", "scores.npy"


class ScoreTable:
    """Scores of named pairs; what was not scored is an error.

    Args:
        examples, pairs, scores: as the files of this module.
        item_ids: of the catalogue, [n_items].
        tau: as in `Scorer`.
    """

    def __init__(
        self, examples: np.ndarray, pairs: np.ndarray, scores: np.ndarray, item_ids: np.ndarray, tau: float = 1.0
    ) -> None:
        self.examples, self.pairs, self.scores = examples, pairs, scores
        self.item_ids, self.tau = item_ids, tau

    @classmethod
    def load(cls, folder: Path, item_ids: np.ndarray, tau: float = 1.0) -> ScoreTable:
        """Map the arrays that `write_score_table` wrote into `folder`.

        Raises:
            UserError: a file that is missing or is none of NumPy's.
        """
        try:
            arrays = [
                np.load(folder / name, mmap_mode="r", allow_pickle=False)
                for name in (EXAMPLES_FILE, PAIRS_FILE, SCORES_FILE)
            ]
        except (OSError, ValueError) as error:
            raise UserError(f"the scores in {folder} cannot be read ({error}): run `rosepo oracle` again") from error
        return cls(arrays[0], arrays[1], arrays[2], item_ids, tau)

    def score(
        self, example_ids: Sequence[str], users: Users, histories: Sequence[np.ndarray], items: np.ndarray
    ) -> np.ndarray:
        """See `Scorer.score`; users and histories have no say. Raises UserError for a pair that has no score."""
        rows, known = _places(self.examples, example_keys(example_ids))
        wanted = self._pair_keys(rows[:, None], items)
        places, found = _places(self.pairs, wanted)
        found &= known[:, None]
        if not found.all():
            row, column = np.argwhere(~found)[0]
            more = int((~found).sum()) - 1
            others = f", nor for {more:,} more pairs beside it" if more else ""
            raise UserError(
                f"{KEY} has no score for example_id {example_ids[row]!r} with item_id "
                f"{_shown(self.item_ids, items[row, column])}{others}: "
                "score the chosen and the rejected items of every group, and run `rosepo oracle` again "
                "(docs/method.md, 'An oracle of your own')"
            )
        scores: np.ndarray = self.scores[places]
        return scores

    def preferences(self, example_ids: Sequence[str], targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Scores of targets int64 [N] and of the other items scored for the same examples.

        Returns:
            float32 [P] and [P], a pair an entry: the target's score and another item's; and the number of examples that
            gave pairs. One whose target has no score, or that has no other item, gives none.
        """
        rows, known = _places(self.examples, example_keys(example_ids))
        rows, targets = rows[known], targets[known]
        at_target, found = _places(self.pairs, self._pair_keys(rows, targets))
        rows, at_target = rows[found], at_target[found]
        low = np.searchsorted(self.pairs, self._pair_keys(rows, np.zeros_like(rows)))
        high = np.searchsorted(self.pairs, self._pair_keys(rows + 1, np.zeros_like(rows)))
        places = ranges(low, high - low)
        chosen = np.repeat(at_target, high - low)
        other = places != chosen
        return self.scores[chosen[other]], self.scores[places[other]], int((high - low > 1).sum())

    def _pair_keys(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        return _pair_keys(rows, items, len(self.item_ids))


def write_score_table(
    sources: Sequence[Source], example_ids: Iterable[Sequence[str]], catalogue: Catalogue, folder: Path
) -> dict[str, Any]:
    """Sort the rows of score files into the arrays of a `ScoreTable`; about 36 bytes of memory a row, beside a batch.

    Args:
        sources: from `score_files`.
        example_ids: ids of the run's examples, a batch at a time; rows of other examples are counted and left out.

    Returns:
        Counts: `rows` kept, `examples` with a score, `unknown_rows` and `unknown_examples` left out.

    Raises:
        UserError: an item that the catalogue does not hold, a pair that is scored twice, or no example of this run.
    """
    known = np.sort(np.concatenate([np.empty(0, np.uint64), *(example_keys(ids) for ids in example_ids)]))
    total = count_scores(sources)
    pairs, scores = np.empty(total, np.uint64), np.empty(total, np.float32)
    unknown: list[np.ndarray] = []
    end = 0
    for name, examples, item_ids, values in read_scores(sources):
        rows, here = _rows_of(examples, known)
        unknown.append(np.unique(example_keys(pc.unique(examples.filter(pa.array(~here))).to_pylist())))
        items = _item_indexes(name, item_ids, catalogue)
        kept = slice(end, end + int(here.sum()))
        pairs[kept], scores[kept] = _pair_keys(rows[here], items[here], len(catalogue)), values[here]
        end = kept.stop
    if not end:
        raise UserError(
            f"{KEY}: none of its {total:,} rows is of an example of this run (the last is {examples[-1].as_py()!r}): "
            "take example_id from examples/ or groups/"
        )
    order = np.argsort(pairs[:end], kind="stable")
    pairs, scores = pairs[:end][order], scores[:end][order]
    repeated = np.flatnonzero(pairs[1:] == pairs[:-1])
    if len(repeated):
        row, item = divmod(int(pairs[repeated[0]]), len(catalogue))
        raise UserError(
            f"{KEY} scores {len(repeated):,} pairs twice, the first example_id {_name_of(known[row], sources)!r} with "
            f"item_id {_shown(catalogue.item_ids, item)}: keep one row for each example and item"
        )
    for name, values in ((EXAMPLES_FILE, known), (PAIRS_FILE, pairs), (SCORES_FILE, scores)):
        np.save(folder / name, values, allow_pickle=False)
    scored = int((np.diff(pairs // np.uint64(len(catalogue))) > 0).sum()) + 1
    strangers = len(np.unique(np.concatenate(unknown)))
    return {"rows": end, "examples": scored, "unknown_rows": total - end, "unknown_examples": strangers}


def _rows_of(examples: pa.DictionaryArray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The row of each entry's example among the known keys, and whether it is one of them."""
    rows, there = _places(known, example_keys(examples.dictionary.to_pylist()))
    codes = examples.indices.to_numpy()
    return rows[codes], there[codes]


def _item_indexes(name: str, item_ids: np.ndarray, catalogue: Catalogue) -> np.ndarray:
    try:
        return catalogue.index(item_ids)
    except UserError as error:
        raise UserError(f"{KEY}: {name}: {error}: score items of examples/_items.parquet alone") from error


def _name_of(key: np.uint64, sources: Sequence[Source]) -> str:
    """The id behind a key, looked for in the files once more: only a fault needs it."""
    for _, examples, _, _ in read_scores(sources):
        names = examples.dictionary.to_pylist()
        place = np.flatnonzero(example_keys(names) == key)
        if len(place):
            return str(names[place[0]])
    raise AssertionError("a key that no file has")


def _shown(item_ids: np.ndarray, item: int) -> str:
    """An item's id as its user writes it."""
    return repr(item_ids[[item]].tolist()[0])


def _pair_keys(rows: np.ndarray, items: np.ndarray, n_items: int) -> np.ndarray:
    """uint64, ascending in (row, item); ten billion examples of a billion items fit."""
    return rows.astype(np.uint64) * np.uint64(n_items) + items.astype(np.uint64)


def _places(ordered: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted value stands in a sorted array, and whether it is there (its place is valid either way)."""
    if not len(ordered):
        return np.zeros(wanted.shape, dtype=np.int64), np.zeros(wanted.shape, dtype=bool)
    places = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return places, ordered[places] == wanted
