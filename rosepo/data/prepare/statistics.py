"""What `prepare` tells: the table of what was dropped and why, and the errors that stop it before it writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from rosepo.config import Config
from rosepo.data.prepare.ties import TOLD
from rosepo.data.readers import columns as cols
from rosepo.data.readers.interactions import Plan
from rosepo.data.split import SPLITS
from rosepo.utils.console import table
from rosepo.utils.errors import UserError


def describe(figures: dict[str, Any]) -> str:
    """What was read, what was dropped and why, what came out: a small table."""
    lines = [("read", figures["rows"], "interactions")]
    lines += [("dropped", step["rows"], step["why"]) for step in figures["dropped"] if step["rows"]]
    lines.append(("kept", figures["interactions"], f"of {figures['users']:,} users and {figures['items']:,} items"))
    for name in SPLITS:
        mean = figures["mean_history"][name]
        lines.append((name, figures["examples"][name], f"examples, {mean:.1f} history items on average"))
    cut = figures["windows"]
    if cut["examples_cut"]:
        lines.append(("windows", cut["items_left_out"], f"history items left out of {cut['examples_cut']:,} examples"))
    if figures["short_histories"]:
        lines.append(("no example", figures["short_histories"], "targets with too short a history"))
    ties = figures["ties"]
    if ties["interactions"]:
        targets = ", ".join(f"{ties['targets'][name]:,} {name}" for name in SPLITS)
        how = f"interactions share their user's time (targets: {targets}): ordered by {TOLD[ties['broken_by']]}"
        lines.append(("tied", ties["interactions"], how))
    if figures["titles_disambiguated"]:
        lines.append(("renamed", figures["titles_disambiguated"], "titles that another item had already"))
    if figures["items_not_in_training"]:
        lines.append(("unseen", figures["items_not_in_training"], "items without an interaction in training"))
    return table(lines)


def check_rating(config: Config, plan: Plan) -> None:
    least, column = config.prepare.min_rating, config.data.columns.rating
    if least is None or plan.has("rating"):
        return
    why = f"{plan.files[0][0].name} has no column '{column}': set data.columns.rating"
    if column is None:
        why = "data.columns.rating is null: name the column"
    raise UserError(f"prepare.min_rating={least:g} needs a rating, and {why}, or leave prepare.min_rating out")


def check_known(used: pa.Array, rows: np.ndarray, known: pa.Array, config: Config) -> None:
    unknown = cols.codes(used, known) < 0
    if not unknown.any():
        return
    names = sorted(used.filter(pa.array(unknown)).to_pylist())
    shown = ", ".join(repr(name) for name in names[:5]) + (", …" if len(names) > 5 else "")
    raise UserError(
        f"{int(rows[unknown].sum()):,} interactions name {len(names):,} items that data.items does not list ({shown}): "
        "add them to the items, or leave the interactions out"
    )


def check_left(left: int, rows: int, steps: list[dict[str, Any]]) -> None:
    if left:
        return
    told = "; ".join(f"{step['rows']:,} {step['why']}" for step in steps if step["rows"])
    raise UserError(f"nothing is left of {rows:,} interactions ({told}): lower prepare.min_rating or prepare.k_core")


def check_splits(config: Config, figures: dict[str, Any]) -> None:
    empty = [name for name in SPLITS if not figures["examples"][name]]
    if empty:
        counts = ", ".join(f"{name} {count:,}" for name, count in figures["examples"].items())
        raise UserError(
            f"prepare.split={config.prepare.split} leaves no {empty[0]} example ({counts}) of "
            f"{figures['interactions']:,} interactions: lower prepare.min_history or add data"
        )


def check_candidates(n: int, items: int, longest: int) -> None:
    if n and items - longest < n - 1:
        raise UserError(
            f"prepare.candidates={n} asks for {n - 1} items outside the history, and the longest sequence has "
            f"{longest:,} of {items:,} items: lower it"
        )
