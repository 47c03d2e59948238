"""What the report shows of the oracle: how epsilon is spread, by strategy, and how far the oracle can be believed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds

from rosepo.config import Config

EPSILON_BINS = 20
ALL = "all strategies"


def shape_of(config: Config, figures: Mapping[str, Any]) -> str:
    """What the loss aims at, in a few words; `figures` of the manifest of `align` hold a value that it computed."""
    align = config.align
    value = figures.get("epsilon_value", align.epsilon_value)
    fixed = "ε" if value is None else f"ε = {value:.3g}"
    clamp = f", the chosen one's ≥ {align.target_min:g}" if align.target_min > 0 else ""
    mixed = f", {100 * align.target_mix:g} % of them from the reference" if align.target_mix > 0 else ""
    shapes = {
        "softmax": f"targets from the oracle{clamp}{mixed}",
        "dpo": "ε = 0",
        "rpo": "ε = 0",
        "ipo": f"log-ratios {'a token' if align.ipo_average else 'summed over tokens'}",
        "simpo": f"γ = {align.simpo_gamma:g}, no reference",
        "sdpo": "one-hot target",
        "dmpo": "the mean of the rejected titles' rewards",
        "ada_dpo": f"τ from {align.ada_tau_min:g} to {align.ada_tau_max:g}, ρ = {align.ada_rho:g}",
        "sft": "no preference",
        "distill": "the oracle's whole distribution" if config.learns_whole else "titles drawn from the oracle",
        "oracle": f"ε ≤ {align.epsilon_max:g}",
        "shuffled": f"ε ≤ {align.epsilon_max:g}, shuffled over all pairs",
        "constant": f"one {fixed} for all pairs",
        "zero": "ε = 0",
        "spa": f"{fixed} for the {100 * align.spa_quantile:g} % of pairs with the least margin",
    }
    shape = shapes[align.smoothing or align.loss]
    return f"{shape}, SFT weight {align.sft_weight:g}" if align.sft_weight > 0 else shape


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


def strategy_rows(figures: Mapping[str, Any], clamped: Mapping[str, float]) -> list[dict[str, Any]]:
    """One row a strategy: pairs, mean epsilon, AUC of the chosen title against the rejected one, share clamped.

    Args:
        figures: of the manifest of `pairs`.
        clamped: from `read_epsilon`.
    """
    return [
        {
            "name": name,
            "pairs": entry["pairs"],
            "epsilon": entry["epsilon_mean"],
            "auc": entry["auc"],
            "clamped": clamped.get(name, 0.0),
        }
        for name, entry in figures.get("strategies", {}).items()
    ]


def read_calibration(oracle: Path) -> dict[str, Any] | None:
    """What `rosepo oracle` measured of its calibration; None where it is not there."""
    path = oracle / "calibration.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
