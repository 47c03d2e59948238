from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.objectives.smoothing import RunningQuantile, clamp_epsilon, oracle_targets

rows = st.lists(st.lists(st.floats(-60, 60, width=32), min_size=4, max_size=4), min_size=1, max_size=5)


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


@pytest.mark.parametrize("mix", [0.0, 0.25, 0.5, 1.0])
def test_a_mix_of_oracle_and_reference_is_the_weighted_geometric_mean_of_both(mix):
    generator = torch.Generator().manual_seed(1)
    scores, reference = (3 * torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    one, two = torch.softmax(scores, 1), torch.softmax(reference, 1)
    product = one ** (1 - mix) * two**mix
    expected = product / product.sum(dim=1, keepdim=True)
    assert torch.allclose(oracle_targets(scores, 0.0, reference - 20, mix), expected, atol=1e-12)
    clamped = oracle_targets(scores, 0.6, reference, mix)
    assert torch.allclose(clamped[:, 0], expected[:, 0].clamp(min=0.6))
    odds = (clamped[:, 1] / clamped[:, 2]).log()
    assert torch.allclose(odds, (1 - mix) * (scores[:, 1] - scores[:, 2]) + mix * (reference[:, 1] - reference[:, 2]))


def test_without_a_mix_the_reference_changes_no_bit_of_the_targets():
    scores = torch.randn(6, 5, generator=torch.Generator().manual_seed(2))
    assert torch.equal(oracle_targets(scores, 0.3, torch.full((6, 5), -1e4), 0.0), oracle_targets(scores, 0.3))
    with pytest.raises(ValueError, match="needs its log-probabilities"):
        oracle_targets(scores, 0.3, None, 0.5)
    with pytest.raises(ValueError, match=r"\[0, 1\], not 1.5"):
        oracle_targets(scores, 0.3, scores, 1.5)


def test_limits_outside_their_range_are_errors():
    with pytest.raises(ValueError, match=r"\[0, 0.5\)"):
        clamp_epsilon(torch.zeros(1), 0.5)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        oracle_targets(torch.zeros(1, 2), 1.5)


def draws(kind: str) -> Callable[[int], torch.Tensor]:
    """Margins of a step: n of a known distribution."""
    generator = torch.Generator().manual_seed(0)
    if kind == "exponential":
        return lambda n: -torch.log(torch.rand(n, generator=generator))
    return lambda n: 3.0 + 2.0 * torch.randn(n, generator=generator)


def follow(tracker: RunningQuantile, draw: Callable[[int], torch.Tensor], steps: int, n: int = 96) -> list[float]:
    """Thresholds after each step."""
    found = []
    for _ in range(steps):
        tracker.update(tracker.statistics(draw(n)))
        assert tracker.threshold is not None
        found.append(tracker.threshold)
    return found


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("kind", ["normal", "exponential"])
def test_the_threshold_finds_the_quantile_of_a_distribution(kind, quantile):
    exact = torch.quantile(draws(kind)(400_000), quantile).item()
    found = follow(RunningQuantile(quantile), draws(kind), 400)
    assert sum(found[50:]) / 350 == pytest.approx(exact, abs=0.05)
    assert all(abs(value - exact) < 0.5 for value in found[40:])


def test_the_threshold_follows_margins_that_grow_from_nothing():
    tracker, draw, shares = RunningQuantile(0.2), draws("normal"), []
    for step in range(120):
        statistics = tracker.statistics(draw(96) * min(step / 40, 1.0))
        shares.append((statistics[3] / statistics[0]).item())
        tracker.update(statistics)
    assert sum(shares[10:40]) / 30 == pytest.approx(0.2, abs=0.1)
    assert sum(shares[60:]) / 60 == pytest.approx(0.2, abs=0.02)


def test_no_pair_is_below_before_the_first_update_and_after_a_restart():
    tracker, margins = RunningQuantile(0.5), draws("normal")(10)
    assert not tracker.below(margins).any()
    first = follow(tracker, draws("normal"), 5)
    assert tracker.below(margins).any()
    tracker.restart()
    assert not tracker.below(margins).any()
    assert follow(tracker, draws("normal"), 5) == first


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 95), max_size=4, unique=True), st.integers(0, 99))
def test_a_split_step_moves_the_threshold_as_a_whole_one_does(cuts, seed):
    whole, split = RunningQuantile(0.3), RunningQuantile(0.3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(6):
        margins = torch.randn(96, generator=generator)
        whole.update(whole.statistics(margins))
        parts = [split.statistics(part) for part in torch.tensor_split(margins, sorted(cuts))]
        split.update(torch.stack(parts).sum(dim=0))
        assert split.threshold == pytest.approx(whole.threshold, abs=1e-12)


def test_a_step_of_one_pair_and_equal_margins_keep_the_threshold_finite():
    tracker = RunningQuantile(0.1)
    assert follow(tracker, lambda n: torch.full((n,), 2.0), 3, n=1) == [2.0, 2.0, 2.0]
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        RunningQuantile(1.0)
