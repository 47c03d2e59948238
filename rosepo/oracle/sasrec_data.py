"""Item sequences as SASRec trains on them: batches by length, the loss at every target, ranks on validation."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional

from rosepo.data.item_columns import flat_items
from rosepo.oracle.sasrec import Ensemble, SASRec, pad_histories

BUCKET = 8
"""Batches that are sorted by length among themselves, so that short sequences are not padded to long ones."""
RANKING_BATCH = 512
IGNORED = -100
"""Target where nothing is to be predicted."""


@dataclass(frozen=True)
class Sequences:
    """Item sequences end to end: `items[offsets[i]:offsets[i + 1]]`, of which the last `n_targets[i]` are targets."""

    items: np.ndarray
    offsets: np.ndarray
    n_targets: np.ndarray

    def __len__(self) -> int:
        return len(self.n_targets)

    @property
    def lengths(self) -> np.ndarray:
        """Items of each sequence, int64 [n]."""
        return np.diff(self.offsets)

    def rows(self, rows: np.ndarray) -> list[np.ndarray]:
        """The sequences at `rows`."""
        return [self.items[self.offsets[row] : self.offsets[row + 1]] for row in rows]

    @classmethod
    def from_table(cls, table: pa.Table) -> Sequences:
        """Columns `items` (lists of item indexes) and `n_targets`."""
        return cls(*flat_items(table, "items", np.int32), table["n_targets"].to_numpy())


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


@torch.inference_mode()
def ranks_of(
    model: SASRec | Ensemble, histories: list[np.ndarray], targets: np.ndarray, seen: list[np.ndarray] | None = None
) -> np.ndarray:
    """Rank int64 [N] (0 is best) of each target among all items that were not seen before; ties by item index.

    Args:
        seen: items that do not compete, one array an example; None takes the histories.
    """
    device = next(model.parameters()).device
    ranks = np.empty(len(targets), dtype=np.int64)
    # Histories of like length share a batch: padding short ones to the longest of all would be most of the work.
    order = np.argsort([len(history) for history in histories], kind="stable")
    for start in range(0, len(targets), RANKING_BATCH):
        part = order[start : start + RANKING_BATCH]
        padded = pad_histories([histories[row] for row in part], model.config.max_length).to(device)
        known = padded if seen is None else pad_histories([seen[row] for row in part], sys.maxsize).to(device)
        # One column more takes the padding; it is cut off again.
        scores = functional.pad(model.scores(padded), (1, 0)).scatter_(1, known, -math.inf)[:, 1:]
        target = torch.from_numpy(targets[part].astype(np.int64)).to(device)[:, None]
        own = scores.gather(1, target)
        tied = (scores == own) & (torch.arange(scores.shape[1], device=device) < target)
        # A score that is not a number is beaten by all others: it is no answer.
        ahead = (scores > own) | tied | ~torch.isfinite(own)
        ranks[part] = ahead.sum(1).cpu().numpy()
    return ranks
