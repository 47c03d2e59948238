from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rosepo.config import Config
from rosepo.data.prepare.prepare import inspect_data
from rosepo.data.prepare.statistics import describe
from rosepo.data.split import SPLITS
from rosepo.utils.errors import UserError
from tests.data import slow
from tests.data.tables import Row, config_for, prepared, write_data

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

rows_of_logs = st.lists(
    st.tuples(
        st.integers(1, 8),
        st.integers(1, 12),
        st.sampled_from([1.0, 3.0, 5.0]),
        st.integers(0, 30).map(float),
    ),
    min_size=1,
    max_size=120,
)
settings_of_prepare = st.fixed_dictionaries(
    {
        "k_core": st.integers(1, 3),
        "min_rating": st.sampled_from([None, 3.0]),
        "min_history": st.integers(1, 3),
        "max_history": st.integers(3, 6),
        "window": st.sampled_from(["anchored", "sliding"]),
        "ties": st.sampled_from(["hash", "file", "item_id"]),
    }
)
splits = st.one_of(
    st.just({"split": "leave_one_out"}),
    st.fixed_dictionaries(
        {
            "split": st.just("temporal"),
            "validation_fraction": st.sampled_from([0.1, 0.3]),
            "test_fraction": st.sampled_from([0.1, 0.25]),
        }
    ),
)


item_names = st.sampled_from([int, lambda item: 2**40 - item, lambda item: f"i{item}"])
"""Ids of items: small, beyond 32 bits and in another order, text (of which the tenth sorts before the second)."""


def run(
    rows: list[Row], options: dict[str, Any], name: Callable[[int], Any] = int
) -> tuple[Config, list[dict[str, Any]], list[dict[str, Any]]] | None:
    """Examples and trajectories, None where nothing is left."""
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder), rows, {name(item): f"Title {item}" for item in range(1, 13)})
        config = config_for(data, **options)
        try:
            examples, shared, _ = prepared(config)
        except UserError as error:
            if "nothing is left" not in str(error):
                raise
            return None
    return config, examples, shared


@quick
@given(rows=rows_of_logs, options=settings_of_prepare, split=splits, name=item_names)
def test_examples_equal_those_of_the_slow_loop(
    rows: list[Row], options: dict[str, Any], split: dict[str, Any], name: Callable[[int], Any]
) -> None:
    rows = [(user, name(item), rating, time) for user, item, rating, time in rows]
    found = run(rows, {**options, **split}, name)
    if found is None:
        assert not slow.sequences(rows, config_for({}, **options, **split))
    else:
        config, examples, _ = found
        assert examples == slow.examples(rows, config)


@quick
@given(rows=rows_of_logs, options=settings_of_prepare, split=splits)
def test_trajectories_expand_to_exactly_the_training_examples(
    rows: list[Row], options: dict[str, Any], split: dict[str, Any]
) -> None:
    found = run(rows, {**options, **split})
    if found is None:
        return
    config, examples, shared = found
    expanded = []
    for row in shared:
        first = len(row["items"]) - row["n_targets"]
        assert first >= config.prepare.min_history
        for place in range(first, len(row["items"])):
            expanded.append((row["user_id"], row["items"][:place], row["items"][place]))
    trained = [(row["user_id"], row["history"], row["target"]) for row in examples if row["split"] == "train"]
    assert expanded == trained


@quick
@given(rows=rows_of_logs, options=settings_of_prepare)
def test_a_temporal_split_never_trains_on_what_came_after(rows: list[Row], options: dict[str, Any]) -> None:
    found = run(rows, {**options, "split": "temporal", "validation_fraction": 0.2, "test_fraction": 0.2})
    if found is None:
        return
    config, examples, _ = found
    times = {(u, item): t for u, seq in slow.sequences(rows, config).items() for t, item in seq}
    by_split: dict[str, list[float]] = {name: [] for name in SPLITS}
    for row in examples:
        by_split[row["split"]].append(times[row["user_id"], row["target"]])
        assert all(times[row["user_id"], item] <= times[row["user_id"], row["target"]] for item in row["history"])
    bounds = (
        [max(by_split[name], default=None) for name in SPLITS],
        [min(by_split[name], default=None) for name in SPLITS],
    )
    for early, late in ((0, 1), (0, 2), (1, 2)):
        last, first = bounds[0][early], bounds[1][late]
        assert last is None or first is None or last < first


@quick
@given(rows=rows_of_logs, options=settings_of_prepare)
def test_leave_one_out_tests_on_the_last_item_and_validates_on_the_one_before(
    rows: list[Row], options: dict[str, Any]
) -> None:
    found = run(rows, options)
    if found is None:
        return
    config, examples, _ = found
    lengths = {user: len(seq) for user, seq in slow.sequences(rows, config).items()}
    for row in examples:
        left = lengths[row["user_id"]] - 1 - row["position"]
        assert row["split"] == ("test" if left == 0 else "validation" if left == 1 else "train")


@quick
@given(rows=rows_of_logs, options=settings_of_prepare)
def test_every_item_and_user_of_the_core_has_at_least_k_interactions(rows: list[Row], options: dict[str, Any]) -> None:
    found = run(rows, {**options, "min_history": 1, "max_history": 200})
    if found is None:
        return
    config, examples, _ = found
    pairs = {(row["user_id"], item) for row in examples for item in [*row["history"], row["target"]]}
    k = config.prepare.k_core
    if k > 1:  # with k = 1 users of one interaction stay, and give no example
        assert min(Counter(user for user, _ in pairs).values(), default=k) >= k
        assert min(Counter(item for _, item in pairs).values(), default=k) >= k


def test_anchored_histories_of_the_documented_stride(tmp_path: Path) -> None:
    rows = [(1, item, 5.0, float(item)) for item in range(130)]
    data = write_data(tmp_path, rows, {item: f"t{item}" for item in range(130)})
    examples, shared, _ = prepared(config_for(data, k_core=1))
    starts = {row["position"]: row["history"][0] for row in examples}
    assert [starts[t] for t in (1, 50, 51, 75, 76, 100, 101, 125)] == [0, 0, 25, 25, 50, 50, 75, 75]
    assert (starts[128], starts[129]) == (78, 79)  # validation and test keep the newest fifty
    assert [row["n_targets"] for row in shared] == [50, 25, 25, 25, 2]


def test_figures_account_for_every_interaction(tmp_path: Path) -> None:
    rows: list[Row] = [(user, item, 5.0, float(item)) for user in range(4) for item in range(6)]
    rows += [(0, 1, 5.0, 99.0), (1, 2, 1.0, 3.0), (2, 3, None, 3.0), (9, 0, 5.0, 1.0)]
    data = write_data(tmp_path, rows, {item: f"t{item}" for item in range(7)})
    report = inspect_data(config_for(data, k_core=2, min_rating=3))
    dropped = {step["why"]: step["rows"] for step in report["dropped"]}
    assert list(dropped.values()) == [1, 1, 1, 1]
    assert report["rows"] == report["interactions"] + sum(dropped.values())
    assert (report["users"], report["items"], report["items_listed"]) == (4, 6, 7)
    assert report["examples"] == {"train": 12, "validation": 4, "test": 4}
    assert report["items_not_in_training"] == 2
    assert "without a rating" in describe(report)


def test_histories_shorter_than_asked_for_make_no_example(tmp_path: Path) -> None:
    rows = [(user, item, None, float(item)) for user in range(3) for item in range(6)]
    data = write_data(tmp_path, rows, {item: f"t{item}" for item in range(6)})
    examples, _, _ = prepared(config_for(data, k_core=1, min_history=3))
    assert [row["position"] for row in examples] == [3, 4, 5] * 3
