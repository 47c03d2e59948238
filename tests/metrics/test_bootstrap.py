from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rosepo.metrics.bootstrap import UserBootstrap, _draw_users, plain


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


def test_intervals_and_paired_differences_agree_with_scipy() -> None:
    """SciPy draws other users: ends may differ by what 20,000 draws leave open, a few hundredths of the width."""
    rng = np.random.default_rng(3)
    users = rng.integers(0, 60, size=200)
    skill = rng.exponential(size=60)
    series = {"a": skill[users] * rng.random(200), "b": skill[users] * rng.random(200) + 0.1}
    series["a"][rng.random(200) < 0.1] = np.nan
    mine = UserBootstrap(users, 20_000, 0).resample(series)
    sums = {key: np.bincount(users, np.nan_to_num(values), minlength=60) for key, values in series.items()}
    counts = {key: np.bincount(users, ~np.isnan(values), minlength=60) for key, values in series.items()}
    columns = (sums["a"], counts["a"], sums["b"], counts["b"])

    def mean_of_a(sa: np.ndarray, ca: np.ndarray, sb: np.ndarray, cb: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(sa.sum(axis) / ca.sum(axis))

    def difference(sa: np.ndarray, ca: np.ndarray, sb: np.ndarray, cb: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(sa.sum(axis) / ca.sum(axis) - sb.sum(axis) / cb.sum(axis))

    for statistic, estimate in ((mean_of_a, mine.mean("a")), (difference, mine.difference("a", "b"))):
        theirs = stats.bootstrap(
            columns, statistic, paired=True, vectorized=True, n_resamples=20_000, batch=2000, method="percentile", rng=1
        ).confidence_interval
        width = theirs.high - theirs.low
        assert np.isclose(estimate.value, statistic(*columns))
        assert abs(estimate.low - theirs.low) < 0.04 * width
        assert abs(estimate.high - theirs.high) < 0.04 * width


def test_series_may_be_made_one_by_one_and_share_their_draws_whatever_stands_beside_them() -> None:
    rng = np.random.default_rng(4)
    users, whole = rng.integers(0, 9, size=50), rng.normal(size=50)
    holes = np.where(rng.random(50) < 0.5, np.nan, whole)
    at_once = UserBootstrap(users, 100).resample({"whole": whole, "holes": holes, "bytes": (whole > 0).astype(np.int8)})
    one_by_one = UserBootstrap(users, 100).resample(
        (name, {"whole": whole, "holes": holes}[name]) for name in ("holes", "whole")
    )
    for name in ("whole", "holes"):
        assert np.allclose(astuple(at_once.mean(name)), astuple(one_by_one.mean(name)))
    assert np.isclose(at_once.mean("bytes").value, (whole > 0).mean())


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


def test_a_single_user_gives_a_mean_and_no_interval() -> None:
    drawn = UserBootstrap(np.array(["u", "u", "u"]), 50).resample({"a": np.array([1.0, 0.0, 1.0])})
    assert plain(drawn.mean("a")) == {"value": pytest.approx(2 / 3), "low": None, "high": None}
    assert plain(drawn.difference("a", "a"))["low"] is None
