"""Distillation from titles drawn without replacement: the mean over all draws is the sum over the whole catalogue."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rosepo.data.random import stream
from rosepo.objectives.likelihood import distill, drawn_weights
from rosepo.sampling.strategies.distributions import FromOracle
from tests.helpers import examples_of

TARGET = 5
OTHERS = [0, 1, 2, 3, 4]
SCORES = torch.tensor([0.3, 2.0, -1.0, 1.2, 0.0, 1.5], dtype=torch.float64)
REST = torch.logsumexp(SCORES[OTHERS], 0)


def policy_of(parameters: Tensor) -> Tensor:
    """log pi of every title of a catalogue of six."""
    return torch.log_softmax(parameters, dim=0)


def chance(draw: tuple[int, ...]) -> float:
    """Of drawing these titles in this order, none twice."""
    p, found, left = torch.softmax(SCORES[OTHERS], 0), 1.0, 1.0
    for item in draw:
        found *= float(p[item]) / left
        left -= float(p[item])
    return found


def estimate(parameters: Tensor, draw: tuple[int, ...]) -> Tensor:
    titles = [TARGET, *draw]
    return distill(policy_of(parameters)[None, titles], drawn_weights(SCORES[None, titles], REST[None]))[0].sum()


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_mean_over_all_draws_has_the_gradient_of_the_whole_catalogue_s_cross_entropy(k):
    parameters = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    exact = F.cross_entropy(parameters[None], torch.softmax(SCORES, 0)[None])
    draws = list(itertools.permutations(OTHERS, k))
    assert sum(chance(draw) for draw in draws) == pytest.approx(1.0)
    mean = sum(chance(draw) * estimate(parameters, draw) for draw in draws)
    assert mean.item() == pytest.approx(exact.item(), abs=1e-12)
    one, two = (torch.autograd.grad(loss, parameters)[0] for loss in (mean, exact))
    assert torch.allclose(one, two, atol=1e-12)


def test_renormalised_scores_of_the_drawn_titles_would_be_biased():
    parameters = torch.zeros(6, dtype=torch.float64)
    parameters[1] = 3.0

    def plain(draw: tuple[int, ...]) -> float:
        titles = [TARGET, *draw]
        return float(-(torch.softmax(SCORES[titles], 0) * policy_of(parameters)[titles]).sum())

    draws = list(itertools.permutations(OTHERS, 2))
    exact = F.cross_entropy(parameters[None], torch.softmax(SCORES, 0)[None]).item()
    assert sum(chance(draw) * estimate(parameters, draw).item() for draw in draws) == pytest.approx(exact)
    assert abs(sum(chance(draw) * plain(draw) for draw in draws) - exact) > 0.05


def test_titles_that_the_strategy_draws_estimate_the_sum_over_the_catalogue():
    n, history = 6_000, 2
    ids = [f"{number}:1" for number in range(n)]
    examples = examples_of(ids, [np.array([history])] * n, np.full(n, TARGET), 6)
    strategy = FromOracle(lambda some: np.tile(SCORES.numpy(), (len(some), 1)).astype(np.float32))
    titles = np.concatenate([examples.targets[:, None], strategy(examples, 2, stream(examples.keys, 0, "oracle"))], 1)
    logps = policy_of(torch.tensor([1.0, -2.0, 0.0, 0.5, -1.0, 0.2], dtype=torch.float64))
    weights = drawn_weights(SCORES[titles], torch.from_numpy(strategy.odds(examples)[0]))
    losses = distill(logps[titles], weights)[0]
    allowed = [item for item in range(6) if item != history]
    exact = float(-(torch.softmax(SCORES[allowed], 0) * logps[allowed]).sum())
    assert losses.mean().item() == pytest.approx(exact, abs=4 * losses.std().item() / math.sqrt(n))
    assert losses.std() > 0.05


def test_weights_are_a_distribution_however_sure_the_oracle_is():
    scores = torch.tensor([[0.0, 3.0, 1.0, -2.0], [1e4, 0.0, -5.0, -9.0], [-1e4, 9.0, 0.0, -1e4]])
    weights = drawn_weights(scores, torch.logsumexp(scores[:, 1:], 1) + torch.tensor([0.5, 0.0, 0.0]))
    assert torch.isfinite(weights).all()
    assert (weights >= 0).all()
    assert torch.allclose(weights.sum(1), torch.ones(3))
    assert weights[1, 0] == 1.0
    assert weights[2, 0] == 0.0
    logps = torch.tensor([[-1.0, -2.0, -3.0, -4.0]] * 3, requires_grad=True)
    losses, metrics = distill(logps, weights)
    losses.sum().backward()
    assert torch.allclose(logps.grad, -weights)
    assert metrics == {}
