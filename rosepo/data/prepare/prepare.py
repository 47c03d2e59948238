"""Interactions and items to examples: positives, first interactions, k-core, order, split, windows, candidates.

The interactions flow through Ray Data; what this process holds is the items, the list of users, and counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rosepo.config import Config
from rosepo.data.catalogue import ITEMS_FILE, Catalogue
from rosepo.data.prepare.examples import Recipe, measure_bucket, write_bucket
from rosepo.data.prepare.kcore import k_core, time_at, users_left
from rosepo.data.prepare.log import Arrays, Codes, LocalBlocks, Log, RayBlocks, bucket_starts
from rosepo.data.prepare.statistics import (
    check_candidates,
    check_known,
    check_left,
    check_rating,
    check_splits,
    describe,
)
from rosepo.data.prepare.ties import TieBreaker
from rosepo.data.readers import columns as cols
from rosepo.data.readers.interactions import plan_reading, read_items
from rosepo.data.readers.times import check_span
from rosepo.data.readers.title_hint import title_hint
from rosepo.data.seen import SEQUENCES, TRAJECTORIES
from rosepo.data.split import SPLITS
from rosepo.data.titles import distinct_titles
from rosepo.run.paths import RunPaths
from rosepo.utils.console import Progress, echo
from rosepo.utils.errors import UserError

INSPECT_BYTES = 256 << 20
"""`inspect_data` reads files up to this size through; of larger ones it reads the headers alone."""


@dataclass(frozen=True)
class Filtered:
    """What is left to be written, and the figures so far."""

    log: Log
    recipe: Recipe
    catalogue: Catalogue
    figures: dict[str, Any]


def prepare(config: Config, paths: RunPaths, out: Path) -> dict[str, Any]:
    """Write `part-*.parquet`, the same in `_trajectories/` and `_sequences/`, and `_items.parquet` into `out`.

    Ray must be running. Rows are sorted by user and position; they and the files they lie in depend on the data, the
    `prepare` section and the seed alone, not on machines or block sizes.

    Returns:
        Figures: what each step dropped, users, items, examples by split, mean history, and what else to know.

    Raises:
        UserError: bad input; a split without examples is told when they have been written.
    """
    began = time.monotonic()
    plan = plan_reading(config.data, "interactions")
    check_rating(config, plan)
    items = read_items(config.data)
    with _progress() as progress:
        filtered = filter_log(config, RayBlocks(plan, progress), items)
        for folder in (TRAJECTORIES, SEQUENCES):
            (out / folder).mkdir(parents=True, exist_ok=True)
        written = filtered.log.map("writing", write_bucket, recipe=filtered.recipe, out=str(out.absolute()))
        figures, counts = _summed(filtered, written)
    check_splits(config, figures)
    replace(filtered.catalogue, train_count=counts).save(out / ITEMS_FILE)
    figures["seconds"] = round(time.monotonic() - began, 2)
    echo(describe(figures))
    return figures


def inspect_data(config: Config) -> dict[str, Any]:
    """What `prepare` would find, without Ray and without writing: files, columns, figures.

    Exact where the files are at most INSPECT_BYTES as stored; for larger ones `exact` is False and only headers (and
    the items) were read.

    Raises:
        UserError: as `prepare`.
    """
    plan = plan_reading(config.data, "interactions")
    check_rating(config, plan)
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
    with _progress() as progress:
        filtered = filter_log(config, LocalBlocks(plan, progress), items)
        figures, _ = measure(filtered)
    check_splits(config, figures)
    return {**report, **figures}


def _progress() -> Progress:
    """The line of all phases, which leaves nothing behind: the table of what was found follows."""
    return Progress("reading", None, "rows", transient=True)


def filter_log(config: Config, blocks: LocalBlocks | RayBlocks, items: pa.Table) -> Filtered:
    """Everything before examples: positives, first interactions, k-core, titles, time cuts. Nothing is written."""
    settings = config.prepare
    scanned = blocks.scanned(settings.min_rating)
    if not len(scanned["user"]):
        raise UserError(f"data.interactions={config.data.interactions} has no rows")
    earliest, latest = (scanned[name][0].as_py() for name in ("earliest", "latest"))
    check_span(earliest, latest, f"data.interactions={config.data.interactions}")
    rows, positive = (int(pc.sum(scanned[name]).as_py()) for name in ("user_rows", "user_positives"))
    known = items["item_id"].combine_chunks()
    check_known(scanned["item"], scanned["item_rows"].to_numpy(), known, config)
    steps: list[dict[str, Any]] = []
    if settings.min_rating is not None:
        unrated = int(scanned["unrated"][0].as_py())
        steps.append({"why": f"rated below {settings.min_rating:g}", "rows": rows - positive - unrated})
        steps.append({"why": "without a rating", "rows": unrated})
    users, user_kept = _sorted_users(scanned["user"], scanned["user_positives"].to_numpy())
    starts = bucket_starts(user_kept)
    check_left(positive, rows, steps)
    ties = TieBreaker.of(settings.ties, config.seed, users, known)
    log = blocks.log(Codes(settings.min_rating, users, known, starts, ties))
    core = k_core(log, len(known), settings.k_core)
    steps.append({"why": "repeat a user's earlier interaction with the item", "rows": positive - core.before})
    steps.append({"why": f"outside the {settings.k_core}-core of users and items", "rows": core.before - core.after})
    check_left(core.after, rows, steps)
    kept = items.filter(pa.array(core.items))
    check_candidates(settings.candidates, len(kept), core.longest)
    ids = kept["item_id"].to_pylist()
    titles, changed = distinct_titles(
        kept["title"].to_pylist(), ids, settings.duplicate_titles, lambda: title_hint(config.data, ids)
    )
    catalogue = Catalogue(
        item_ids=np.array(ids, dtype=np.int64 if pa.types.is_int64(known.type) else object),
        titles=titles,
        categories=[tuple(entry or ()) for entry in kept["categories"].to_pylist()],
        train_count=np.zeros(len(ids), dtype=np.int64),  # counted once the split is made
    )
    new_item = np.where(core.items, np.cumsum(core.items) - 1, -1).astype(np.int32)
    recipe = Recipe(settings, config.seed, users, new_item, len(kept), starts)
    if settings.split == "temporal":
        fractions = (1.0 - settings.validation_fraction - settings.test_fraction, 1.0 - settings.test_fraction)
        cuts = [time_at(log, core.items, settings.k_core, int(fraction * core.after)) for fraction in fractions]
        recipe = replace(recipe, cuts=(cuts[0], cuts[1]))
    if settings.max_users is not None:
        chosen, left = users_left(log, core.items, settings.k_core, users, settings.max_users)
        recipe = replace(recipe, chosen=chosen)
        steps.append({"why": f"of users beyond prepare.max_users={settings.max_users:,}", "rows": core.after - left})
    figures = {
        "rows": rows,
        "users_read": len(users),
        "items_read": len(scanned["item"]),
        "items_listed": len(known),
        "dropped": steps,
        "longest_sequence": core.longest,
        "titles_disambiguated": changed,
    }
    return Filtered(log, recipe, catalogue, figures)


def _sorted_users(users: pa.Array, counts: np.ndarray) -> tuple[pa.Array, np.ndarray]:
    users = cols.integers_if_all(users)
    order = pc.sort_indices(users)
    return users.take(order), counts[order.to_numpy()]


def measure(filtered: Filtered) -> tuple[dict[str, Any], np.ndarray]:
    """The figures of all buckets together, and how often each item occurs in training; nothing is written."""
    return _summed(filtered, filtered.log.map("measuring", measure_bucket, recipe=filtered.recipe))


def _summed(filtered: Filtered, measured: Iterable[Arrays]) -> tuple[dict[str, Any], np.ndarray]:
    """The same out of the figures of each bucket, see `figures_of`."""
    counts = np.zeros(len(filtered.catalogue), dtype=np.int64)
    sums: dict[str, np.ndarray] = {}
    for found in measured:
        counts[found["item"]] += found["count"]
        for name in set(found) - {"item", "count"}:
            sums[name] = sums[name] + found[name] if name in sums else found[name]
    examples, tied = ({name: int(n) for name, n in zip(SPLITS, sums[key])} for key in ("examples", "tied_targets"))
    history = {name: round(float(n) / max(1, examples[name]), 2) for name, n in zip(SPLITS, sums["history"])}
    figures = {
        **filtered.figures,
        "interactions": int(sums["interactions"][0]),
        "users": int(sums["users"][0]),
        "items": len(filtered.catalogue),
        "examples": examples,
        "mean_history": history,
        "trajectories": int(sums["trajectories"][0]),
        "short_histories": int(sums["short"][0]),
        "ties": {"interactions": int(sums["tied"][0]), "targets": tied, "broken_by": filtered.recipe.config.ties},
        "windows": {"examples_cut": int(sums["cut"].sum()), "items_left_out": int(sums["left_out"].sum())},
        "items_not_in_training": int((counts == 0).sum()),
    }
    return figures, counts
