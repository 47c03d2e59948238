"""`report.html` and `report.md`: one page of a run, made from its tables, manifests and logs of training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from rosepo.config import Config
from rosepo.config.root import shape_of
from rosepo.data.catalogue import Catalogue
from rosepo.report import tables
from rosepo.report.changed_examples import Case, changed_examples
from rosepo.report.cost import cost_table
from rosepo.report.epsilon_summary import read_calibration, strategy_rows
from rosepo.report.pages import uri, write_pages
from rosepo.report.plots import curves, run_plots
from rosepo.report.run_metadata import aligned_figures, manifests_of, reproduction, run_metadata
from rosepo.report.run_reader import read_metrics
from rosepo.report.segment_tables import group_tables
from rosepo.report.text.conclusions import verdict
from rosepo.report.text.labels import colours_of, label
from rosepo.run.manifest import read_manifest
from rosepo.run.paths import of_round
from rosepo.training.feed.pair_epsilon import read_epsilon
from rosepo.utils.errors import UserError
from rosepo.utils.files import now

if TYPE_CHECKING:
    from rosepo.run.paths import RunPaths

REPORT_FILE = "report.html"


def write_report(config: Config, paths: RunPaths) -> Path:
    """Write `report.html` and `report.md` into a run's folder, from what its stages left: nothing is ranked again.

    Args:
        paths: the run's folders, as its last round sees them; what is missing there is missing in the report.

    Returns:
        The HTML file.

    Raises:
        UserError: nothing was evaluated there.
    """
    out = paths.evaluation
    evaluated = read_manifest(out)
    if evaluated is None:
        raise UserError(f"{out} holds no finished evaluation: run `rosepo evaluate` first")
    metrics = read_metrics(out / "metrics.json")
    manifests = manifests_of(paths)
    oracle = _oracle(config, paths, manifests)
    both = "aligned-sft" in metrics["differences"]
    groups, groups_others = group_tables(metrics)
    page = {
        "name": paths.root.resolve().name,
        "created": now()[:16].replace("T", " ") + " UTC",
        "metrics": metrics,
        "n": tables.measured_on(metrics),
        "verdict": verdict(metrics),
        "colours": colours_of([*metrics["models"], *metrics.get("candidates", {}).get("models", {})]),
        "facts": run_metadata(config, paths, metrics, manifests),
        "accuracy": tables.accuracy_table(metrics),
        "differences": tables.differences_table(metrics),
        "candidates": tables.candidates_tables(metrics),
        "groups": groups,
        "groups_others": groups_others,
        "cases": _cases(paths, out, metrics),
        "bias_title": f"Popularity and look-alikes{', before and after' if both else ''}",
        "bias": tables.bias_tables(metrics),
        "oracle": oracle,
        "sweep": _sweep(config, paths),
        "training": curves.ends(paths),
        "cost": cost_table(manifests | {"evaluate": evaluated}),
        "again": reproduction(config, manifests),
    }
    path = paths.root / REPORT_FILE
    write_pages(path, "report", page, _pictures(paths, out, metrics, oracle))
    return path


def _pictures(paths: RunPaths, out: Path, metrics: Mapping[str, Any], oracle: Mapping[str, Any]) -> dict[str, Any]:
    """Data URIs by place in the page."""
    models = metrics["models"]
    shown = (("hr@1", "HR@1"), ("hr@10", "HR@10"), ("ndcg@10", "NDCG@10"))
    bars = {name: (label(name), entry) for name, entry in models.items()}
    pictures: dict[str, Any] = {
        "accuracy": [(title, uri(run_plots.accuracy(bars, key))) for key, title in shown],
        "curves": [(title, uri(picture)) for title, picture in curves.pictures(paths)],
    }
    difference = metrics["differences"].get("aligned-sft")
    if difference is not None:
        keys = [key for key in tables.ACCURACY if key in difference]
        change = run_plots.change(difference, keys, [key.upper() for key in keys], "aligned minus SFT")
        pictures["change"] = uri(change)
    exposure = pq.read_table(out / "exposure.parquet")
    others = [name for name in models if name not in ("popular", "markov")]
    names = ("truth", *(name for name in others if name in exposure.column_names))
    counts = {name: exposure[name].to_numpy() for name in names}
    pictures["popularity"] = uri(run_plots.popularity(exposure["train_count"].to_numpy(), counts))
    if oracle:
        pictures["epsilon"] = uri(run_plots.smoothing(oracle["counts"], oracle["edges"], oracle["ceiling"]))
        if oracle["calibration"]:
            pictures["reliability"] = uri(run_plots.reliability(oracle["calibration"]["bins"]))
    return pictures


def _oracle(config: Config, paths: RunPaths, manifests: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of epsilon in the last round and of the oracle behind it; empty without groups."""
    ceiling = config.align.epsilon_max if config.align.clamps_epsilon else None
    counts, edges, clamped = read_epsilon(paths.groups, ceiling)
    if not counts:
        return {}
    rows = strategy_rows(manifests.get(of_round("pairs", paths.round), {}).get("figures", {}), clamped)
    return {
        "counts": counts,
        "edges": edges,
        "table": tables.strategy_table(rows, ceiling) if rows else None,
        "ceiling": ceiling,
        "used": config.align.smoothing == "oracle",
        "shape": shape_of(config, aligned_figures(paths, manifests)),
        "trained": manifests.get("oracle", {}).get("figures", {}),
        "calibration": read_calibration(paths.oracle),
    }


def _sweep(config: Config, paths: RunPaths) -> tables.Table | None:
    path = paths.sweep / "trials.json"
    if not path.is_file():
        return None
    return tables.sweep_table(json.loads(path.read_text(encoding="utf-8")), config.sweep.max_examples)


def _cases(paths: RunPaths, out: Path, metrics: Mapping[str, Any]) -> dict[str, list[Case]]:
    if "aligned-sft" not in metrics["differences"]:
        return {}
    catalogue = Catalogue.load(paths.examples / "_items.parquet")
    return changed_examples(out / "_examples.parquet", out / "rankings", catalogue)
