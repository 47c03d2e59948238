"""The strategy `semantic`: titles like the history's, the most similar ones of the whole catalogue."""

from __future__ import annotations

import numpy as np
import torch

from rosepo.data.random import Draws
from rosepo.lm.titles.title_embeddings import history_similarity
from rosepo.sampling.strategies.example_batch import Examples, Excluded
from rosepo.sampling.strategies.picking import pick_from_top
from rosepo.sampling.strategies.protocol import Strategy, StrategyInputs

CELLS = 1 << 25
"""Similarities of examples to titles that are held at once: 128 MiB."""


class LookAlikes:
    """Titles like the history's, against semantic hallucination: a random one of the `top` most similar.

    Args:
        embeddings: float32 [n_items, d], unit rows; may be a mapped file.
        decay: weight of a history item relative to the next newer one.
        top: look-alikes that each pick chooses from.
        device: where titles are compared.
    """

    def __init__(self, embeddings: np.ndarray, decay: float, top: int, device: str = "cpu") -> None:
        self.embeddings, self.decay, self.top = embeddings, decay, top
        self._titles = torch.from_numpy(embeddings).to(device)  # on a CPU the same memory

    def __call__(self, examples: Examples, count: int, draws: Draws) -> np.ndarray:
        profiles = torch.from_numpy(history_similarity(self.embeddings, examples.histories, self.decay))
        ranked = top_similar(self._titles, profiles.to(self._titles.device), examples.excluded, self.top + count - 1)
        return pick_from_top(ranked, self.top, count, draws)


def make_semantic(inputs: StrategyInputs) -> Strategy:
    """Raises ValueError where there are no title embeddings."""
    if inputs.embeddings is None:
        raise ValueError("semantic needs title embeddings")
    # Mapped, not read: actors of one machine share its pages. Never written to, but torch asks for an array that
    # could be.
    vectors = np.load(inputs.embeddings, mmap_mode="c", allow_pickle=False)
    return LookAlikes(vectors, inputs.pairs.semantic_decay, inputs.option("semantic_top"), inputs.device)


def top_similar(
    titles: torch.Tensor, profiles: torch.Tensor, excluded: Excluded, count: int, cells: int = CELLS
) -> np.ndarray:
    """The `count` items most similar to each profile, best first, equal ones in item order.

    Products are float32: items alike but for their last bits may change places with the device and the number of
    profiles that are asked about at once.

    Args:
        titles: float32 [n_items, d].
        profiles: float32 [N, d], on the same device.
        excluded: of the N examples.
        cells: similarities that are held at once, of one example at least.

    Returns:
        int64 [N, count], -1 behind the last item that is left.
    """
    best = np.full((len(profiles), count), -1, dtype=np.int64)
    size = max(1, cells // len(titles))
    for low in range(0, len(profiles), size):
        high = min(low + size, len(profiles))
        scores = profiles[low:high] @ titles.T
        entries = slice(*excluded.offsets[[low, high]])
        taken = np.stack([excluded.rows[entries] - low, excluded.items[entries]])
        scores[tuple(torch.from_numpy(taken).to(scores.device))] = -torch.inf
        found = _highest(scores, min(count, len(titles)))
        best[low:high, : found.shape[1]] = found.cpu().numpy()
    return best


def _highest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Columns int64 [N, count] of each row's highest scores [N, m], best first, equal ones in order; -1 for -inf."""
    values, columns = scores.topk(min(count + 1, scores.shape[1]), dim=1)
    # Which of equal scores `topk` takes, and in what order, is its own affair: where the last one that is taken equals
    # the next, the first ones of that score are taken; then all are put in order.
    last, rest = values[:, count - 1], values[:, count:]
    rows = ((rest == last[:, None]) & (rest > -torch.inf)).any(dim=1).nonzero()[:, 0]
    if len(rows):
        values[rows, :count], columns[rows, :count] = _first_of_equal(scores[rows], last[rows, None], count)
    columns, order = columns[:, :count].sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return columns.gather(1, order).masked_fill(values.isneginf(), -1)


def _first_of_equal(scores: torch.Tensor, last: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and columns of the `count` highest scores [n, m], of those that equal `last` [n, 1] the first ones."""
    equal = scores == last
    room = count - (scores > last).sum(dim=1, keepdim=True)
    surplus = equal & (equal.cumsum(dim=1, dtype=torch.int32) > room)
    values, columns = scores.masked_fill(surplus, -torch.inf).topk(count, dim=1)
    return values, columns
