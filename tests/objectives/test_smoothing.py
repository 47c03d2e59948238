from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.objectives.smoothing import clamp_epsilon, oracle_epsilon, oracle_targets

rows = st.lists(st.lists(st.floats(-60, 60, width=32), min_size=4, max_size=4), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(rows, st.floats(0.0, 0.4999))
def test_epsilon_stays_under_its_maximum_and_falls_with_the_margin(scores, maximum):
    table = torch.tensor(scores)
    epsilon = oracle_epsilon(table, maximum)
    assert epsilon.shape == (len(scores), 3)
    assert (epsilon >= 0).all()
    assert (epsilon <= maximum + 1e-7).all()
    higher = oracle_epsilon(table + torch.tensor([1.0, 0, 0, 0]), maximum)
    assert (higher <= epsilon).all()


def test_epsilon_is_the_oracles_chance_of_a_wrong_order():
    assert oracle_epsilon(torch.tensor([[2.0, 0.0]]), 0.49).item() == pytest.approx(0.1192, abs=1e-4)
    assert oracle_epsilon(torch.tensor([[0.0, 2.0]]), 0.4).item() == pytest.approx(0.4)


@settings(max_examples=60, deadline=None)
@given(rows, st.floats(0.0, 1.0))
def test_targets_are_distributions_with_the_chosen_mass_kept(scores, minimum):
    targets = oracle_targets(torch.tensor(scores), minimum)
    assert torch.allclose(targets.sum(dim=1), torch.ones(len(scores)), atol=1e-5)
    assert (targets >= 0).all()
    assert (targets[:, 0] >= minimum - 1e-6).all()


def test_targets_without_a_clamp_are_the_softmax_of_the_scores():
    scores = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(oracle_targets(scores, 0.0), torch.softmax(scores, dim=1), atol=1e-6)


def test_a_clamp_keeps_the_odds_among_rejected_titles():
    targets = oracle_targets(torch.tensor([[-5.0, 1.0, 0.0]]), 0.5)
    assert targets[0, 0].item() == pytest.approx(0.5)
    assert (targets[0, 1] / targets[0, 2]).item() == pytest.approx(2.71828, rel=1e-4)
    assert oracle_targets(torch.tensor([[0.0, 9.0]]), 1.0).tolist() == [[1.0, 0.0]]


def test_limits_outside_their_range_are_errors():
    with pytest.raises(ValueError, match=r"\[0, 0.5\)"):
        clamp_epsilon(torch.zeros(1), 0.5)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        oracle_targets(torch.zeros(1, 2), 1.5)
