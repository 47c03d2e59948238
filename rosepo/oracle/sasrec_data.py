"""Item sequences as SASRec trains on them: batches by length, the loss at every target, ranks on validation."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rosepo.data.item_columns import ItemLists
from rosepo.oracle.log import Sequences
from rosepo.oracle.sasrec import Ensemble, SASRec, pad_histories

BUCKET = 8
"""Batches that are sorted by length among themselves, so that short sequences are not padded to long ones."""
RANKING_BATCH = 512
RANKING_SCORES = 1 << 25
"""Scores of a batch that is ranked at most, whatever the size of the catalogue."""
IGNORED = -100
"""Target where nothing is to be predicted."""


class NextItemLoss(nn.Module):
    """Summed cross-entropy of the targets of a batch; a module of its own so that DDP sees one forward."""

    def __init__(self, model: SASRec) -> None:
        super().__init__()
        self.model = model

    def forward(self, history: Tensor, targets: Tensor) -> Tensor:
        """Scalar loss of histories int64 [B, T] and the item indexes int64 [B, T] to predict (`IGNORED`: none)."""
        counted = targets != IGNORED
        logits = self.model.logits(self.model(history)[counted])
        return functional.cross_entropy(logits, targets[counted], reduction="sum")


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Rows of every step of an epoch, each row once: shuffled, sorted by length in buckets, steps shuffled again."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), batch_size * BUCKET):
        bucket = order[start : start + batch_size * BUCKET]
        bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
        batches += [bucket[first : first + batch_size] for first in range(0, len(bucket), batch_size)]
    return [batches[place] for place in rng.permutation(len(batches))]


def batch_tensors(sequences: Sequences, rows: np.ndarray, max_length: int) -> tuple[Tensor, Tensor]:
    """What `NextItemLoss` takes for the given rows: each item but a sequence's last predicts the one after it."""
    padded = pad_histories(sequences.rows(rows), max_length + 1)
    history, targets = padded[:, :-1], padded[:, 1:] - 1
    place = torch.arange(targets.shape[1])
    lengths = (padded != 0).sum(1, keepdim=True) - 1
    first = lengths - torch.from_numpy(sequences.n_targets[rows].astype(np.int64))[:, None]
    return history, targets.masked_fill((place >= lengths) | (place < first), IGNORED)


def ranks_of(
    model: SASRec | Ensemble,
    histories: ItemLists,
    targets: np.ndarray,
    seen: ItemLists | None = None,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Rank int64 [n] (0 is best) of the targets at `rows` (None: all) among all items that were not seen before; ties
    by item index. Arguments as those of `rank_batches`."""
    rows = np.arange(len(targets)) if rows is None else rows
    ranks = np.empty(len(targets), dtype=np.int64)
    for part, found in rank_batches(model, histories, targets, seen, rows):
        ranks[part] = found
    return ranks[rows]


def rank_batches(
    model: SASRec | Ensemble,
    histories: ItemLists,
    targets: np.ndarray,
    seen: ItemLists | None,
    rows: np.ndarray,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What `ranks_of` puts together, batch by batch: rows int64 [B] and the ranks int64 [B] of their targets.

    Args:
        histories, targets: of N examples.
        seen: items that do not compete; None takes the histories.
        rows: of the examples that are ranked.
        rank, world: every `world`-th batch is ranked, from number `rank` on.
    """
    size = max(1, min(RANKING_BATCH, RANKING_SCORES // model.config.n_items))
    # Histories of like length share a batch: padding short ones to the longest of all would be most of the work.
    order = rows[np.argsort(histories.lengths[rows], kind="stable")]
    for start in range(rank * size, len(order), world * size):
        part = order[start : start + size]
        known = None if seen is None else seen.rows(part)
        yield part, _ranks(model, histories.rows(part), targets[part], known)


@torch.inference_mode()
def _ranks(
    model: SASRec | Ensemble, histories: list[np.ndarray], targets: np.ndarray, seen: list[np.ndarray] | None
) -> np.ndarray:
    device = next(model.parameters()).device
    padded = pad_histories(histories, model.config.max_length).to(device)
    known = padded if seen is None else pad_histories(seen, sys.maxsize).to(device)
    # One column more takes the padding; it is cut off again.
    scores = functional.pad(model.scores(padded), (1, 0)).scatter_(1, known, -math.inf)[:, 1:]
    target = torch.from_numpy(targets.astype(np.int64)).to(device)[:, None]
    own = scores.gather(1, target)
    tied = (scores == own) & (torch.arange(scores.shape[1], device=device) < target)
    # A score that is not a number is beaten by all others: it is no answer.
    ahead = (scores > own) | tied | ~torch.isfinite(own)
    ranks: np.ndarray = ahead.sum(1).cpu().numpy()
    return ranks
