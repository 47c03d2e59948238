"""Random numbers depend on the example, the seed, the strategy and the draw, and look uniform."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rosepo.data.random import example_keys, round_seed, stream, uniforms

IDS = [f"{user}:{position}" for user in range(2000) for position in range(10)]


def test_draws_follow_the_example_not_its_place() -> None:
    keys = example_keys(IDS)
    order = np.random.default_rng(0).permutation(len(IDS))
    shuffled = example_keys([IDS[at] for at in order])
    np.testing.assert_array_equal(uniforms(shuffled, 7, "popularity", 2), uniforms(keys, 7, "popularity", 2)[order])


def test_keys_are_the_same_on_every_machine() -> None:
    assert example_keys(["1:2", "é:0"]).tolist() == [12372816326015748, 9234073200881739519]


@pytest.mark.parametrize("other", [(1, "semantic", 0), (0, "popularity", 0), (0, "semantic", 1)])
def test_seeds_strategies_and_draws_are_independent(other: tuple[int, str, int]) -> None:
    keys = example_keys(IDS)
    first, second = uniforms(keys, 0, "semantic", 0), uniforms(keys, *other)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(len(keys))


def test_draws_are_uniform() -> None:
    values = stream(example_keys(IDS), 0, "mixture")(0)
    assert values.min() >= 0
    assert values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_rounds_draw_independently_and_the_first_as_without_rounds() -> None:
    keys = example_keys(IDS)
    assert round_seed(7, 1) == 7
    drawn = [uniforms(keys, round_seed(7, round), "semantic", 0) for round in (1, 2, 3)]
    correlations = np.corrcoef(drawn)[np.triu_indices(3, 1)]
    assert (np.abs(correlations) < 4 / np.sqrt(len(keys))).all()
