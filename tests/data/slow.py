"""`prepare` once more, as loops over dictionaries: the independent partner of the vectorised code."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rosepo.config import PrepareConfig
from tests.data.tables import Row


def sequences(rows: list[Row], config: PrepareConfig) -> dict[Any, list[tuple[float, Any]]]:
    """Each user's (time, item), ordered, after positives, first interactions and k-core."""
    if config.min_rating is not None:
        rows = [row for row in rows if row[2] is not None and row[2] >= config.min_rating]
    first: dict[tuple[Any, Any], float] = {}
    for user, item, _, time in rows:
        first[user, item] = min(time, first.get((user, item), time))
    while True:
        users = Counter(user for user, _ in first)
        items = Counter(item for _, item in first)
        kept = {key: t for key, t in first.items() if users[key[0]] >= config.k_core and items[key[1]] >= config.k_core}
        if len(kept) == len(first):
            break
        first = kept
    found: dict[Any, list[tuple[float, Any]]] = {}
    for (user, item), time in first.items():
        found.setdefault(user, []).append((time, item))
    return {user: sorted(found[user]) for user in sorted(found)}


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


def examples(rows: list[Row], config: PrepareConfig) -> list[dict[str, Any]]:
    """All examples, ordered by user and position."""
    found = sequences(rows, config)
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
