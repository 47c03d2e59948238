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
from rosepo.report.changed_examples import Case, changed_cases
from rosepo.report.cost import cost_table
from rosepo.report.epsilon_summary import read_calibration, strategy_rows
from rosepo.report.pages import uri, write_pages
from rosepo.report.plots import curves, run_plots
from rosepo.report.run_metadata import aligned_figures, facts_of, manifests_of, reproduction
from rosepo.report.segment_tables import group_tables
from rosepo.report.text.conclusions import no_baseline, verdict
from rosepo.report.text.labels import colours_of, label
from rosepo.run.manifest import read_manifest
from rosepo.run.paths import of_round
from rosepo.training.pair_epsilon import read_epsilon
from rosepo.utils.errors import UserError
from rosepo.utils.files import now

if TYPE_CHECKING:
    from rosepo.run.paths import Outputs

REPORT_FILE = "report.html"


def write_report(config: Config, inputs: Outputs) -> Path:
    """Write `report.html` and `report.md` into a run's folder, from what its stages left: nothing is ranked again.

    Args:
        inputs: the run's folders, as its last round sees them; what is missing there is missing in the report.

    Returns:
        The HTML file.

    Raises:
        UserError: nothing was evaluated there.
    """
    out = inputs.evaluation
    evaluated = read_manifest(out)
    if evaluated is None:
        raise UserError(f"{out} holds no finished evaluation: run `rosepo evaluate` first")
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    manifests = manifests_of(inputs)
    oracle = _oracle(config, inputs, manifests)
    both = "aligned-sft" in metrics["differences"]
    groups, groups_others = group_tables(metrics)
    page = {
        "name": inputs.root.resolve().name,
        "created": now()[:16].replace("T", " ") + " UTC",
        "metrics": metrics,
        "n": tables.measured_on(metrics),
        "verdict": verdict(metrics),
        "colours": colours_of([*metrics["models"], *metrics.get("candidates", {}).get("models", {})]),
        "facts": facts_of(config, inputs, metrics, manifests),
        "accuracy": tables.accuracy_table(metrics),
        "differences": tables.differences_table(metrics),
        "no_baseline": " ".join(no_baseline(metrics)),
        "candidates": tables.candidates_tables(metrics),
        "groups": groups,
        "groups_others": groups_others,
        "cases": _cases(inputs, out, metrics),
        "bias_title": f"Popularity and look-alikes{', before and after' if both else ''}",
        "bias": tables.bias_tables(metrics),
        "oracle": oracle,
        "sweep": _sweep(config, inputs),
        "training": curves.ends(inputs),
        "cost": cost_table(manifests | {"evaluate": evaluated}),
        "again": reproduction(config, manifests),
    }
    path = inputs.root / REPORT_FILE
    write_pages(path, "report", page, _pictures(inputs, out, metrics, oracle))
    return path


def _pictures(inputs: Outputs, out: Path, metrics: Mapping[str, Any], oracle: Mapping[str, Any]) -> dict[str, Any]:
    """Data URIs by place in the page."""
    models = metrics["models"]
    shown = (("hr@1", "HR@1"), ("hr@10", "HR@10"), ("ndcg@10", "NDCG@10"))
    bars = {name: (label(name), entry) for name, entry in models.items()}
    pictures: dict[str, Any] = {
        "accuracy": [(title, uri(run_plots.accuracy(bars, key))) for key, title in shown],
        "curves": [(title, uri(picture)) for title, picture in curves.pictures(inputs)],
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


def _oracle(config: Config, inputs: Outputs, manifests: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of epsilon in the last round and of the oracle behind it; empty without groups."""
    ceiling = config.align.epsilon_max if config.align.clamps_epsilon else None
    counts, edges, clamped = read_epsilon(inputs.groups, ceiling)
    if not counts:
        return {}
    rows = strategy_rows(manifests.get(of_round("pairs", inputs.round), {}).get("figures", {}), clamped)
    return {
        "counts": counts,
        "edges": edges,
        "table": tables.strategy_table(rows, ceiling) if rows else None,
        "ceiling": ceiling,
        "used": config.align.smoothing == "oracle",
        "shape": shape_of(config, aligned_figures(inputs, manifests)),
        "trained": manifests.get("oracle", {}).get("figures", {}),
        "calibration": read_calibration(inputs.oracle),
    }


def _sweep(config: Config, inputs: Outputs) -> tables.Table | None:
    path = inputs.sweep / "trials.json"
    if not path.is_file():
        return None
    return tables.sweep_table(json.loads(path.read_text(encoding="utf-8")), config.sweep.max_examples)


def _cases(inputs: Outputs, out: Path, metrics: Mapping[str, Any]) -> dict[str, list[Case]]:
    if "aligned-sft" not in metrics["differences"]:
        return {}
    catalogue = Catalogue.load(inputs.examples / "_items.parquet")
    return changed_cases(out / "_examples.parquet", out / "rankings", catalogue)
