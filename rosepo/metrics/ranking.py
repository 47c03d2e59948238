"""Hit ratio and NDCG of rankings in which one item is right: pure functions of ranks."""

from __future__ import annotations

import numpy as np

HR_CUTOFFS = (1, 5, 10, 20)
NDCG_CUTOFFS = (1, 5, 10, 20)
MISS = -1
"""Rank of a target that a ranking does not hold."""


def target_ranks(rankings: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Where each target stands: int64 [N], 0 is the first place, `MISS` where it is absent.

    Args:
        rankings: item indexes int64 [N, k], best first, padded with -1.
        targets: item indexes int64 [N], none negative.
    """
    found = rankings == targets[:, None]
    return np.where(found.any(1), found.argmax(1), MISS).astype(np.int64)


def hit_ratio(ranks: np.ndarray, k: int) -> np.ndarray:
    """1.0 where the target is among the first `k`, else 0.0: float64 [N] of ranks int64 [N]."""
    return ((ranks >= 0) & (ranks < k)).astype(np.float64)


def ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain with one right item: 1 / log2(rank + 2) among the first `k`, else 0.0.

    The ideal ranking gains 1, so the gain is normalised as it stands (Järvelin and Kekäläinen, 2002).
    """
    return np.where(hit_ratio(ranks, k) > 0, 1.0 / np.log2(np.maximum(ranks, 0) + 2.0), 0.0)


def accuracy(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """Every accuracy metric of every example: name such as `hr@10` to float64 [N]."""
    return {f"hr@{k}": hit_ratio(ranks, k) for k in HR_CUTOFFS} | {f"ndcg@{k}": ndcg(ranks, k) for k in NDCG_CUTOFFS}
