"""The oracle's whole distribution as targets of a row: at every branching of the catalogue's titles, what each further
token's titles have of it.

Titles are leaves of a trie, so a cross-entropy over the catalogue is a sum over the nodes ``v`` where titles part:

    H(p, π) = -Σ_y p(y) log π(y|x) = Σ_v p(v) H(p(·|v), π(·|v))

The root belongs to every title and is computed whole. What lies deeper is estimated from a group's titles as `distill`
does (`drawn_weights`), each standing for the branchings on its own way down instead of for its tokens alone: the same
mean, and less noise the earlier titles part (Rao and Blackwell). Titles that are one token leave nothing to estimate.

All numpy, for the actors that feed training.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import entr, expit

from rosepo.data.prompts import PromptBuilder
from rosepo.lm.rows.rows import Row
from rosepo.lm.titles.trie import TitleTrie


@dataclass(frozen=True)
class Targets:
    """What a node puts in the place of one token: tokens int64 [n], their shares float64 [n], which sum to 1."""

    tokens: np.ndarray
    shares: np.ndarray

    @property
    def entropy(self) -> float:
        """In nats: the least that a cross-entropy to these shares can be."""
        return float(entr(self.shares).sum())


class TrieTargets:
    """The titles of a catalogue as a trie, asked for the targets of groups."""

    def __init__(self, builder: PromptBuilder) -> None:
        self.trie = TitleTrie.build([builder.completion(item) for item in range(len(builder))])
        self._paths: dict[bytes, np.ndarray] = {}

    def add(
        self, row: Row, size: int, scores: np.ndarray, rest: np.ndarray, shares: np.ndarray
    ) -> tuple[Row, np.ndarray]:
        """The row with further completions, whose log-probabilities are weighted sums over branchings.

        Args:
            row: its first completions are those of G groups, each of `size` titles, the chosen one first.
            scores: float [G, size], the oracle's f of these titles.
            rest: float [G], ``log Σ exp f`` over the titles that can be drawn.
            shares: float [G, n_items], ``exp(f - rest)`` of every title, 0 where it cannot be drawn.

        Returns:
            The row, and the entropy of its new completions, float32 [G * size + G]. Behind the completions of `row`
            come one for each title of the groups, of the branchings below the root on its way down, and one for each
            group, of the root.
        """
        bounds = np.searchsorted(row.completion, np.arange(row.n_completions + 1))
        made: list[tuple[int, Targets]] = []  # where in the row each is predicted
        owners: list[int] = []
        entropies = np.zeros(len(rest) * (size + 1), dtype=np.float32)
        for group in range(len(rest)):
            chosen = self._path(row.targets[slice(*bounds[group * size : group * size + 2])])
            mass = self._mass(shares[group], float(expit(scores[group, 0] - rest[group])), int(chosen[-1]))
            for place in range(group * size, (group + 1) * size):
                at = row.predict_at[bounds[place] : bounds[place + 1]]
                path = self._path(row.targets[bounds[place] : bounds[place + 1]])
                found = [self._targets(mass, node, child) for node, child in itertools.pairwise(path.tolist())]
                made += zip(at[1:].tolist(), found[1:], strict=True)
                owners += [place] * (len(found) - 1)
                entropies[place] = sum(targets.entropy for targets in found[1:])
                if place == group * size:
                    made.append((int(at[0]), found[0]))
                    owners.append(len(rest) * size + group)
                    entropies[len(rest) * size + group] = found[0].entropy
        return _with(row, made, np.array(owners), len(entropies)), entropies

    def _path(self, completion: np.ndarray) -> np.ndarray:
        """The nodes of a title, int64 [tokens + 1], from the root to its leaf."""
        key = np.asarray(completion, dtype=np.int32).tobytes()
        if key not in self._paths:
            trie, path = self.trie, [0]
            for token in completion:
                low, high = trie.first_child[path[-1] : path[-1] + 2]
                path.append(int(low + np.searchsorted(trie.token[low:high], token)))
            self._paths[key] = np.array(path)
        return self._paths[key]

    def _mass(self, shares: np.ndarray, chosen_share: float, chosen: int) -> np.ndarray:
        """What the leaves before each rank have in all, float64 [n_items + 1]."""
        p = shares[self.trie.item_at].astype(np.float64)
        p *= (1.0 - chosen_share) / p.sum()
        p[self.trie.low[chosen]] = chosen_share
        return np.append(0.0, np.cumsum(p))

    def _targets(self, mass: np.ndarray, node: int, child: int) -> Targets:
        """Of a node on the way to `child`: to it alone where there is no other way, or none that has a share."""
        trie = self.trie
        children = np.arange(*trie.first_child[node : node + 2])
        shares = mass[trie.high[children]] - mass[trie.low[children]] if len(children) > 1 else np.zeros(1)
        total = shares.sum()
        if total <= 0.0:
            return Targets(trie.token[[child]], np.ones(1))
        kept = shares > 0.0
        return Targets(trie.token[children[kept]], shares[kept] / total)


def _with(row: Row, made: Sequence[tuple[int, Targets]], owners: np.ndarray, count: int) -> Row:
    """A row with `count` further completions, of `made` targets each of which belongs to one of them (`owners`)."""
    sizes = [len(targets.tokens) for _, targets in made]
    columns = {
        "predict_at": np.repeat([at for at, _ in made], sizes),
        "targets": np.concatenate([targets.tokens for _, targets in made]),
        "completion": np.repeat(owners + row.n_completions, sizes),
    }
    weights = np.concatenate([np.ones(len(row.targets)), *(targets.shares for _, targets in made)])
    joined = {name: np.concatenate([getattr(row, name), new]).astype(np.int32) for name, new in columns.items()}
    return replace(row, **joined, n_completions=row.n_completions + count, weights=weights.astype(np.float32))
