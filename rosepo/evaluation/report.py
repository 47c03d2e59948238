"""`report.html`: one page that needs nothing beside itself, made from the tables and manifests of a run."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, StrictUndefined

from rosepo.artifacts import git_revision, now, of_round, read_manifest, versions
from rosepo.config import LOSSES, Config, dump_config
from rosepo.console import duration
from rosepo.data.catalogue import Catalogue
from rosepo.evaluation import figures
from rosepo.evaluation.cases import Case, changed_cases
from rosepo.evaluation.smoothing import read_calibration, read_epsilon, shape_of, strategy_rows
from rosepo.evaluation.verdict import no_baseline, number, sign, verdict

if TYPE_CHECKING:
    from rosepo.artifacts import Outputs

REPORT_FILE = "report.html"
ACCURACY = ("hr@1", "hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20")
BIAS = (
    ("log_popularity", "Mean log-popularity", "log(1 + interactions in training) of a top-10 place"),
    ("head_share", "Share of the most popular tenth", "of top-10 places"),
    ("gini", "Gini of exposure", "0: every title equally often, 1: one title takes all"),
    ("coverage", "Catalogue coverage", "share of titles that are in some top-10"),
    ("look_alike", "Likeness to the history", "mean similarity of wrong top-10 titles"),
    ("hallucination", "Semantic hallucination", "likeness of wrong top-10 titles minus that of the truth"),
    ("hallucination@1", "Semantic hallucination, first place", "the same for a wrong first title"),
)


def write_report(config: Config, inputs: Outputs, out: Path, seconds: float) -> None:
    """Write `report.html` into `out`, which holds `metrics.json`, `exposure.parquet` and the rankings.

    Args:
        inputs: the run's folders; what is missing there is missing in the report.
        seconds: what the evaluation took so far.
    """
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    manifests = _manifests(inputs)
    page = _environment().get_template("report.html.j2").render(
        metrics=metrics,
        verdict=verdict(metrics),
        names=figures.NAMES,
        colours=figures.COLOURS,
        accuracy=ACCURACY,
        best=_best(metrics),
        bias=BIAS,
        facts=_facts(config, inputs, metrics, manifests),
        pictures=_pictures(config, inputs, out, metrics),
        oracle=_oracle(config, inputs, manifests),
        no_baseline=no_baseline(metrics),
        cases=_cases(inputs, out, metrics),
        sweep=_sweep(inputs.sweep / "trials.json"),
        cost=_cost(manifests, seconds),
        config_yaml=dump_config(config).strip() or "{}",
        command=next((m["command"] for m in reversed(manifests.values()) if m.get("command")), ""),
        versions=versions(),
        revision=git_revision(),
        created=now()[:16].replace("T", " ") + " UTC",
    )  # fmt: skip
    (out / REPORT_FILE).write_text(page, encoding="utf-8")


def _environment() -> Environment:
    # Titles come from anywhere: everything is escaped but the pictures made here.
    environment = Environment(
        loader=PackageLoader("rosepo.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "sign": sign}
    return environment


def _manifests(inputs: Outputs) -> dict[str, dict[str, Any]]:
    """Manifests by stage, in the order of work, of those that are there."""
    folders = {"prepare": inputs.examples, "sft": inputs.sft, "oracle": inputs.oracle}
    for one in inputs.rounds:
        folders |= {of_round("pairs", one.round): one.groups, of_round("align", one.round): one.aligned}
    found = {name: read_manifest(folder) for name, folder in (folders | {"sweep": inputs.sweep}).items()}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def _best(metrics: Mapping[str, Any]) -> dict[str, float]:
    models = metrics["models"].values()
    return {key: max(figure[key]["value"] or 0.0 for figure in models) for key in ACCURACY}


def _facts(
    config: Config, inputs: Outputs, metrics: Mapping[str, Any], manifests: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """What was run, as name and text."""
    data = config.data.dataset or config.data.interactions or "prepared examples"
    prepared = manifests.get("prepare", {}).get("figures", {})
    counts = ", ".join(
        f"{prepared[key]:,} {label}"
        for key, label in (("users", "users"), ("items", "items"), ("interactions", "interactions"))
        if isinstance(prepared.get(key), int)
    )
    if config.model.path:
        model = f"{config.model.path}{' with LoRA' if config.model.lora else ''}"
    else:
        scratch = config.model.scratch_config
        model = f"Llama from scratch, {scratch.layers} layers of width {scratch.hidden_size}"
    align, pairs = config.align, config.pairs
    strategies = ", ".join(f"{name} {weight:g}" for name, weight in pairs.strategies.items() if weight > 0)
    cut = max((cut["prompts"] for cut in metrics.get("cut", {}).values()), default=0)
    measured = f"{metrics['n_examples']:,} examples of {metrics['n_users']:,} users"
    measured += ", every title that the user had not chosen yet"
    if cut:
        measured += f"; {cut:,} histories did not fit in the prompt and lost their oldest titles"
    facts = [
        ("Data", f"{data}{': ' + counts if counts else ''}"),
        ("Split", f"{config.prepare.split.replace('_', ' ')}; {metrics['split']} part measured"),
        ("Measured", measured),
        ("Model", model),
        ("Fine-tuning", f"{_epochs(config.sft.epochs)}, learning rate {config.sft.learning_rate:g}"),
    ]
    if metrics.get("oracle") is not None:
        facts.append(("Oracle", _oracle_fact(metrics["oracle"], manifests.get("oracle", {}).get("figures", {}))))
    if "pairs" in manifests:
        facts.append(("Rejected titles", f"{pairs.negatives} a group; {strategies}"))
    if "align" in manifests:
        shape = shape_of(align, _aligned(inputs, manifests))
        beta = f"β {align.beta:g}, " if LOSSES[align.loss].preference else ""
        settings = f"{align.loss} loss, {beta}{shape}, learning rate {align.learning_rate:g}"
        facts.append(("Alignment", f"{settings}, {_epochs(align.epochs)}"))
    if inputs.round > 1:
        reference = "the model that each round starts from" if inputs.moved else "the SFT model, frozen"
        told = f"{inputs.round}, each sampled from the model of the one before; reference: {reference}"
        facts.append(("Rounds of pairs and alignment", told))
    return [*facts, ("Seed", str(config.seed))]


def _oracle_fact(name: str, figures: Mapping[str, Any]) -> str:
    """What the oracle is, and its temperature."""
    if "rows" in figures:
        name += f": {figures['rows']:,} of {figures['examples']:,} examples"
    return name + (f", τ {figures['tau']:.3g}" if "tau" in figures else "")


def _pictures(config: Config, inputs: Outputs, out: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Data URIs by place in the page."""
    models = metrics["models"]
    pictures: dict[str, Any] = {
        "accuracy": [(label, _uri(figures.accuracy(models, key)))
                     for key, label in (("hr@1", "HR@1"), ("hr@10", "HR@10"), ("ndcg@10", "NDCG@10"))],
        "curves": _curves(inputs),
    }  # fmt: skip
    difference = metrics["differences"].get("aligned-sft")
    if difference is not None:
        pictures["change"] = _uri(figures.change(difference, ACCURACY, [key.upper() for key in ACCURACY]))
    exposure = pq.read_table(out / "exposure.parquet")
    shown = ("truth", *(name for name in ("oracle", "sft", "aligned") if name in models))
    pictures["popularity"] = _uri(
        figures.popularity(exposure["train_count"].to_numpy(), {name: exposure[name].to_numpy() for name in shown})
    )
    return pictures


def _curves(inputs: Outputs) -> list[tuple[str, str]]:
    pictures = []
    alignments = [
        (f"Alignment{f', round {one.round}' if inputs.round > 1 else ''}: loss a group", one.aligned, "aligned")
        for one in inputs.rounds
    ]
    for title, folder, colour in (("Fine-tuning: loss a title", inputs.sft, "sft"), *alignments):
        rows = _lines(folder / "metrics.jsonl")
        lines = [
            (label, shade, *_xy(rows, key))
            for key, label, shade in (
                ("loss", "training", figures.COLOURS[colour]),
                ("validation_loss", "validation", "#222222"),
            )
            if any(key in row for row in rows)
        ]  # fmt: skip
        if lines:
            pictures.append((title, _uri(figures.curves(lines, "step", "loss"))))
    rows = _lines(inputs.oracle / "metrics.jsonl")
    if rows:
        colours = (("hr@10", "HR@10", "#009e73"), ("ndcg@10", "NDCG@10", "#0072b2"))
        lines = [(label, colour, *_xy(rows, key)) for key, label, colour in colours]
        pictures.append(("Oracle: validation", _uri(figures.curves(lines, "epoch", "HR@10, NDCG@10"))))
    return pictures


def _xy(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    chosen = [row for row in rows if key in row]
    return [row["step"] for row in chosen], [row[key] for row in chosen]


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _oracle(config: Config, inputs: Outputs, manifests: Mapping[str, Any]) -> dict[str, Any]:
    """Pictures and figures of epsilon in the last round and of the oracle behind it; empty without groups."""
    ceiling = config.align.epsilon_max if config.align.clamps_epsilon else None
    counts, edges, clamped = read_epsilon(inputs.groups, ceiling)
    if not counts:
        return {}
    calibration = read_calibration(inputs.oracle)
    return {
        "epsilon": _uri(figures.smoothing(counts, edges, ceiling)),
        "rows": strategy_rows(manifests.get(of_round("pairs", inputs.round), {}).get("figures", {}), clamped),
        "ceiling": ceiling,
        "used": config.align.smoothing == "oracle",
        "shape": shape_of(config.align, _aligned(inputs, manifests)),
        "trained": manifests.get("oracle", {}).get("figures", {}),
        "calibration": calibration,
        "reliability": _uri(figures.reliability(calibration["bins"])) if calibration else None,
    }


def _aligned(inputs: Outputs, manifests: Mapping[str, Any]) -> Mapping[str, Any]:
    """Figures of the last round's alignment."""
    figures: Mapping[str, Any] = manifests.get(of_round("align", inputs.round), {}).get("figures", {})
    return figures


def _cases(inputs: Outputs, out: Path, metrics: Mapping[str, Any]) -> dict[str, list[Case]]:
    if "aligned-sft" not in metrics["differences"]:
        return {}
    catalogue = Catalogue.load(inputs.examples / "_items.parquet")
    return changed_cases(out / "_examples.parquet", out / "rankings", catalogue)


def _sweep(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    finished = [trial for trial in content["trials"] if "error" not in trial]
    best = max(finished, key=lambda trial: trial[content["metric"]], default=None)
    keys = list(content["trials"][0]["settings"]) if content["trials"] else []
    return {**content, "keys": keys, "best": best}


def _cost(manifests: Mapping[str, Any], seconds: float) -> list[dict[str, Any]]:
    taken = {name: float(manifest["seconds"]) for name, manifest in manifests.items()} | {"evaluate": seconds}
    total = sum(taken.values()) or 1.0
    rows = [{"name": name, "time": duration(value), "share": value / total} for name, value in taken.items()]
    return [*rows, {"name": "all", "time": duration(total), "share": None}]


def _epochs(count: float) -> str:
    return f"{count:g} epoch{'' if count == 1 else 's'}"


def _uri(svg: str) -> str:
    # A picture of its own keeps its ids to itself; twelve of them in one document would clash.
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
