"""The tables of groups of users: what alignment changed in each, then the other models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rosepo.report.tables import Cell, Table, figure_cell
from rosepo.report.text.format import number, sign
from rosepo.report.text.labels import label

GROUPINGS = {
    "history_length": "By length of the history",
    "popularity_taste": "By taste for popular titles",
}
SHOWN_OF_GROUPS = (
    ("hr@10", "HR@10"),
    ("ndcg@10", "NDCG@10"),
    ("log_popularity", "Mean log-popularity"),
    ("hallucination", "Semantic hallucination"),
)


def group_tables(metrics: Mapping[str, Any]) -> tuple[list[Table], list[Table]]:
    """By groups of users, a table a grouping: SFT and the aligned model with the change between them, then the other
    models. Where not both are there, all models are in the first. Empty where no groups were measured."""
    own: list[Table] = []
    rest: list[Table] = []
    for grouping, groups in metrics.get("groups", {}).items():
        names = list(dict.fromkeys(name for group in groups.values() for name in group["models"]))
        both = [name for name in ("sft", "aligned") if name in names]
        others = [name for name in names if name not in both]
        title = GROUPINGS.get(grouping, f"By {grouping.replace('_', ' ')}")
        parts = ((own, both), (rest, others)) if len(both) == 2 else ((own, names),)
        for tables, shown in parts:
            if shown:
                tables.append(_group_table(title, groups, shown, metrics))
    return own, rest


def _group_table(title: str, groups: Mapping[str, Any], names: Sequence[str], metrics: Mapping[str, Any]) -> Table:
    changes = names == ["sft", "aligned"]
    rows: list[list[Cell]] = []
    for name, group in groups.items():
        n = f"{group['n_users']:,} users, {group['n_examples']:,} examples"
        rows += [[Cell(name.replace("_", " "), n, strong=True)], *_group_rows(group, names, changes)]
    shown = ("Before (SFT)", "After (aligned)", "Change") if changes else tuple(label(name, metrics) for name in names)
    return Table(("Figure", *shown, "What people chose"), rows, title)


def _group_rows(group: Mapping[str, Any], names: Sequence[str], changes: bool) -> list[list[Cell]]:
    """A row a figure of one group: the models, with `changes` the change by alignment, what people chose."""
    change = group.get("differences", {}).get("aligned-sft", {})
    rows: list[list[Cell]] = []
    for key, shown in SHOWN_OF_GROUPS:
        figures = [group["models"].get(name, {}).get(key) for name in names]
        if any(figure is not None for figure in figures):
            truth = next((figure["truth"] for figure in figures if figure and "truth" in figure), None)
            changed = [figure_cell(change.get(key), bool(sign(change.get(key, {}))), signed=True)] if changes else []
            own = Cell("0") if key == "hallucination" else Cell(number(truth))
            rows.append([Cell(shown), *map(figure_cell, figures), *changed, own])
    return rows
