"""Trie-constrained beam search: the titles of a catalogue that a language model finds most likely after a prompt.

A title's score is log π(title, EOS | prompt) with the softmax over the full vocabulary, in float32: the number that a
forward pass over the whole title gives. Excluded items are taken out of the trie for their example alone, so that beams
never spend themselves on titles that may not be answered, and min(k, titles left) answers always come back.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from rosepo.data.prompts import PromptBuilder
from rosepo.lm.rows.logps import sharing_obstacle
from rosepo.lm.rows.partitioned import partitioned
from rosepo.lm.serving.served_model import ServedModel
from rosepo.lm.serving.served_rows import ServedRows
from rosepo.lm.titles.cached_prompts import PlainRows, SharedPrompts
from rosepo.lm.titles.room import Room, room_of
from rosepo.lm.titles.trie import Exclusion, TitleTrie
from rosepo.utils.console import echo
from rosepo.utils.errors import UserError

SERVED_TOKENS = 2**15
"""Prompt tokens and beams that a server is asked about at once: it makes batches of its own."""
_MANY = 32
"""Times as many as are wanted: from there on, finding those that lead is faster than sorting all."""


class Decoder:
    """Finds the most likely titles of one catalogue under one model.

    Args:
        model: a causal LM (or PEFT model on one), in eval mode, on the device that it shall run on; or one that is
            served.
        builder: the prompts' own builder; its completions are the titles that can be found.
        beams: open beams an example; titles found take up none. With as many beams as titles the search is exact.
        max_tokens: prompt tokens and beams that are in the model at once; bounds memory, does not change answers. None
            takes what the device has room for.

    Raises:
        UserError: two titles with the same tokens, or fewer than one beam.
    """

    def __init__(
        self,
        model: nn.Module | ServedModel,
        builder: PromptBuilder,
        beams: int = 20,
        *,
        max_tokens: int | None = None,
    ) -> None:
        if beams < 1:
            raise UserError(f"beams={beams}: the search needs at least one")
        self.model = model
        self.trie = TitleTrie.build([builder.completion(item) for item in range(len(builder))])
        self.beams = beams
        if isinstance(model, ServedModel):
            self.room = Room(max_tokens or SERVED_TOKENS)
        else:
            self.room = Room(max_tokens) if max_tokens else room_of(model)
        self._told = False

    def top_k(
        self, prompts: Sequence[np.ndarray], excluded: Sequence[np.ndarray], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` most likely titles after each prompt, best first; equal scores in order of item index.

        Args:
            prompts: N int arrays of token ids, as `PromptBuilder.prompt` gives them.
            excluded: N int arrays of item indexes that must not be answered.
            k: answers an example, at most `beams`.

        Returns:
            Item indexes int64 [N, k], -1 where an example has fewer titles left, and scores (log π, natural
            logarithm) float32 [N, k], -inf there.

        Raises:
            UserError: k above the number of beams.
        """
        if not 1 <= k <= self.beams:
            raise UserError(
                f"{k} answers were asked of {self.beams} beams: k must lie between 1 and the number of beams"
            )
        items = np.full((len(prompts), k), -1, dtype=np.int64)
        scores = np.full((len(prompts), k), -np.inf, dtype=np.float32)
        # Longest first: prompts of like length share a batch, and too large a batch shows at once.
        order = np.argsort([-len(prompt) for prompt in prompts], kind="stable")
        # Weights that ZeRO-3 gathers on the way are trained on afterwards, which tensors of inference mode cannot be.
        divided = isinstance(self.model, nn.Module) and partitioned(self.model)
        with torch.no_grad() if divided else torch.inference_mode():
            for rows, found in self.room.in_batches(
                order,
                lambda first: len(prompts[first]) + 2 * self.beams,
                lambda rows: self._search([prompts[row] for row in rows], [excluded[row] for row in rows], k),
            ):
                items[rows], scores[rows] = found
        return items, scores

    def _search(
        self, prompts: Sequence[np.ndarray], excluded: Sequence[np.ndarray], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        trie, exclusion = self.trie, Exclusion(self.trie, excluded)
        forward = self._forward(prompts)
        found_items = np.full((len(prompts), k), -1, dtype=np.int64)
        found_scores = np.full((len(prompts), k), -np.inf, dtype=np.float32)
        rows = np.arange(len(prompts))  # one open beam an example: the root
        nodes = np.zeros(len(prompts), dtype=np.int64)
        scores = np.zeros(len(prompts), dtype=np.float64)
        while True:
            parent, child = trie.expand(nodes)
            allowed = exclusion.allows(rows[parent], child)
            parent, child = parent[allowed], child[allowed]
            scores = scores[parent] + forward.logps(parent, trie.token[child])
            rows = rows[parent]
            ended = trie.is_leaf(child)
            _collect(found_items, found_scores, rows[ended], trie.items(child[ended]), scores[ended])
            # Scores only fall: a beam under the k-th title found cannot lead to a better one.
            open_ = np.flatnonzero(~ended & (scores.astype(np.float32) >= found_scores[rows, -1]))
            kept = open_[best_per_row(rows[open_], scores[open_], child[open_], self.beams)]
            if not len(kept):
                return found_items, found_scores
            rows, nodes, scores = rows[kept], child[kept], scores[kept]
            forward.advance(rows, parent[kept], trie.token[nodes])

    def _forward(self, prompts: Sequence[np.ndarray]) -> SharedPrompts | PlainRows | ServedRows:
        if isinstance(self.model, ServedModel):
            return ServedRows(self.model, prompts)
        reason = sharing_obstacle(self.model, max(len(prompt) for prompt in prompts) + self.trie.depth)
        if reason is None:
            return SharedPrompts(self.model, prompts)
        if not self._told:
            echo(f"beams recompute their prompts: {reason}")
            self._told = True
        return PlainRows(self.model, prompts)


def best_per_row(row: np.ndarray, score: np.ndarray, tie: np.ndarray, limit: int) -> np.ndarray:
    """Indexes of every row's `limit` highest scores, by row and falling score; the lower `tie` wins equal scores."""
    near = _leading(row, score, limit)
    order = near[np.lexsort((tie[near], -score[near], row[near]))]
    sorted_rows = row[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_rows, sorted_rows)
    return order[rank < limit]


def _leading(row: np.ndarray, score: np.ndarray, limit: int) -> np.ndarray:
    """Indexes, ascending, among which are every row's `limit` highest scores and those equal to them: of a whole
    catalogue at once few are left to be sorted."""
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(row)) + 1, [len(row)]])
    if np.diff(bounds).max() <= _MANY * limit:
        return np.arange(len(row))
    kept = []
    for start, stop in itertools.pairwise(bounds.tolist()):
        worse = -score[start:stop]  # what is no number comes last, as in the sort
        last = np.partition(worse, limit - 1)[limit - 1] if len(worse) > limit else np.inf
        kept.append(start + np.flatnonzero(~(worse > last)))
    return np.concatenate(kept)


def _collect(items: np.ndarray, scores: np.ndarray, row: np.ndarray, item: np.ndarray, score: np.ndarray) -> None:
    """Merge finished titles (flat) into the best ones so far, `items` and `scores` [N, k], in place."""
    if not len(row):
        return
    old_row, old_column = np.nonzero(items >= 0)
    row = np.concatenate([old_row, row])
    item = np.concatenate([items[old_row, old_column], item])
    score = np.concatenate([scores[old_row, old_column], score.astype(np.float32)])
    best = best_per_row(row, score, item, items.shape[1])
    row = row[best]
    column = np.arange(len(best)) - np.searchsorted(row, row)
    items[row, column], scores[row, column] = item[best], score[best]
