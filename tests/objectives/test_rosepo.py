from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rosepo.objectives.rosepo import pairwise, softmax


def group(u: float, beta: float = 1.0, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of one group whose every margin is u."""
    reference = torch.full((1, 1 + k), -7.0, dtype=torch.float64)
    policy = reference.clone()
    policy[:, 0] += u / beta
    return policy, reference


def random_groups(seed: int, groups: int = 4, k: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    policy, reference, scores = (torch.randn(groups, 1 + k, generator=generator, dtype=torch.float64) for _ in range(3))
    return (
        policy,
        reference,
        0.49 * torch.rand(groups, k, generator=generator, dtype=torch.float64),
        torch.softmax(scores, 1),
    )


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.3, 0.49])
@pytest.mark.parametrize("u", [-3.0, 0.0, 0.5, 4.0])
def test_pairwise_has_the_closed_form_value_and_gradient(u, epsilon):
    policy, reference = group(u, beta=0.5)
    policy.requires_grad_()
    losses, _ = pairwise(policy, reference, torch.full((1, 1), epsilon), beta=0.5)
    sigma = 1 / (1 + math.exp(-u))
    assert losses.item() == pytest.approx(-(1 - epsilon) * math.log(sigma) - epsilon * math.log(1 - sigma), abs=1e-6)
    losses.sum().backward()
    assert policy.grad[0, 0].item() == pytest.approx(0.5 * (sigma - (1 - epsilon)), abs=1e-6)
    assert policy.grad[0, 1].item() == pytest.approx(-0.5 * (sigma - (1 - epsilon)), abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_agree_with_finite_differences(seed):
    policy, reference, epsilon, targets = random_groups(seed)
    policy.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: pairwise(p, reference, epsilon, 0.7)[0], (policy,))
    assert torch.autograd.gradcheck(lambda p: softmax(p, reference, targets, 0.7)[0], (policy,))


def test_pairwise_agrees_with_a_loop_over_pairs():
    policy, reference, epsilon, _ = random_groups(2)
    losses, metrics = pairwise(policy, reference, epsilon, beta=0.3)
    for g in range(4):
        total = 0.0
        for k in range(3):
            u = 0.3 * ((policy[g, 0] - reference[g, 0]) - (policy[g, k + 1] - reference[g, k + 1]))
            e = epsilon[g, k]
            total += -(1 - e) * torch.log(torch.sigmoid(u)) - e * torch.log(torch.sigmoid(-u))
            assert metrics["margin"][g, k] == pytest.approx(u.item())
            assert metrics["accuracy"][g, k] == float(u > 0)
        assert losses[g].item() == pytest.approx((total / 3).item())


def test_epsilon_zero_is_dpo():
    policy, reference, _, _ = random_groups(3, k=1)
    losses, _ = pairwise(policy, reference, torch.zeros(4, 1), beta=0.1)
    ratio = (policy[:, 0] - policy[:, 1]) - (reference[:, 0] - reference[:, 1])
    assert torch.allclose(losses, -F.logsigmoid(0.1 * ratio))


def test_softmax_of_one_rejected_title_is_pairwise():
    policy, reference, epsilon, _ = random_groups(4, k=1)
    one, _ = pairwise(policy, reference, epsilon, beta=0.9)
    other, _ = softmax(policy, reference, torch.cat([1 - epsilon, epsilon], dim=1), beta=0.9)
    assert torch.allclose(one, other)


def test_a_one_hot_target_is_s_dpo():
    policy, reference, _, _ = random_groups(5, k=5)
    targets = torch.zeros(4, 6).index_fill(1, torch.tensor([0]), 1.0)
    losses, _ = softmax(policy, reference, targets, beta=0.4)
    rewards = 0.4 * (policy - reference)
    assert torch.allclose(losses, -torch.log(rewards[:, 0].exp() / rewards.exp().sum(dim=1)))


@given(seed=st.integers(0, 10_000), beta=st.floats(0.1, 3.0))
@example(seed=1722, beta=3.0)
@settings(max_examples=50, deadline=None)
def test_the_distance_from_the_targets_is_what_a_loop_over_titles_gives(seed, beta):
    policy, reference, epsilon, targets = random_groups(seed)
    by_pair, by_group = pairwise(policy, reference, epsilon, beta)[1], softmax(policy, reference, targets, beta)[1]
    for g in range(len(policy)):
        rewards = [beta * (policy[g, i] - reference[g, i]).item() for i in range(4)]
        total = sum(math.exp(reward) for reward in rewards)
        kl = sum(q * math.log(q * total / math.exp(r)) for q, r in zip(targets[g].tolist(), rewards))
        assert by_group["target_kl"][g].item() == pytest.approx(kl, abs=1e-9)
        pairs = 0.0
        for e, r in zip(epsilon[g].tolist(), rewards[1:]):
            # Not 1 - right, which loses digits where the margin is large.
            right, wrong = 1 / (1 + math.exp(r - rewards[0])), 1 / (1 + math.exp(rewards[0] - r))
            pairs += (1 - e) * math.log((1 - e) / right) + e * math.log(e / wrong)
        assert by_pair["target_kl"][g].item() == pytest.approx(pairs / 3, abs=1e-9)


def test_the_distance_is_nothing_at_the_targets_and_the_loss_where_they_are_one_hot():
    policy, reference, epsilon, targets = random_groups(3)
    at_targets = reference + torch.log(targets) / 0.5
    assert softmax(at_targets, reference, targets, 0.5)[1]["target_kl"].abs().max() < 1e-9
    losses, metrics = pairwise(policy, reference, torch.zeros_like(epsilon), 0.5)
    assert torch.allclose(metrics["target_kl"], losses)
    one_hot = torch.eye(4, dtype=torch.float64)[:1].repeat(4, 1)
    losses, metrics = softmax(policy, reference, one_hot, 0.5)
    assert torch.equal(metrics["target_kl"], losses)


@pytest.mark.parametrize(("epsilon", "optimum"), [(0.1, 2.197), (0.2, 1.386), (0.3, 0.847)])
def test_the_optimum_is_finite_and_where_the_odds_say(epsilon, optimum):
    def slope(u: float) -> float:
        policy, reference = group(u)
        policy.requires_grad_()
        pairwise(policy, reference, torch.full((1, 1), epsilon, dtype=torch.float64), 1.0)[0].sum().backward()
        return policy.grad[0, 0].item()

    assert math.log((1 - epsilon) / epsilon) == pytest.approx(optimum, abs=1e-3)
    assert slope(math.log((1 - epsilon) / epsilon)) == pytest.approx(0.0, abs=1e-9)
    assert slope(optimum - 0.1) < 0 < slope(optimum + 0.1)


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e4, 1e4), st.floats(0.0, 0.49))
def test_nothing_overflows(u, epsilon):
    policy, reference = (part.float().repeat(1, 2)[:, :3] for part in group(u))
    policy.requires_grad_()
    pair, metrics = pairwise(policy, reference, torch.full((1, 2), epsilon), 1.0)
    whole, _ = softmax(policy, reference, torch.tensor([[0.5, 0.3, 0.2]]), 1.0)
    (pair.sum() + whole.sum()).backward()
    assert torch.isfinite(pair).all()
    assert torch.isfinite(whole).all()
    assert torch.isfinite(policy.grad).all()
    assert pair.dtype == torch.float32
    assert not metrics["margin"].requires_grad


def test_half_precision_is_raised_to_float32():
    policy, reference, epsilon, _ = (part.bfloat16() for part in random_groups(6))
    assert pairwise(policy, reference, epsilon, 0.1)[0].dtype == torch.float32


def test_a_group_without_a_rejected_title_is_an_error():
    with pytest.raises(ValueError, match=r"K >= 1"):
        pairwise(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, 0), 1.0)
