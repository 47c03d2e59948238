"""Tables of figures with their intervals and n, made once and written as HTML and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rosepo.report.cells import Cell, Row, Table, change_cell, changes_table, figure_cell, figures_table, measured_on
from rosepo.report.text.format import Figure, number
from rosepo.report.text.labels import SHORT, label, split_pair
from rosepo.utils.console import duration

ACCURACY = {key: key.upper() for key in ("hr@1", "hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20")}
BIAS = {
    "log_popularity": ("Mean log-popularity", "log(1 + interactions in training) of a top-10 place"),
    "head_share": ("Share of the most popular tenth", "of top-10 places"),
    "gini": ("Gini of exposure", "0: every title equally often, 1: one title takes all"),
    "coverage": ("Catalogue coverage", "share of titles that are in some top-10"),
    "look_alike": ("Likeness to the history", "mean similarity of wrong top-10 titles"),
    "hallucination": ("Semantic hallucination", "likeness of wrong top-10 titles minus that of the truth"),
    "hallucination@1": ("Semantic hallucination, first place", "the same for a wrong first title"),
    "out_of_catalogue": ("Out of the catalogue", "share of freely generated answers that are no title"),
}
"""Titles, and what they are."""
GROUPED = {
    **{key: (ACCURACY[key], "") for key in ("hr@10", "ndcg@10")},
    **{key: (BIAS[key][0], "") for key in ("log_popularity", "hallucination")},
}
"""The same of what is told of groups of users."""
GROUPINGS = {
    "history_length": "By length of the history",
    "popularity_taste": "By taste for popular titles",
}
ZERO_FOR_TRUTH = ("hallucination", "hallucination@1", "out_of_catalogue")
"""Figures against what people chose, whose own are 0."""
CANDIDATE_METRICS = {
    "hr@1": "HR@1, all answers",
    "hr@1_valid": "HR@1, valid answers",
    "valid_ratio": "ValidRatio",
    "hr@1_substring": "HR@1, substring rule",
    "hr@1_substring_valid": "HR@1, substring rule, valid answers",
    "valid_ratio_substring": "ValidRatio, substring rule",
}
PROBES = {
    "chance": "Chance",
    "slot": "Probe: slot only",
    "item_slot": "Probe: item and slot only",
    "popularity": "Probe: popularity only",
}


def accuracy_table(metrics: Mapping[str, Any]) -> Table:
    """Models against metrics; the highest value of each metric stands out."""
    models = metrics["models"].values()
    best = {key: max((entry[key]["value"] or 0.0 for entry in models if key in entry), default=0.0) for key in ACCURACY}
    rows = [
        [name, *(figure_cell(entry.get(key), entry.get(key, {}).get("value") == best[key]) for key in ACCURACY)]
        for name, entry in _models(metrics["models"], metrics)
    ]
    return Table(("Model", *ACCURACY.values()), rows, n=measured_on(metrics))


def differences_table(metrics: Mapping[str, Any]) -> Table | None:
    """Every pair of models that was compared, with paired intervals."""
    return changes_table(ACCURACY, _pairs(metrics["differences"], metrics), n=measured_on(metrics))


def candidates_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Answers among listed candidates: models, the probes that look at no user beside them, paired differences."""
    found = metrics.get("candidates")
    if not found:
        return []
    probes = [(Cell(PROBES[name], "looks at no user"), {"hr@1": figure}) for name, figure in found["probes"].items()]
    n = measured_on(found)
    tables = [
        figures_table(CANDIDATE_METRICS, [*_models(found["models"], metrics), *probes], n=n),
        changes_table(CANDIDATE_METRICS, _pairs(found["differences"], metrics), title="Paired differences", n=n),
    ]
    return [table for table in tables if table is not None]


def bias_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Bias by model: SFT and the aligned one with the change between them, then the others; all in one where not both
    are there."""
    return [
        Table(_header(names, metrics), _figure_rows(BIAS, metrics, names, metrics["truth"]), n=measured_on(metrics))
        for names in _own_and_others(metrics["models"])
    ]


def group_tables(metrics: Mapping[str, Any]) -> tuple[list[Table], list[Table]]:
    """The same by groups of users, a table a grouping: the first of each, and the second. Empty where no groups were
    measured."""
    found: tuple[list[Table], list[Table]] = ([], [])
    for grouping, groups in metrics.get("groups", {}).items():
        models = dict.fromkeys(name for group in groups.values() for name in group["models"])
        for tables, names in zip(found, _own_and_others(models)):
            rows: list[list[Cell]] = []
            for name, group in groups.items():
                n = f"{group['n_users']:,} users, {group['n_examples']:,} examples"
                figures = [figure for entry in group["models"].values() for figure in entry.items()]
                truth = {key: {"value": figure["truth"]} for key, figure in figures if "truth" in figure}
                rows.append([Cell(name.replace("_", " "), n, strong=True)])
                rows += _figure_rows(GROUPED, group, names, truth)
            tables.append(Table(_header(names, metrics), rows, GROUPINGS[grouping]))
    return found


def strategy_table(
    strategies: Mapping[str, Mapping[str, Any]], clamped: Mapping[str, float], ceiling: float | None
) -> Table:
    """Epsilon by strategy.

    Args:
        strategies: of the figures of `pairs`.
        clamped: share of pairs at the ceiling, from `read_epsilon`.
    """
    header = ["Rejected by", "Pairs", "Mean ε", "Oracle prefers the chosen title"]
    rows = [
        [Cell(name), Cell(f"{one['pairs']:,}"), Cell(number(one["epsilon_mean"])), Cell(f"{100 * one['auc']:.0f} %")]
        for name, one in strategies.items()
    ]
    if ceiling is not None:
        header.append(f"Clamped at {ceiling:g}")
        for name, row in zip(strategies, rows):
            row.append(Cell(f"{100 * clamped.get(name, 0.0):.0f} %"))
    return Table(header, rows)


def sweep_table(sweep: Mapping[str, Any], most: int | None) -> Table:
    """Trials of a sweep as `trials.json` has them, the best one first, behind the SFT model that they start from.

    Args:
        most: examples that a trial was measured on at most (sweep.max_examples); None: all of them.
    """
    metric = sweep["metric"]
    trials = sorted(sweep["trials"], key=lambda trial: -trial.get(metric, -math.inf))  # those that failed at the end
    keys = list(trials[0]["settings"]) if trials else []
    rows = [
        [
            Cell("SFT, before"),
            *(Cell("") for _ in keys),
            *(Cell(number(sweep["sft"][key])) for key in ("hr@10", "ndcg@10")),
            Cell(""),
        ]
    ]
    for place, trial in enumerate(trials):
        strong = place == 0 and metric in trial
        row = [str(trial["trial"]), *(str(trial["settings"][key]) for key in keys)]
        if "error" in trial:
            row += [f"failed: {trial['error']}", "", ""]
        else:
            row += [number(trial["hr@10"]), number(trial["ndcg@10"]), duration(trial["seconds"])]
        rows.append([Cell(text, strong=strong, wide=len(text) > SHORT) for text in row])
    n = "all" if most is None else f"at most {most:,}"
    note = f"The best {metric.upper()} first, on {n} validation examples and without intervals: it may be so by chance."
    return Table(("Trial", *keys, "HR@10", "NDCG@10", "Time"), rows, note=note)


def _own_and_others(models: Iterable[str]) -> list[list[str]]:
    names = list(models)
    own: list[str] = [name for name in ("sft", "aligned") if name in names]
    others = [name for name in names if name not in own]
    parts = [own, others] if len(own) == 2 else [names]
    return [part for part in parts if part]


def _header(names: Sequence[str], metrics: Mapping[str, Any]) -> list[str]:
    """Of the rows of `_figure_rows`."""
    both = ["Before (SFT)", "After (aligned)", "Change"]
    shown = both if names == ["sft", "aligned"] else [label(name, metrics) for name in names]
    return ["Figure", *shown, "What people chose"]


def _figure_rows(
    shown: Mapping[str, tuple[str, str]], group: Mapping[str, Any], names: Sequence[str], truth: Mapping[str, Figure]
) -> list[list[Cell]]:
    """A row a figure: of the models, with that of SFT and of the aligned one the change, and of what people chose."""
    change = group["differences"]["aligned-sft"] if names == ["sft", "aligned"] else None
    rows = []
    for key, (title, about) in shown.items():
        figures = [group["models"].get(name, {}).get(key) for name in names]
        if not any(figures):
            continue
        cells = [figure_cell(figure) for figure in figures]
        if change is not None:
            cells.append(change_cell(change.get(key)))
        apart = next((figure for figure in figures if figure and "n_examples" in figure), None)
        about += "" if apart is None else f"; {measured_on(apart)}"
        own = Cell("0") if key in ZERO_FOR_TRUTH else figure_cell(truth.get(key))
        rows.append([Cell(title, about, wide=bool(about)), *cells, own])
    return rows


def _models(models: Mapping[str, Mapping[str, Figure]], metrics: Mapping[str, Any]) -> list[Row]:
    """Models with their colours, and their figures."""
    labels = {name: label(name, metrics) for name in models}
    return [(Cell(labels[name], model=name, wide=len(labels[name]) > SHORT), entry) for name, entry in models.items()]


def _pairs(differences: Mapping[str, Mapping[str, Figure]], metrics: Mapping[str, Any]) -> list[Row]:
    """Pairs of models by name, and their differences."""
    pairs = {pair: split_pair(pair, metrics["models"]) for pair in differences}
    names = {pair: " − ".join(label(name, metrics) for name in names) for pair, names in pairs.items()}
    return [(Cell(names[pair], wide=True), entry) for pair, entry in differences.items()]
