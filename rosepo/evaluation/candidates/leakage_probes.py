"""Rules that know nothing of the user, on candidate lists: what a model has to beat before its hits mean anything.

Public lists were once shuffled by a generator seeded with the target, and a rule that looks at slots alone found most
targets. A probe learns from other examples' lists, and is measured on those that the models are measured on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rosepo.data.candidates import target_slots
from rosepo.data.catalogue import Catalogue
from rosepo.data.item_columns import items_of
from rosepo.data.seen import example_files


@dataclass(frozen=True)
class Probes:
    """What other lists tell.

    Attributes:
        slots: int64 [C], how often the target stood in each slot; empty where there were no other lists.
        pairs: sorted int64, `item * C + slot` of every target there was,
        pair_counts: and how often.
        popularity: int64 [n_items], interactions in training.
    """

    slots: np.ndarray
    pairs: np.ndarray
    pair_counts: np.ndarray
    popularity: np.ndarray

    def series(self, candidates: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
        """Hits of every probe, float64 [n] each, on lists int64 [n, C] with targets int64 [n].

        `chance` is 1 / C; `slot` always takes the slot where most other targets stand; `item_slot` the candidate that
        was most often a target in the very slot where it stands; `popularity` the candidate most popular in training.
        Where a rule is torn between m candidates, the right one among them counts 1 / m.
        """
        size = candidates.shape[1]
        is_target = candidates == targets[:, None]
        stood = np.zeros(size, dtype=np.int64)
        stood[: len(self.slots)] = self.slots
        keys = candidates * size + np.arange(size)
        at = np.minimum(np.searchsorted(self.pairs, keys), max(len(self.pairs) - 1, 0))
        known = self.pairs[at] == keys if len(self.pairs) else np.zeros(keys.shape, dtype=bool)
        seen = np.where(known, self.pair_counts[at] if len(self.pairs) else 0, 0)
        return {
            "chance": np.full(len(candidates), 1.0 / size),
            "slot": _best(np.broadcast_to(stood, candidates.shape), is_target),
            "item_slot": _best(seen, is_target),
            "popularity": _best(self.popularity[candidates], is_target),
        }


def learn_probes(examples: Path, split: str, catalogue: Catalogue) -> Probes:
    """What the lists of an examples table tell that are not of the `split` that is evaluated; read file by file."""
    slots = pairs = counts = np.zeros(0, dtype=np.int64)
    for path in example_files(examples):
        table = pq.read_table(path, columns=["target", "candidates"], filters=[("split", "!=", split)])
        if not len(table):
            continue
        is_target = target_slots(table)
        slots = is_target.sum(axis=0) + (slots if len(slots) else 0)
        places = items_of(table, "target") * is_target.shape[1] + is_target.argmax(axis=1)
        # No more is kept than there are items and slots, however many lists there are.
        pairs, place = np.unique(np.concatenate([pairs, places]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([counts, np.ones(len(places), dtype=np.int64)])).astype(np.int64)
    return Probes(slots, pairs, counts, catalogue.train_count)


def _best(scores: np.ndarray, is_target: np.ndarray) -> np.ndarray:
    """Share of the target among the highest scores of each row, float64 [n]."""
    best = scores == scores.max(axis=1, keepdims=True)
    return (best & is_target).sum(axis=1) / best.sum(axis=1)
