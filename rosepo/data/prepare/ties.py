"""What comes first of the interactions of one user at one time.

Their order decides which items are targets. By item id it would tell what the log does not: catalogues number their
items in order of release, so that the last of a tie, which becomes the test target, would be the newest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rosepo.data.random import example_keys, pair_keys

TOLD = {
    "hash": "a hash of seed, user and item",
    "file": "their order in the files",
    "item_id": "item id, which tells models what comes next if ids follow release dates",
}


@dataclass(frozen=True)
class TieBreaker:
    """A number for every interaction: of two of a user at one time, the one with the smaller number comes first.

    Attributes:
        rule: `prepare.ties`.
        seed: of the run; `hash` alone depends on it.
        users, items: uint64 [n_users], [n_items], a hash of every id for `hash`, else empty.
    """

    rule: str
    seed: int
    users: np.ndarray
    items: np.ndarray

    @classmethod
    def of(cls, rule: str, seed: int, users: pa.Array, items: pa.Array) -> TieBreaker:
        """For codes that are places in the ids `users` and `items` (int64 or text)."""
        if rule != "hash":
            return cls(rule, seed, np.empty(0, np.uint64), np.empty(0, np.uint64))
        # As text: whether ids are read as integers depends on all the others.
        hashes = [example_keys(ids.cast(pa.string()).to_numpy(zero_copy_only=False)) for ids in (users, items)]
        return cls(rule, seed, hashes[0], hashes[1])

    def numbers(self, user: np.ndarray, item: np.ndarray, row: np.ndarray) -> np.ndarray:
        """uint64 [n] for interactions of codes `user` and `item` [n], which stand in `row` int64 [n] of the files."""
        if self.rule == "file":
            return row.astype(np.uint64)
        if self.rule == "item_id":
            return item.astype(np.uint64)
        return pair_keys(self.users[user], self.items[item], self.seed, "ties")


def tied(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Mask bool [n] of the rows (sorted by user and time) that share their time with another of the same user."""
    same = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    return np.append(False, same)[: len(user)] | np.append(same, False)[: len(user)]
