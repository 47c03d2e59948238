"""Confidence intervals by drawing users, with all their examples, again and again (bootstrap; Efron, 1979).

Examples of one user hang together, so users are what is drawn. Two systems measured on the same examples are compared
with the same draws: the spread that both share cancels out (paired bootstrap; Koehn, 2004).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

_CELLS = 2**24
"""Weights held at once (resamples × users): 128 MiB."""
_TAIL = (1.0 - 0.95) / 2.0
"""Share of the draws below an interval, and above it."""


@dataclass(frozen=True)
class Estimate:
    """A mean over examples and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampled:
    """Series by name, each its mean and the means under every draw; all under the same draws."""

    series: Mapping[Hashable, tuple[float, np.ndarray]]

    def mean(self, name: Hashable) -> Estimate:
        """The mean of a series and its interval."""
        return self._estimate(*self.series[name])

    def difference(self, name: Hashable, base: Hashable) -> Estimate:
        """Mean of one series minus that of another, with the paired interval."""
        (mean, draws), (base_mean, base_draws) = self.series[name], self.series[base]
        return self._estimate(mean - base_mean, draws - base_draws)

    def _estimate(self, mean: float, draws: np.ndarray) -> Estimate:
        if not np.isfinite(draws).any():
            return Estimate(mean, float("nan"), float("nan"))
        low, high = np.nanquantile(draws, [_TAIL, 1.0 - _TAIL])
        return Estimate(mean, float(low), float(high))


class UserBootstrap:
    """Resampled means of any number of per-example values, all under the same draws of users.

    Args:
        users: [N] user of every example, any comparable dtype.
        resamples: draws behind an interval.
        seed: of the draws; equal arguments give equal intervals.
    """

    def __init__(self, users: np.ndarray, resamples: int = 1000, seed: int = 0) -> None:
        names, self._codes = np.unique(users, return_inverse=True)
        self.n_users, self.n_examples = len(names), len(users)
        self.resamples, self.seed = resamples, seed

    def resample(self, values: Mapping[Hashable, np.ndarray] | Iterable[tuple[Hashable, np.ndarray]]) -> Resampled:
        """Draw once for every series float [N]; NaN marks an example that a series does not count.

        Examples weigh alike, whoever they belong to. A series without a single number gives NaN throughout. Of each
        series only its sums by user are kept (8 bytes a user, 16 where it has NaN), so that an iterable may make them
        one by one. The draws of a single user are NaN: one unit says nothing of the spread between units.
        """
        names: list[Hashable] = []
        sums: list[np.ndarray] = []
        counts, counted_by = [np.bincount(self._codes, minlength=self.n_users).astype(np.float64)], []
        for name, series in values.items() if isinstance(values, Mapping) else values:
            counted = ~np.isnan(series)
            whole = bool(counted.all())
            codes, kept = (self._codes, series) if whole else (self._codes[counted], series[counted])
            names.append(name)
            sums.append(np.bincount(codes, kept, minlength=self.n_users))
            counted_by.append(0 if whole else len(counts))
            if not whole:
                counts.append(np.bincount(codes, minlength=self.n_users).astype(np.float64))
        means, draws = self._resampled(np.stack(sums, axis=1), np.stack(counts, axis=1), np.array(counted_by))
        return Resampled({name: (float(means[i]), draws[:, i]) for i, name in enumerate(names)})

    def _resampled(self, sums: np.ndarray, counts: np.ndarray, by: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means [M] and their resampled values [resamples, M].

        Args:
            sums: of M series, [n_users, M].
            counts: numbers behind them, [n_users, C]; `by` [M] says which column is whose.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            means = sums.sum(0) / counts.sum(0)[by]
        if self.n_users < 2:  # every draw would be the same: an interval without width would claim to be sure
            return means, np.full((self.resamples, sums.shape[1]), np.nan)
        rng = np.random.default_rng([self.seed, self.n_users])
        chunk = max(1, _CELLS // max(self.n_users, 1))
        draws = np.empty((self.resamples, sums.shape[1]))
        with np.errstate(invalid="ignore", divide="ignore"):
            for start in range(0, self.resamples, chunk):
                rows = min(chunk, self.resamples - start)
                weights = _draw_users(rng, rows, self.n_users)
                draws[start : start + rows] = (weights @ sums) / (weights @ counts)[:, by]
        return means, draws


def _draw_users(rng: np.random.Generator, rows: int, n_users: int) -> np.ndarray:
    """How often each user is drawn, with replacement: float64 [rows, n_users], every row summing to n_users."""
    drawn = rng.integers(0, n_users, size=(rows, n_users))
    offsets = np.arange(rows)[:, None] * n_users
    return np.bincount((drawn + offsets).ravel(), minlength=rows * n_users).reshape(rows, n_users).astype(np.float64)


def plain(estimate: Estimate) -> dict[str, float | None]:
    """`{"value", "low", "high"}` for JSON: None where there is no number."""
    return {key: value if math.isfinite(value) else None for key, value in asdict(estimate).items()}
