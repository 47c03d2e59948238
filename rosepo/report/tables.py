"""The tables of reports, made once and written as HTML and as Markdown: figures with their intervals, and n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rosepo.report.text.format import as_shown, measured, number, sign
from rosepo.report.text.labels import SHORT, label, split_pair

ACCURACY = ("hr@1", "hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20")
BIAS = (
    ("log_popularity", "Mean log-popularity", "log(1 + interactions in training) of a top-10 place"),
    ("head_share", "Share of the most popular tenth", "of top-10 places"),
    ("gini", "Gini of exposure", "0: every title equally often, 1: one title takes all"),
    ("coverage", "Catalogue coverage", "share of titles that are in some top-10"),
    ("look_alike", "Likeness to the history", "mean similarity of wrong top-10 titles"),
    ("hallucination", "Semantic hallucination", "likeness of wrong top-10 titles minus that of the truth"),
    ("hallucination@1", "Semantic hallucination, first place", "the same for a wrong first title"),
    ("out_of_catalogue", "Out of the catalogue", "share of freely generated answers that are no title"),
)
CANDIDATE_METRICS = {
    "hr@1": "HR@1, all answers",
    "hr@1_valid": "HR@1, valid answers",
    "valid_ratio": "ValidRatio",
    "hr@1_substring": "HR@1, substring rule",
    "hr@1_substring_valid": "HR@1, substring rule, valid answers",
    "valid_ratio_substring": "ValidRatio, substring rule",
}
PROBES = {"chance": "Chance", "item_slot": "Probe: item and slot only"}


@dataclass(frozen=True)
class Cell:
    """One place of a table.

    Attributes:
        below: small text under it.
        strong: it stands out.
        model: whose colour it carries.
        wide: it may wrap.
        share: what a bar beside it shows, 0 to 1.

    A row of a single cell is a heading across the whole table.
    """

    text: str
    below: str = ""
    strong: bool = False
    model: str = ""
    wide: bool = False
    share: float | None = None


@dataclass(frozen=True)
class Table:
    """A table with its heading, what it was measured on, and what is to be said below it."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    n: str = ""
    note: str = ""


def measured_on(entry: Mapping[str, Any]) -> str:
    """`n = 3,452 examples of 3,452 users`, of what has `n_examples` and `n_users`."""
    return f"n = {entry['n_examples']:,} examples of {entry['n_users']:,} users"


def figure_cell(figure: Mapping[str, Any] | None, strong: bool = False, signed: bool = False) -> Cell:
    """A value and its interval; a dash for what was not measured."""
    if figure is None or figure.get("value") is None:
        return Cell("–")
    value, low, high = as_shown(figure, signed)
    return Cell(value, f"{low} to {high}" if measured(figure) else "", strong)


def accuracy_table(metrics: Mapping[str, Any]) -> Table:
    """Models against metrics; the highest value of each metric stands out."""
    models = metrics["models"]
    best = {key: max((entry[key]["value"] or 0.0 for entry in models.values() if key in entry), default=0.0)
            for key in ACCURACY}  # fmt: skip
    rows = [
        [
            _model_cell(name, metrics),
            *(figure_cell(entry.get(key), key in entry and entry[key]["value"] == best[key]) for key in ACCURACY),
        ]
        for name, entry in models.items()
    ]
    return Table(("Model", *(key.upper() for key in ACCURACY)), rows, n=measured_on(metrics))


def differences_table(metrics: Mapping[str, Any], keys: Sequence[str] = ACCURACY) -> Table | None:
    """Every pair of models that was compared, with paired intervals; those clear of zero stand out."""
    if not metrics["differences"]:
        return None
    rows = []
    for pair, entry in metrics["differences"].items():
        first, second = split_pair(pair, metrics["models"])
        name = Cell(f"{label(first, metrics)} − {label(second, metrics)}", wide=True)
        cells = (figure_cell(entry.get(key), bool(sign(entry.get(key, {}))), signed=True) for key in keys)
        rows.append([name, *cells])
    header = ("Pair", *(key.upper() for key in keys))
    return Table(header, rows, n=measured_on(metrics), note="Bold: the interval is clear of zero.")


def bias_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Bias figures of SFT and the aligned model, with the change between them and what people chose; then those of the
    other models. Only tables that have a model."""
    both = [name for name in ("sft", "aligned") if name in metrics["models"]]
    others = [name for name in metrics["models"] if name not in both]
    return [_bias_table(metrics, names) for names in (both, others) if names]


def _bias_table(metrics: Mapping[str, Any], names: Sequence[str]) -> Table:
    models, truth = metrics["models"], metrics["truth"]
    change = metrics["differences"].get("aligned-sft") if names == ["sft", "aligned"] else None
    said = {} if change is None else {"sft": "Before (SFT)", "aligned": "After (aligned)"}
    rows = []
    for key, title, about in BIAS:
        if not any(key in models[name] for name in names):
            continue
        cells = [figure_cell(models[name].get(key)) for name in names]
        apart = next((models[name][key] for name in names if "n_examples" in models[name].get(key, {})), None)
        about += "" if apart is None else f"; {measured_on(apart)}"
        if change is not None:
            cells.append(figure_cell(change.get(key), bool(sign(change.get(key, {}))), signed=True))
        own = Cell("0") if key.startswith("hallucination") or key == "out_of_catalogue" else figure_cell(truth.get(key))
        rows.append([Cell(title, about, wide=True), *cells, own])
    shown = [said.get(name) or label(name, metrics) for name in names] + ["Change"] * (change is not None)
    return Table(("Figure", *shown, "What people chose"), rows, n=measured_on(metrics))


def candidates_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Answers among listed candidates: models, the probes that look at no user beside them, paired differences."""
    found = metrics.get("candidates")
    if not found:
        return []
    models, keys = found["models"], [key for key in CANDIDATE_METRICS if _in_any(key, found["models"])]
    keys += [key for key in dict.fromkeys(key for entry in models.values() for key in entry) if key not in keys]
    rows = [
        [_model_cell(name, metrics), *(figure_cell(entry.get(key)) for key in keys)] for name, entry in models.items()
    ]
    for probe, figure in found.get("probes", {}).items():
        value = figure if "value" in figure else figure.get("hr@1")
        cells = [figure_cell(value), *(Cell("–") for _ in keys[1:])]
        rows.append([Cell(PROBES.get(probe, f"Probe: {probe.replace('_', ' ')} only"), "looks at no user"), *cells])
    header = ("Model", *(CANDIDATE_METRICS.get(key, key) for key in keys))
    tables = [Table(header, rows, n=measured_on(found))]
    if found.get("differences"):
        rows = []
        for pair, entry in found["differences"].items():
            first, second = split_pair(pair, {*models, *found.get("probes", {}), *metrics["models"]})
            entry = entry if "value" not in entry else {"hr@1": entry}
            cells = [figure_cell(entry.get(key), bool(sign(entry.get(key, {}))), signed=True) for key in keys]
            rows.append([Cell(f"{label(first, metrics)} − {label(second, metrics)}", wide=True), *cells])
        note = "Bold: the interval is clear of zero."
        tables.append(Table(("Pair", *header[1:]), rows, "Paired differences", measured_on(found), note))
    return tables


def strategy_table(rows: Sequence[Mapping[str, Any]], ceiling: float | None) -> Table:
    """Epsilon by strategy: rows of `smoothing.strategy_rows`."""
    clamped = () if ceiling is None else (f"Clamped at {ceiling:g}",)
    header = ("Rejected by", "Pairs", "Mean ε", "Oracle prefers the chosen title", *clamped)
    cells = [
        [
            Cell(row["name"]),
            Cell(f"{row['pairs']:,}"),
            Cell(number(row["epsilon"])),
            Cell(f"{100 * row['auc']:.0f} %"),
            *(() if ceiling is None else (Cell(f"{100 * row['clamped']:.0f} %"),)),
        ]
        for row in rows
    ]
    return Table(header, cells)


def sweep_table(sweep: Mapping[str, Any], most: int | None) -> Table:
    """Trials of a sweep as `trials.json` has them, the best one standing out.

    Args:
        most: examples that a trial was measured on at most (sweep.max_examples); None: all of them.
    """
    keys = list(sweep["trials"][0]["settings"]) if sweep["trials"] else []
    finished = [trial for trial in sweep["trials"] if "error" not in trial]
    best = max(finished, key=lambda trial: trial[sweep["metric"]], default=None)
    base = [number(sweep["sft"][key]) for key in ("hr@10", "ndcg@10")]
    rows = [[Cell("SFT, before"), *(Cell("") for _ in keys), *map(Cell, base), Cell("")]]
    for trial in sweep["trials"]:
        strong = trial is best
        name = f"{trial['trial']} (best {sweep['metric'].upper()})" if strong else str(trial["trial"])
        settings = [Cell(str(trial["settings"][key]), strong=strong) for key in keys]
        if "error" in trial:
            figures = [Cell(f"failed: {trial['error']}", wide=True), Cell(""), Cell("")]
        else:
            figures = [Cell(number(trial[key]), strong=strong) for key in ("hr@10", "ndcg@10")]
            figures.append(Cell(f"{trial['seconds']:.0f}"))
        rows.append([Cell(name, strong=strong), *settings, *figures])
    n = "all" if most is None else f"at most {most:,}"
    note = f"Measured on {n} validation examples, without intervals: the best value may be so by chance."
    return Table(("Trial", *keys, "HR@10", "NDCG@10", "Seconds"), rows, note=note)


def _model_cell(name: str, metrics: Mapping[str, Any]) -> Cell:
    text = label(name, metrics)
    return Cell(text, model=name, wide=len(text) > SHORT)


def _in_any(key: str, models: Mapping[str, Mapping[str, Any]]) -> bool:
    return any(key in entry for entry in models.values())
