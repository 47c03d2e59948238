"""What the report shows of the oracle: how epsilon is spread, by strategy, and how far the oracle can be believed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
