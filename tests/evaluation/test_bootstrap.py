from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.evaluation.bootstrap import UserBootstrap, _draw_users


def _slow_draws(users: np.ndarray, values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """The same draws, one user at a time."""
    names = sorted(set(users.tolist()))
    weights = _draw_users(np.random.default_rng([seed, len(names)]), resamples, len(names))
    draws = []
    for row in weights:
        drawn = [v for name, times in zip(names, row) for _ in range(int(times)) for v in values[users == name]]
        counted = [v for v in drawn if not np.isnan(v)]
        draws.append(np.mean(counted) if counted else np.nan)
    return np.array(draws)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_intervals_equal_a_slow_loop_over_users(seed: int) -> None:
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 6, size=20)
    values = rng.normal(size=20)
    values[rng.random(20) < 0.2] = np.nan
    estimate = UserBootstrap(users, 40, seed).resample({"x": values}).mean("x")
    draws = _slow_draws(users, values, 40, seed)
    assert np.isclose(estimate.value, np.nanmean(values), equal_nan=True)
    if np.isfinite(draws).any():
        assert np.allclose((estimate.low, estimate.high), np.nanquantile(draws, [0.025, 0.975]))


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(80), 3)
    covered = 0
    for trial in range(100):
        values = rng.normal(size=80)[users] + rng.normal(size=240)
        estimate = UserBootstrap(users, 200, trial).resample({"x": values}).mean("x")
        covered += estimate.low <= 0.0 <= estimate.high
    assert 87 <= covered <= 100


def test_examples_of_one_user_do_not_count_as_independent() -> None:
    rng = np.random.default_rng(1)
    values = np.repeat(rng.normal(size=30), 20)
    clustered = UserBootstrap(np.repeat(np.arange(30), 20), 500).resample({"x": values}).mean("x")
    alone = UserBootstrap(np.arange(600), 500).resample({"x": values}).mean("x")
    assert clustered.high - clustered.low > 3 * (alone.high - alone.low)


def test_a_paired_difference_is_narrower_than_its_sides() -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(size=300)
    better = base + 0.1 + 0.01 * rng.normal(size=300)
    drawn = UserBootstrap(np.arange(300), 500).resample({"a": better, "b": base})
    difference = drawn.difference("a", "b")
    assert difference.low > 0.09
    assert difference.high < 0.11
    assert drawn.mean("a").high - drawn.mean("a").low > 0.1


def test_equal_seeds_give_equal_intervals_and_a_series_of_nothing_gives_nan() -> None:
    users, values = np.array(["a", "b", "b"]), np.array([1.0, 2.0, 3.0])
    first, second = (UserBootstrap(users, 100, 7).resample({"x": values}).mean("x") for _ in range(2))
    assert first == second
    empty = UserBootstrap(users, 100).resample({"x": np.full(3, np.nan)}).mean("x")
    assert np.isnan([empty.value, empty.low, empty.high]).all()
