"""Random numbers depend on the example, the seed, the strategy and the draw, and look uniform."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rosepo.sampling.draws import example_keys, stream, uniforms

IDS = [f"{user}:{position}" for user in range(2000) for position in range(10)]


def test_draws_follow_the_example_not_its_place() -> None:
    keys = example_keys(IDS)
    order = np.random.default_rng(0).permutation(len(IDS))
    shuffled = example_keys([IDS[at] for at in order])
    np.testing.assert_array_equal(uniforms(shuffled, 7, "popularity", 2), uniforms(keys, 7, "popularity", 2)[order])


def test_keys_are_the_same_on_every_machine() -> None:
    assert example_keys(["1:2", "é:0"]).tolist() == [12834953080803942338, 11754287603830710274]


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
