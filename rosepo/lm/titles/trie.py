"""The catalogue's titles as a trie of tokens in flat arrays, searched for whole batches of beams at once.

A completion is a title's tokens and one EOS, so no completion is a prefix of another ("Alien" and "Aliens" part at the
EOS) and every leaf is one item. Nodes are numbered level by level with the children of a node next to one another, and
leaves are ranked depth first, so that a node covers one contiguous range of leaf ranks: that makes both expansion and
the exclusion of items a matter of array arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rosepo.utils.errors import UserError


@dataclass(frozen=True)
class TitleTrie:
    """A trie over completions in compressed-sparse-row form; node 0 is the root.

    Attributes:
        first_child: int64 [n_nodes + 1]; the children of node ``n`` are the nodes ``first_child[n]`` up to (not
            including) ``first_child[n + 1]``, in ascending order of token.
        token: int32 [n_nodes]; the token on the edge into a node (-1 for the root).
        low, high: int64 [n_nodes]; the leaf ranks under a node are ``low <= rank < high``.
        item_at: int64 [n_items]; the item index of each leaf rank.
        rank_of: int64 [n_items]; the leaf rank of each item index.
        depth: tokens of the longest completion.
    """

    first_child: np.ndarray
    token: np.ndarray
    low: np.ndarray
    high: np.ndarray
    item_at: np.ndarray
    rank_of: np.ndarray
    depth: int

    @classmethod
    def build(cls, completions: Sequence[np.ndarray]) -> TitleTrie:
        """The trie of `completions` (one int array an item, in item order), each ending in EOS.

        Works level by level on all completions at once: no Python loop over titles or nodes.

        Raises:
            UserError: no completions, an empty one, two that are equal, or one that begins another.
        """
        if not len(completions):
            raise UserError("the catalogue is empty: there is no title to recommend")
        lengths = np.fromiter((len(tokens) for tokens in completions), dtype=np.int64, count=len(completions))
        if not lengths.min():
            raise UserError(f"item {int(lengths.argmin())} of the catalogue has a title without tokens")
        flat = np.concatenate(completions).astype(np.int64, copy=False)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])

        order = np.arange(len(completions))  # item at each rank, sorted by the levels seen so far
        node_at = np.zeros(len(completions), dtype=np.int64)  # node of each rank at the present level
        tokens, lows, highs, counts = [np.array([-1])], [np.array([0])], [np.array([len(order)])], []
        level_start, level_size = 0, 1
        width = int(flat.max()) + 1
        for level in range(int(lengths.max())):
            live = np.flatnonzero(lengths[order] > level)
            items = order[live]
            token = flat[starts[items] + level]
            key = (node_at[live] - level_start) * width + token
            sorting = np.argsort(key, kind="stable")
            key, items, token = key[sorting], items[sorting], token[sorting]
            order[live] = items
            first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
            size = np.diff(np.concatenate([first, [len(live)]]))
            parent = key[first] // width
            counts.append(np.bincount(parent, minlength=level_size))
            level_start, level_size = level_start + level_size, len(first)
            node_at[live] = level_start + np.repeat(np.arange(level_size), size)
            tokens.append(token[first])
            lows.append(live[first])
            highs.append(live[first] + size)
        counts.append(np.zeros(level_size, dtype=np.int64))

        first_child = 1 + np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        low, high = np.concatenate(lows), np.concatenate(highs)
        leaf = np.diff(first_child) == 0
        _check_leaves(leaf, low, high, order)
        rank_of = np.empty_like(order)
        rank_of[order] = np.arange(len(order))
        return cls(first_child, np.concatenate(tokens).astype(np.int32), low, high, order, rank_of, int(lengths.max()))

    def __len__(self) -> int:
        """Items (leaves)."""
        return len(self.item_at)

    def expand(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All children of `nodes` (int64 [m]): where in `nodes` each one's parent stands, and itself; int64 [e]."""
        begin = self.first_child[nodes]
        count = self.first_child[nodes + 1] - begin
        parent = np.repeat(np.arange(len(nodes)), count)
        within = np.arange(len(parent)) - np.repeat(np.cumsum(count) - count, count)
        return parent, begin[parent] + within

    def is_leaf(self, nodes: np.ndarray) -> np.ndarray:
        """Which of `nodes` end a completion; bool."""
        return self.first_child[nodes + 1] == self.first_child[nodes]

    def items(self, leaves: np.ndarray) -> np.ndarray:
        """Item index of each leaf node; int64."""
        return self.item_at[self.low[leaves]]


class Exclusion:
    """Items that must not be found, per example, as one sorted array of ``example * n_items + leaf rank``."""

    def __init__(self, trie: TitleTrie, excluded: Sequence[np.ndarray]) -> None:
        """`excluded`: one array of item indexes an example, in any order, repeats allowed."""
        self._trie = trie
        sizes = np.fromiter((len(items) for items in excluded), dtype=np.int64, count=len(excluded))
        items = np.concatenate([np.zeros(0, dtype=np.int64), *excluded]).astype(np.int64, copy=False)
        rows = np.repeat(np.arange(len(excluded)), sizes)
        self._keys = np.unique(rows * len(trie) + trie.rank_of[items])

    def allows(self, rows: np.ndarray, nodes: np.ndarray) -> np.ndarray:
        """Whether an item under each node is left for its example. `rows`, `nodes`: int64 [e]; bool [e]."""
        base = rows * len(self._trie)
        low, high = base + self._trie.low[nodes], base + self._trie.high[nodes]
        if len(self._keys) < len(low) and np.all(low[1:] > low[:-1]):
            # As at the root, where whole catalogues are: ask for each of the few keys which node it is under.
            under = np.searchsorted(low, self._keys, side="right") - 1
            under = under[(under >= 0) & (self._keys < high[under])]
            inside = np.bincount(under, minlength=len(low))
        else:
            # Both ends in one call: the keys are searched while they are in the processor's cache.
            inside = np.diff(np.searchsorted(self._keys, np.stack([low, high])), axis=0)[0]
        return high - low > inside


def _check_leaves(leaf: np.ndarray, low: np.ndarray, high: np.ndarray, order: np.ndarray) -> None:
    shared = np.flatnonzero(leaf & (high - low > 1))
    if len(shared):
        first, second = sorted(order[low[shared[0]] : high[shared[0]]][:2].tolist())
        raise UserError(
            f"items {first} and {second} of the catalogue have the same title tokens: change one of the titles"
        )
    if int(leaf.sum()) != len(order):
        raise UserError(
            "one completion of the catalogue begins another: completions must end in an EOS that titles do not contain"
        )
