"""`prepare` once more, as loops over dictionaries: the independent partner of the vectorised code."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b
from typing import Any

import numpy as np
import pandas as pd

from rosepo.config import Config, PrepareConfig
from tests.data.tables import Row


def mixed(state: int) -> int:
    """splitmix64, with Python's integers."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def hashed(seed: int, user: Any, item: Any) -> int:
    """What orders ties by default."""
    salt = int.from_bytes(blake2b(f"{seed}/ties".encode(), digest_size=8).digest(), "little")
    first, second = (int(key) for key in pd.util.hash_array(np.array([str(user), str(item)], dtype=object)))
    return mixed(mixed(mixed(first) ^ salt) ^ second)


def sequences(rows: list[Row], whole: Config) -> dict[Any, list[tuple[float, Any]]]:
    """Each user's (time, item), ordered, after positives, first interactions and k-core."""
    config = whole.prepare
    if config.min_rating is not None:
        rows = [row for row in rows if row[2] is not None and row[2] >= config.min_rating]
    first: dict[tuple[Any, Any], tuple[float, int]] = {}
    for place, (user, item, _, time) in enumerate(rows):
        first[user, item] = min((time, place), first.get((user, item), (time, place)))
    while True:
        users = Counter(user for user, _ in first)
        items = Counter(item for _, item in first)
        kept = {key: t for key, t in first.items() if users[key[0]] >= config.k_core and items[key[1]] >= config.k_core}
        if len(kept) == len(first):
            break
        first = kept
    found: dict[Any, list[tuple[float, Any, Any]]] = {}
    for (user, item), (time, place) in first.items():
        tie = {"hash": hashed(whole.seed, user, item), "file": place, "item_id": item}[config.ties]
        found.setdefault(user, []).append((time, tie, item))
    return {user: [(time, item) for time, _, item in sorted(found[user])] for user in sorted(found)}


def parts(found: dict[Any, list[tuple[float, Any]]], config: PrepareConfig) -> dict[Any, list[str]]:
    """The split of every interaction."""
    if config.split == "leave_one_out":
        lengths = {user: len(seq) for user, seq in found.items()}
        return {user: ["train"] * max(0, n - 2) + ["validation", "test"][-n:] for user, n in lengths.items()}
    times = sorted(time for seq in found.values() for time, _ in seq)
    validation = times[int((1.0 - config.validation_fraction - config.test_fraction) * len(times))]
    test = times[int((1.0 - config.test_fraction) * len(times))]
    return {
        user: ["train" if time < validation else "validation" if time < test else "test" for time, _ in seq]
        for user, seq in found.items()
    }


def history_start(position: int, part: str, config: PrepareConfig) -> int:
    """Where the history of the example at `position` begins."""
    longest = config.max_history
    if position <= longest:
        return 0
    if part != "train" or config.window == "sliding":
        return position - longest
    stride = max(1, min(longest // 2, longest - config.min_history + 1))
    start = 0
    while position - start > longest:
        start += stride
    return start


def tied_targets(rows: list[Row], whole: Config) -> dict[str, int]:
    """By split, the examples whose target shares its time with another interaction of the user."""
    found = sequences(rows, whole)
    split = parts(found, whole.prepare)
    counts = {"train": 0, "validation": 0, "test": 0}
    for user, seq in found.items():
        times = Counter(time for time, _ in seq)
        for (time, _), part in list(zip(seq, split[user]))[whole.prepare.min_history :]:
            counts[part] += times[time] > 1
    return counts


def examples(rows: list[Row], whole: Config) -> list[dict[str, Any]]:
    """All examples, ordered by user and position."""
    found, config = sequences(rows, whole), whole.prepare
    split = parts(found, config)
    result = []
    for user, seq in found.items():
        items = [item for _, item in seq]
        for position in range(config.min_history, len(items)):
            part = split[user][position]
            result.append(
                {
                    "example_id": f"{user}:{position}",
                    "user_id": user,
                    "split": part,
                    "position": position,
                    "history": items[history_start(position, part, config) : position],
                    "target": items[position],
                }
            )
    return result
