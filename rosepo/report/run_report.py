"""`report.html` and `report.md`: one page of a run, made from its tables, manifests and logs of training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rosepo.config import Config
from rosepo.config.root import shape_of
from rosepo.report import tables
from rosepo.report.cells import measured_on
from rosepo.report.changed_examples import changed_examples
from rosepo.report.cost import cost_table
from rosepo.report.pages import uri, write_pages
from rosepo.report.plots import curves, distributions, intervals
from rosepo.report.run_metadata import Manifests, manifests_of, reproduction, run_metadata
from rosepo.report.text.advice import advice
from rosepo.report.text.conclusions import verdict
from rosepo.report.text.labels import colours_of, label
from rosepo.report.training_logs import trainings_of
from rosepo.run.paths import RunPaths, of_round
from rosepo.training.feed.pair_epsilon import read_epsilon
from rosepo.utils.errors import UserError
from rosepo.utils.files import now


def write_report(config: Config, paths: RunPaths) -> Path:
    """Write `report.html` and `report.md` into a run's folder, from what its stages left: nothing is ranked again.

    Args:
        paths: the run's folders, as its last round sees them; what is missing there is missing in the report.

    Returns:
        The HTML file.

    Raises:
        UserError: nothing was evaluated there.
    """
    manifests = manifests_of(paths)
    if "evaluate" not in manifests:
        raise UserError(f"{paths.evaluation} holds no finished evaluation: run `rosepo evaluate` first")
    metrics = _read(paths.evaluation / "metrics.json")
    sweep = _read(paths.sweep / "trials.json")
    oracle = _oracle(config, paths, manifests)
    both = "aligned-sft" in metrics["differences"]
    groups, groups_others = tables.group_tables(metrics)
    page = {
        "name": paths.root.resolve().name,
        "created": now()[:16].replace("T", " ") + " UTC",
        "metrics": metrics,
        "n": measured_on(metrics),
        "verdict": verdict(metrics),
        "advice": advice_on(config, paths, metrics, manifests),
        "colours": colours_of(metrics["models"]),
        "facts": run_metadata(config, paths, metrics, manifests),
        "accuracy": tables.accuracy_table(metrics),
        "differences": tables.differences_table(metrics),
        "candidates": tables.candidates_tables(metrics),
        "groups": groups,
        "groups_others": groups_others,
        "cases": changed_examples(paths) if both else {},
        "bias_title": f"Popularity and look-alikes{', before and after' if both else ''}",
        "bias": tables.bias_tables(metrics),
        "oracle": oracle,
        "sweep": tables.sweep_table(sweep, config.sweep.max_examples) if sweep else None,
        "training": curves.ends(paths),
        "cost": cost_table(manifests),
        "again": reproduction(config, manifests),
    }
    write_pages(paths.report, "report", page, _pictures(paths, metrics, oracle))
    return paths.report


def advice_on(config: Config, paths: RunPaths, metrics: Mapping[str, Any], manifests: Manifests) -> list[str]:
    """What to mend first in a run, see `advice`; `manifests` by stage."""
    figures = {name: manifest["figures"] for name, manifest in manifests.items()}
    return advice(metrics, trainings_of(config, paths, figures))


def _pictures(paths: RunPaths, metrics: Mapping[str, Any], oracle: Mapping[str, Any]) -> dict[str, Any]:
    """Data URIs by place in the page."""
    models = metrics["models"]
    bars = {name: (label(name), entry) for name, entry in models.items()}
    exposure = pq.read_table(paths.evaluation / "exposure.parquet")
    shown = ["truth", *(name for name in models if name not in ("popular", "markov"))]
    counts = {name: exposure[name].to_numpy() for name in shown if name in exposure.column_names}
    pictures: dict[str, Any] = {
        "accuracy": [(key.upper(), uri(intervals.bars(bars, key))) for key in ("hr@1", "hr@10", "ndcg@10")],
        "curves": [(title, uri(picture)) for title, picture in curves.pictures(paths)],
        "popularity": uri(distributions.popularity(exposure["train_count"].to_numpy(), counts)),
    }
    if "aligned-sft" in metrics["differences"]:
        change = [metrics["differences"]["aligned-sft"][key] for key in tables.ACCURACY]
        pictures["change"] = uri(intervals.differences({"aligned minus SFT": change}, list(tables.ACCURACY.values())))
    if oracle:
        pictures["epsilon"] = uri(distributions.histograms(oracle["counts"], oracle["edges"], oracle["ceiling"]))
        if oracle["calibration"]:
            pictures["reliability"] = uri(distributions.reliability(oracle["calibration"]["bins"]))
    return pictures


def _oracle(config: Config, paths: RunPaths, manifests: Manifests) -> dict[str, Any]:
    """Figures of epsilon in the last round and of the oracle behind it; empty without groups."""
    ceiling = config.align.epsilon_max if config.align.clamps_epsilon else None
    counts, edges, clamped = read_epsilon(paths.groups, ceiling)
    if not counts:
        return {}
    pairs, align, trained = (
        manifests.get(name, {}).get("figures", {})
        for name in (of_round("pairs", paths.round), of_round("align", paths.round), "oracle")
    )
    strategies = pairs.get("strategies", {})
    return {
        "counts": counts,
        "edges": edges,
        "table": tables.strategy_table(strategies, clamped, ceiling) if strategies else None,
        "ceiling": ceiling,
        "used": config.align.smoothing == "oracle",
        "shape": shape_of(config, align),
        "trained": trained,
        "calibration": _read(paths.oracle / "calibration.json"),
    }


def _read(path: Path) -> dict[str, Any]:
    """A JSON file; nothing where it is not there."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
