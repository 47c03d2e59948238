"""From a bucket of users to its rows of the tables of a prepared log: arrays in, Arrow tables out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rosepo.config import PrepareConfig
from rosepo.data import split as splitting
from rosepo.data.candidates import candidate_lists
from rosepo.data.item_columns import INDEX
from rosepo.data.prepare.filtering import core_rows
from rosepo.data.prepare.log import Arrays
from rosepo.data.prepare.ties import tied
from rosepo.data.seen import SEQUENCES, TRAJECTORIES
from rosepo.utils.arrays import ranges, segment_starts
from rosepo.utils.files import aside_of
from rosepo.utils.list_columns import list_column

ROW_GROUP = 16_384


@dataclass(frozen=True)
class Recipe:
    """What every bucket needs to become examples.

    Attributes:
        config: the `prepare` section.
        seed: of the candidate lists.
        users: user ids by code.
        new_item: [n item codes] int32 item index, -1 for items that were dropped.
        n_items: items that stay.
        buckets: first user code of every bucket.
        cuts: first moments of validation and test (temporal), None for leave-one-out.
        chosen: bool [n user codes], the users that stay; None keeps all.
    """

    config: PrepareConfig
    seed: int
    users: pa.Array
    new_item: np.ndarray
    n_items: int
    buckets: np.ndarray
    cuts: tuple[float, float] | None = None
    chosen: np.ndarray | None = None


@dataclass(frozen=True)
class Layout:
    """The users that stay in a bucket, end to end, and the examples that they give.

    Attributes:
        user, item, time: [n] user codes, item indexes and times, in the order of the bucket.
        start: [n_users] where each user begins.
        trained: items (one entry an interaction) of the training part.
        owner, position, part: [n_examples] number of the user, place of the target in its sequence, split (0, 1, 2).
        begin: [n_examples] place where the history begins.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    start: np.ndarray
    trained: np.ndarray
    owner: np.ndarray
    position: np.ndarray
    part: np.ndarray
    begin: np.ndarray


def lay_out(bucket: Arrays, recipe: Recipe) -> Layout:
    """Drop what is outside the core, split every user's sequence, and place the examples."""
    config = recipe.config
    keep = core_rows(bucket["user"], bucket["item"], recipe.new_item >= 0, config.k_core)
    if recipe.chosen is not None:
        keep &= recipe.chosen[bucket["user"]]
    user, time = bucket["user"][keep], bucket["time"][keep]
    item = recipe.new_item[bucket["item"][keep]]
    start = segment_starts(user)
    length = np.diff(np.append(start, len(user)))
    if recipe.cuts is None:
        validation, test = splitting.leave_one_out(length)
    else:
        validation, test = splitting.temporal(start, length, time, *recipe.cuts)
    owner = np.repeat(np.arange(len(start)), length)
    place = np.arange(len(item)) - start[owner]
    part = (place >= validation[owner]).astype(np.int64) + (place >= test[owner])
    rows = np.flatnonzero(place >= config.min_history)
    begin = splitting.window_starts(place[rows], part[rows] == 0, config.max_history, config.min_history, config.window)
    return Layout(user, item, time, start, item[part == 0], owner[rows], place[rows], part[rows], begin)


def measure_bucket(bucket: Arrays, recipe: Recipe) -> Arrays:
    """The figures of a bucket, nothing written; see `figures_of`."""
    return figures_of(lay_out(bucket, recipe))


def write_bucket(bucket: Arrays, recipe: Recipe, out: str) -> Arrays:
    """Write a bucket's files, numbered by its place among the buckets; returns its figures, see `figures_of`."""
    number = int(np.searchsorted(recipe.buckets, bucket["user"][0], side="right")) - 1
    layout = lay_out(bucket, recipe)
    examples, shared = bucket_tables(layout, recipe)
    tables = {".": examples, TRAJECTORIES: shared, SEQUENCES: sequences(layout, recipe)}
    for folder, table in ((Path(out) / name, table) for name, table in tables.items()):
        if table.num_rows:
            _write(table, folder / f"part-{number:05d}.parquet")
    return figures_of(layout)


def figures_of(layout: Layout) -> Arrays:
    """The figures of a bucket: counts in all and by split, and how often items occur in training."""
    train = layout.part == 0
    first, _ = splitting.trajectories(layout.owner[train], layout.begin[train])
    item, count = np.unique(layout.trained, return_counts=True)
    ties = tied(layout.user, layout.time)

    def by_split(weights: np.ndarray) -> np.ndarray:
        return np.bincount(layout.part, weights=weights, minlength=3).astype(np.int64)

    return {
        "users": np.array([len(layout.start)]),
        "interactions": np.array([len(layout.item)]),
        "tied": np.array([ties.sum()]),
        "tied_targets": by_split(ties[layout.start[layout.owner] + layout.position]),
        "short": np.array([len(layout.item) - len(layout.owner)]),
        "trajectories": np.array([len(first)]),
        "examples": by_split(np.ones(len(layout.owner))),
        "history": by_split(layout.position - layout.begin),
        "cut": by_split(layout.begin > 0),
        "left_out": by_split(layout.begin),
        "item": item,
        "count": count,
    }


def bucket_tables(layout: Layout, recipe: Recipe) -> tuple[pa.Table, pa.Table]:
    """The rows of `examples` and of `trajectories`, ordered by user and position."""
    begins = layout.start[layout.owner]
    users = recipe.users.take(pa.array(layout.user[begins]))
    positions = pa.array(layout.position, pa.int32())
    example_id = pc.binary_join_element_wise(users.cast(pa.string()), positions.cast(pa.string()), ":")
    lengths = layout.position - layout.begin
    columns = {
        "example_id": example_id,
        "user_id": users,
        "split": pa.array(splitting.SPLITS).take(pa.array(layout.part)),
        "position": positions,
        "history": _windows(layout.item, begins + layout.begin, lengths),
        "target": pa.array(layout.item[begins + layout.position], INDEX),
    }
    n = recipe.config.candidates
    if n:
        drawn = candidate_lists(
            example_ids=np.array(example_id.to_pylist(), dtype=object),
            sequence=layout.item,
            user_start=layout.start,
            user_of=layout.owner,
            position=layout.position,
            n_candidates=n,
            n_items=recipe.n_items,
            seed=recipe.seed,
        )
        columns["candidates"] = list_column(pa.array(drawn.ravel(), INDEX), np.full(len(drawn), n))
    return pa.table(columns), _trajectories(layout, recipe)


def sequences(layout: Layout, recipe: Recipe) -> pa.Table:
    """Every user with examples and all of its items, oldest first: what `with_seen` looks up."""
    owners = np.unique(layout.owner)
    starts = layout.start[owners]
    lengths = np.append(layout.start, len(layout.item))[owners + 1] - starts
    users = recipe.users.take(pa.array(layout.user[starts]))
    return pa.table({"user_id": users, "items": _windows(layout.item, starts, lengths)})


def _trajectories(layout: Layout, recipe: Recipe) -> pa.Table:
    train = layout.part == 0
    owner, position, begin = layout.owner[train], layout.position[train], layout.begin[train]
    first, count = splitting.trajectories(owner, begin)
    begins = layout.start[owner[first]]
    return pa.table(
        {
            "user_id": recipe.users.take(pa.array(layout.user[begins])),
            "items": _windows(layout.item, begins + begin[first], position[first] + count - begin[first]),
            "n_targets": pa.array(count, pa.int32()),
        }
    )


def _windows(items: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    """Lists of item indexes: list i holds items[starts[i] : starts[i] + lengths[i]]."""
    return list_column(pa.array(items[ranges(starts, lengths)], INDEX), lengths)


def _write(table: pa.Table, path: Path) -> None:
    # Aside and then renamed: a task that Ray runs again must not leave half a file.
    aside = aside_of(path)
    pq.write_table(table, aside, compression="zstd", row_group_size=ROW_GROUP)
    aside.replace(path)
