"""Which epsilon training takes (`align.smoothing`): the oracle's, pair by pair, or one of the controls beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds

from rosepo.config import AlignConfig
from rosepo.objectives.smoothing import RunningQuantile
from rosepo.training.feed.encoders import one_size
from rosepo.training.feed.parquet_rows import ParquetRows
from rosepo.training.feed.plan import FeedPlan

SPA_EPSILON = 0.1
"""Smoothing of `spa` where `align.epsilon_value` is unset."""
_CHUNK = 65536
_SHUFFLE = 0xE95
"""Keeps the shuffle apart from the order of training, which has the same seed."""


def smoothed(plan: FeedPlan, align: AlignConfig) -> tuple[FeedPlan, float | None]:
    """The plan that feeds the right epsilon of each pair, and the one value where a kind has one.

    `shuffled` puts another column into the plan, 4 bytes a pair that is trained on; `constant` without a value reads
    the table's column once and keeps nothing of it.

    Raises:
        UserError: groups of more than one size.
    """
    if align.smoothing is None or align.smoothing == "oracle":
        return plan, None
    if align.smoothing == "zero":
        return plan, 0.0
    if align.smoothing == "spa":
        return plan, SPA_EPSILON if align.epsilon_value is None else align.epsilon_value
    if align.smoothing == "constant":
        return plan, mean_epsilon(plan, align.epsilon_max) if align.epsilon_value is None else align.epsilon_value
    return replace(plan, instead={"epsilon": shuffled_epsilon(plan, align.epsilon_max)}), None


def tracker_of(align: AlignConfig) -> RunningQuantile | None:
    """What follows the margins for `spa`; None for every other kind."""
    return RunningQuantile(align.spa_quantile) if align.smoothing == "spa" else None


def mean_epsilon(plan: FeedPlan, maximum: float) -> float:
    """Mean of the clamped epsilon over all pairs that are trained on."""
    total, count = 0.0, 0
    for epsilon in _read(plan, maximum):
        total, count = total + float(epsilon.sum(dtype=np.float64)), count + epsilon.size
    return total / count


def shuffled_epsilon(plan: FeedPlan, maximum: float) -> np.ndarray:
    """The clamped epsilon of all pairs that are trained on, dealt out anew: float32 [n_table_rows, K], in the
    order of the table."""
    epsilon = np.empty((0, 0), dtype=np.float32)
    start = 0
    for part in _read(plan, maximum):
        if start == 0:
            epsilon = np.empty((plan.n_table_rows, part.shape[1]), dtype=np.float32)
        epsilon[start : start + len(part)] = part
        start += len(part)
    return shuffled(epsilon, plan.seed)


def shuffled(values: np.ndarray, seed: int) -> np.ndarray:
    """All values of an array permuted in place, by a permutation of (seed, number of values) alone."""
    np.random.default_rng([seed, _SHUFFLE]).shuffle(values.reshape(-1))
    return values


def _read(plan: FeedPlan, maximum: float) -> Iterator[np.ndarray]:
    """The clamped epsilon of the plan's rows in the order of the schedule's numbers: float32 [n, K], chunk by chunk."""
    table = ParquetRows(plan.folder, ["epsilon"])
    sizes: set[int] = set()
    for start in range(0, plan.n_rows, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, plan.n_rows))
        column = plan.take(table, rows)["epsilon"].combine_chunks()
        sizes |= set(pc.unique(pc.list_value_length(column)).to_pylist())
        flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        yield np.clip(flat, 0.0, maximum).reshape(len(column), one_size(sizes))


EPSILON_BINS = 20
ALL = "all strategies"


def read_epsilon(groups: Path, ceiling: float | None) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, float]]:
    """Histogram counts of epsilon, all pairs and by strategy; edges; share of pairs clamped, streamed from the table.

    Args:
        groups: the groups table; nothing comes back where it is not there.
        ceiling: `align.epsilon_max`; None where no clamp is applied.
    """
    edges = np.linspace(0.0, 0.5, EPSILON_BINS + 1)
    counts: dict[str, np.ndarray] = {}
    clamped: dict[str, int] = {}
    files = sorted(str(path) for path in groups.glob("part-*.parquet"))
    dataset = ds.dataset(files) if files else None
    if dataset is None or "epsilon" not in dataset.schema.names:
        return {}, edges, {}
    for batch in dataset.to_batches(columns=["strategy", "epsilon"]):
        epsilon = batch.column("epsilon").flatten().to_numpy(zero_copy_only=False)
        strategy = np.asarray(batch.column("strategy").flatten().to_pylist(), dtype=object)
        for name in sorted(set(strategy.tolist())):
            mine = epsilon[strategy == name]
            counts[name] = counts.get(name, 0) + np.histogram(mine, edges)[0]
            clamped[name] = clamped.get(name, 0) + (0 if ceiling is None else int((mine >= ceiling).sum()))
    whole = {ALL: np.sum(list(counts.values()), axis=0), **dict(sorted(counts.items()))}
    clamped[ALL] = sum(clamped.values())
    return whole, edges, {name: clamped[name] / max(int(whole[name].sum()), 1) for name in whole}
