"""What recommendations lean towards: popular titles, and look-alikes of the history. Each beside the truth's own value.

The truth (the items people really chose) is popular too and resembles their history; only what goes beyond it is bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LIST = 10
"""Places of a ranking that are looked at."""


@dataclass(frozen=True)
class Popularity:
    """Popularity of every item, from the training part.

    Attributes:
        log: float64 [n_items], log(1 + interactions in training).
        head: bool [n_items], the tenth of the catalogue with the most interactions (ties in item order, at least one).
    """

    log: np.ndarray
    head: np.ndarray

    @classmethod
    def of(cls, train_count: np.ndarray) -> Popularity:
        """From interactions int64 [n_items]."""
        head = np.zeros(len(train_count), dtype=bool)
        head[np.argsort(-train_count, kind="stable")[: max(1, len(train_count) // 10)]] = True
        return cls(np.log1p(train_count.astype(np.float64)), head)


def popularity_series(items: np.ndarray, popularity: Popularity) -> dict[str, np.ndarray]:
    """Per example: mean log-popularity and share of the most popular tenth, float64 [N] each, NaN for an empty ranking.

    Args:
        items: item indexes int64 [N, k], padded with -1.
    """
    found = items >= 0
    count = np.where(found.any(1), found.sum(1), np.nan)
    safe = np.where(found, items, 0)
    return {
        "log_popularity": (popularity.log[safe] * found).sum(1) / count,
        "head_share": (popularity.head[safe] & found).sum(1) / count,
    }


def exposure(items: np.ndarray, n_items: int) -> np.ndarray:
    """How often each item is recommended: int64 [n_items] of rankings padded with -1."""
    return np.bincount(items[items >= 0].ravel(), minlength=n_items)


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of counts [n]: 0 where all items are recommended alike, near 1 where one takes all."""
    ordered = np.sort(counts.astype(np.float64))
    total = ordered.sum()
    if total == 0:
        return float("nan")
    places = np.arange(1, len(ordered) + 1)
    return float(((2 * places - len(ordered) - 1) * ordered).sum() / (len(ordered) * total))


def concentration(counts: np.ndarray) -> dict[str, float]:
    """Gini and catalogue coverage (share of items recommended at least once) of `exposure` counts."""
    return {"gini": gini(counts), "coverage": float((counts > 0).mean()) if len(counts) else float("nan")}


def hallucination_series(
    items: np.ndarray, targets: np.ndarray, similarity: np.ndarray, truth: np.ndarray
) -> dict[str, np.ndarray]:
    """Semantic hallucination per example: likeness to the history of wrong recommendations minus that of the truth.

    Args:
        items: item indexes int64 [N, k], padded with -1.
        targets: item indexes int64 [N].
        similarity: float [N, k], of each recommended item to its example's history; NaN without a history.
        truth: float [N], of the target to it.

    Returns:
        `hallucination` (all wrong entries), `hallucination@1` (the first place, where it is wrong) and `look_alike`
        (likeness of wrong entries as such): float64 [N], NaN where nothing is wrong or there is no history.
    """
    wrong = (items >= 0) & (items != targets[:, None])
    count = np.where(wrong.any(1), wrong.sum(1), np.nan)
    mean = np.where(wrong, similarity, 0.0).sum(1) / count
    first = np.where(wrong[:, 0], similarity[:, 0], np.nan)
    return {"look_alike": mean, "hallucination": mean - truth, "hallucination@1": first - truth}


def likeness(embeddings: np.ndarray, profiles: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Similarity float64 [N, k] of items int64 [N, k] (-1 gives 0) to the profiles of `history_similarity`."""
    picked = np.einsum("nd,nkd->nk", profiles, embeddings[np.maximum(items, 0)]).astype(np.float64)
    return np.where(items >= 0, picked, 0.0)
