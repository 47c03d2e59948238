"""Interactions and items to examples: positives, first interactions, k-core, order, split, prefixes, windows, candidates.

The interactions flow through Ray Data; what this process holds is the items, the list of users, and counts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rosepo import console
from rosepo.artifacts import Outputs
from rosepo.config import Config
from rosepo.data import columns as cols
from rosepo.data.catalogue import Catalogue
from rosepo.data.examples import Recipe, core_rows, measure_bucket, write_bucket
from rosepo.data.log import Arrays, LocalBlocks, Log, RayBlocks, bucket_starts
from rosepo.data.readers import Plan, plan_reading, read_items
from rosepo.data.split import SPLITS
from rosepo.data.titles import distinct_titles
from rosepo.errors import StageError, UserError

INSPECT_BYTES = 256 << 20
"""`inspect_data` reads files up to this size through; of larger ones it reads the headers alone."""


@dataclass(frozen=True)
class Filtered:
    """What is left to be written, and the figures so far."""

    log: Log
    recipe: Recipe
    catalogue: Catalogue
    figures: dict[str, Any]


def prepare(config: Config, inputs: Outputs, out: Path) -> dict[str, Any]:
    """Write `part-*.parquet`, `_trajectories/part-*.parquet` and `_items.parquet` into `out`.

    Ray must be running. Rows are sorted by user and position; they and the files they lie in depend on the data, the
    `prepare` section and the seed alone, not on machines or block sizes.

    Returns:
        Figures: what each step dropped, users, items, examples by split, mean history, and what else a reader should know.

    Raises:
        UserError: bad input, told before anything is written.
    """
    began = time.monotonic()
    plan = plan_reading(config.data, "interactions")
    _check_rating(config, plan)
    items = read_items(config.data)
    filtered = _filter(config, RayBlocks(plan), items)
    (out / "_trajectories").mkdir(parents=True, exist_ok=True)
    # The figures decide whether the split is one that can be used, so they are taken before the first file is written.
    figures, counts = _measure(filtered)
    _check_figures(config, figures)
    rows = {"examples": 0, "trajectories": 0}
    for found in filtered.log.map(write_bucket, recipe=filtered.recipe, out=str(out.absolute())):
        rows = {name: rows[name] + int(found[name][0]) for name in rows}
    if rows != {"examples": sum(figures["examples"].values()), "trajectories": figures["trajectories"]}:
        raise StageError(f"prepare wrote {rows}, and counted {figures['examples']} beforehand: run it again")
    replace(filtered.catalogue, train_count=counts).save(out / "_items.parquet")
    figures["seconds"] = round(time.monotonic() - began, 2)
    console.say(describe(figures))
    return figures


def inspect_data(config: Config) -> dict[str, Any]:
    """What `prepare` would find, without Ray and without writing: files, columns, figures.

    Exact where the files are at most INSPECT_BYTES as stored; for larger ones `exact` is False and only headers (and
    the items) were read.

    Raises:
        UserError: as `prepare`.
    """
    plan = plan_reading(config.data, "interactions")
    _check_rating(config, plan)
    items = read_items(config.data)
    report: dict[str, Any] = {
        "files": [source.name for source, _ in plan.files],
        "columns": dict(plan.mappings[0]),
        "rows": plan.rows,
        "bytes": plan.bytes,
        "catalogue": items.num_rows,
        "exact": plan.bytes <= INSPECT_BYTES,
    }
    if not report["exact"]:
        report["note"] = (
            f"more than {INSPECT_BYTES >> 20} MiB: only headers were read; `rosepo prepare` counts the rest"
        )
        return report
    filtered = _filter(config, LocalBlocks(plan), items)
    figures, _ = _measure(filtered)
    _check_figures(config, figures)
    return {**report, **figures}


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
    if figures["tied_timestamps"]:
        lines.append(
            ("tied", figures["tied_timestamps"], "interactions share their user's timestamp: ordered by item id")
        )
    if figures["titles_disambiguated"]:
        lines.append(("renamed", figures["titles_disambiguated"], "titles that another item had already"))
    if figures["items_not_in_training"]:
        lines.append(("unseen", figures["items_not_in_training"], "items without an interaction in training"))
    width = max(len(f"{count:,}") for _, count, _ in lines)
    return "\n".join(f"  {name:<11}{count:>{width},}  {what}" for name, count, what in lines)


def _filter(config: Config, blocks: LocalBlocks | RayBlocks, items: pa.Table) -> Filtered:
    settings = config.prepare
    scanned = list(blocks.scans(settings.min_rating))
    users, user_rows, user_kept = _merge(scanned, "user")
    used, item_rows, _ = _merge(scanned, "item")
    rows, positive = int(user_rows.sum()), int(user_kept.sum())
    if not rows:
        raise UserError("the interactions have no rows")
    known = items["item_id"].combine_chunks()
    _check_known(used, item_rows, known, config)
    unrated = sum(int(scan["unrated"][0].as_py()) for scan in scanned) if settings.min_rating is not None else 0
    steps = [
        {"why": f"rated below {settings.min_rating:g}" if settings.min_rating is not None else "rating", "rows": 0},
        {"why": "without a rating", "rows": unrated},
    ]
    steps[0]["rows"] = rows - positive - unrated
    users, user_kept = _sorted_users(users, user_kept)
    starts = bucket_starts(user_kept)
    _check_left(positive, rows, steps)
    log = blocks.log(settings.min_rating, users, known, starts)
    alive, first, core = _core(log, len(known), settings.k_core)
    steps.append({"why": "repeat a user's earlier interaction with the item", "rows": positive - first})
    steps.append({"why": f"outside the {settings.k_core}-core of users and items", "rows": first - core})
    _check_left(core, rows, steps)
    kept = items.filter(pa.array(alive))
    ids = kept["item_id"].to_pylist()
    titles, changed = distinct_titles(kept["title"].to_pylist(), ids, settings.duplicate_titles)
    catalogue = Catalogue(
        item_ids=np.array(ids, dtype=np.int64 if pa.types.is_int64(known.type) else object),
        titles=titles,
        categories=[tuple(entry or ()) for entry in kept["categories"].to_pylist()],
        train_count=np.zeros(len(ids), dtype=np.int64),
    )
    new_item = np.where(alive, np.cumsum(alive) - 1, -1)
    recipe = Recipe(settings, config.seed, users, kept["item_id"].combine_chunks(), new_item, starts)
    if settings.split == "temporal":
        fractions = (1.0 - settings.validation_fraction - settings.test_fraction, 1.0 - settings.test_fraction)
        cuts = [_time_at(log, alive, settings.k_core, int(fraction * core)) for fraction in fractions]
        recipe = replace(recipe, cuts=(cuts[0], cuts[1]))
    figures = {
        "rows": rows,
        "users_read": len(users),
        "items_read": len(used),
        "items_listed": len(known),
        "dropped": steps,
        "titles_disambiguated": changed,
    }
    return Filtered(log, recipe, catalogue, figures)


def _core(log: Log, n_items: int, k: int) -> tuple[np.ndarray, int, int]:
    """Items [n_items] bool of the k-core, and interactions before and after it."""
    alive = np.ones(n_items, dtype=bool)
    before = -1
    while True:
        counts = np.zeros(n_items, dtype=np.int64)
        total = 0
        for found in log.map(_count_core, alive=alive, k=k):
            counts[found["item"]] += found["count"]
            total += int(found["rows"][0])
        before = total if before < 0 else before
        left = counts >= k
        if (left == alive).all():
            return alive, before, int(counts.sum())
        alive = left


def _count_core(bucket: Arrays, alive: np.ndarray, k: int) -> Arrays:
    keep = core_rows(bucket, alive, k)
    item, count = np.unique(bucket["item"][keep], return_counts=True)
    return {"item": item, "count": count, "rows": np.array([len(keep)])}


def _merge(scanned: list[dict[str, pa.Array]], name: str) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Distinct ids of all blocks with their rows and positive rows."""
    parts = [
        pa.table({"id": scan[name], "rows": scan[f"{name}_rows"], "positives": scan[f"{name}_positives"]})
        for scan in scanned
    ]
    merged = pa.concat_tables(parts).group_by("id").aggregate([("rows", "sum"), ("positives", "sum")])
    return merged["id"].combine_chunks(), merged["rows_sum"].to_numpy(), merged["positives_sum"].to_numpy()


def _sorted_users(users: pa.Array, counts: np.ndarray) -> tuple[pa.Array, np.ndarray]:
    users = cols.integers_if_all(users)
    order = pc.sort_indices(users)
    return users.take(order), counts[order.to_numpy()]


def _measure(filtered: Filtered) -> tuple[dict[str, Any], np.ndarray]:
    """The figures of all buckets together, and how often each item occurs in training."""
    counts = np.zeros(len(filtered.catalogue), dtype=np.int64)
    sums: dict[str, np.ndarray] = {}
    longest = 0
    for found in filtered.log.map(measure_bucket, recipe=filtered.recipe):
        counts[found["item"]] += found["count"]
        longest = max(longest, int(found["longest"][0]))
        for name in set(found) - {"item", "count", "longest"}:
            sums[name] = sums[name] + found[name] if name in sums else found[name]
    examples = {name: int(n) for name, n in zip(SPLITS, sums["examples"])}
    history = {name: round(float(n) / max(1, examples[name]), 2) for name, n in zip(SPLITS, sums["history"])}
    figures = {
        **filtered.figures,
        "interactions": int(sums["interactions"][0]),
        "users": int(sums["users"][0]),
        "items": len(filtered.catalogue),
        "examples": examples,
        "mean_history": history,
        "trajectories": int(sums["trajectories"][0]),
        "longest_sequence": longest,
        "short_histories": int(sums["short"][0]),
        "tied_timestamps": int(sums["tied"][0]),
        "windows": {"examples_cut": int(sums["cut"].sum()), "items_left_out": int(sums["left_out"].sum())},
        "items_not_in_training": int((counts == 0).sum()),
    }
    return figures, counts


def _time_at(log: Log, alive: np.ndarray, k: int, rank: int) -> float:
    """The time of the interaction with `rank` others before it, in the k-core: exact, without gathering the times.

    Every look counts the times in 1,024 bins and goes on inside the bin that holds the rank.
    """
    low, high = -np.inf, np.inf
    edges = np.array([low, high])
    while low < high:
        below, counts = 0, np.zeros(len(edges) - 1, dtype=np.int64)
        least, most = np.full(len(counts), np.inf), np.full(len(counts), -np.inf)
        for found in log.map(_count_times, alive=alive, k=k, edges=edges):
            below += int(found["below"][0])
            counts += found["counts"]
            least, most = np.minimum(least, found["least"]), np.maximum(most, found["most"])
        place = int(np.searchsorted(np.cumsum(counts) + below, rank, side="right"))
        low, high = float(least[place]), float(most[place])
        edges = np.linspace(low, high, 1025)
    return low


def _count_times(bucket: Arrays, alive: np.ndarray, k: int, edges: np.ndarray) -> Arrays:
    times = bucket["time"][core_rows(bucket, alive, k)]
    inside = times[(times >= edges[0]) & (times <= edges[-1])]
    bins = len(edges) - 1
    place = np.clip(np.searchsorted(edges, inside, side="right") - 1, 0, bins - 1)
    least, most = np.full(bins, np.inf), np.full(bins, -np.inf)
    np.minimum.at(least, place, inside)
    np.maximum.at(most, place, inside)
    return {
        "below": np.array([(times < edges[0]).sum()]),
        "counts": np.bincount(place, minlength=bins),
        "least": least,
        "most": most,
    }


def _check_rating(config: Config, plan: Plan) -> None:
    if config.prepare.min_rating is not None and not plan.has("rating"):
        raise UserError(
            f"prepare.min_rating={config.prepare.min_rating:g} needs a rating, and {plan.files[0][0].name} has no column "
            f"'{config.data.columns.rating}': set data.columns.rating, or leave prepare.min_rating out"
        )


def _check_known(used: pa.Array, rows: np.ndarray, known: pa.Array, config: Config) -> None:
    unknown = cols.codes(used, known) < 0
    if not unknown.any():
        return
    names = sorted(used.filter(pa.array(unknown)).to_pylist())
    shown = ", ".join(repr(name) for name in names[:5]) + (", …" if len(names) > 5 else "")
    raise UserError(
        f"{int(rows[unknown].sum()):,} interactions name {len(names):,} items that data.items does not list ({shown}): "
        "add them to the items, or leave the interactions out"
    )


def _check_left(left: int, rows: int, steps: list[dict[str, Any]]) -> None:
    if left:
        return
    told = "; ".join(f"{step['rows']:,} {step['why']}" for step in steps if step["rows"])
    raise UserError(f"nothing is left of {rows:,} interactions ({told}): lower prepare.min_rating or prepare.k_core")


def _check_figures(config: Config, figures: dict[str, Any]) -> None:
    empty = [name for name in SPLITS if not figures["examples"][name]]
    if empty:
        counts = ", ".join(f"{name} {count:,}" for name, count in figures["examples"].items())
        raise UserError(
            f"prepare.split={config.prepare.split} leaves no {empty[0]} example ({counts}) of {figures['interactions']:,} "
            f"interactions of {figures['users']:,} users: lower prepare.min_history, or give more data"
        )
    n = config.prepare.candidates
    if n and figures["items"] - figures["longest_sequence"] < n - 1:
        raise UserError(
            f"prepare.candidates={n} asks for {n - 1} items outside the history, and the longest sequence has "
            f"{figures['longest_sequence']:,} of {figures['items']:,} items: lower it"
        )
