"""Other preference objectives on the same terms: pure functions of a group's log-probabilities.

With ``r = policy_logps - ref_logps``, ``u_j = beta * (r_chosen - r_rejected_j)`` and the chosen completion first:

    dpo       mean_j -log sigmoid(u_j)                                             arXiv 2305.18290
    robust    mean_j [e log sigmoid(-u_j) - (1 - e) log sigmoid(u_j)] / (1 - 2 e)  arXiv 2403.00409
    ipo       mean_j (h_j - 1 / (2 beta))^2,  h_j = r_chosen - r_rejected_j        arXiv 2310.12036
    simpo     mean_j -log sigmoid(v_chosen - v_rejected_j - gamma)                 arXiv 2405.14734
              with v = beta * policy_logps / tokens
    dmpo      -log sigmoid(beta r_chosen - (beta / K) sum_j r_rejected_j)          arXiv 2405.16127
    ada_dpo   mean_j min over tau of -tau log sigmoid(u_j / tau) + rho tau         arXiv 2406.02764
    sdpo      -log softmax(beta * r)_chosen                                        arXiv 2406.09215

Conservative DPO and SPA's smoothing (arXiv 2406.04412) are `rosepo.pairwise` with an epsilon of their own, and RPO
(arXiv 2405.16436) is `dpo` plus `likelihood.chosen_nll`. The mean over the K pairs is this project's reading of losses
that were stated for one pair. Arguments and results as in `rosepo.pairwise`.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from rosepo.objectives.rewards import Metrics, log_ratios, pair_margins, reward_metrics, to_float32
from rosepo.objectives.rosepo import pairwise, softmax


def dpo(policy_logps: Tensor, ref_logps: Tensor, beta: float) -> tuple[Tensor, Metrics]:
    """`pairwise` without smoothing."""
    return pairwise(policy_logps, ref_logps, torch.zeros_like(policy_logps[:, 1:]), beta)


def sdpo(policy_logps: Tensor, ref_logps: Tensor, beta: float) -> tuple[Tensor, Metrics]:
    """`softmax` with all the mass on the chosen completion."""
    targets = torch.zeros_like(policy_logps)
    targets[:, 0] = 1.0
    return softmax(policy_logps, ref_logps, targets, beta)


def robust(policy_logps: Tensor, ref_logps: Tensor, epsilon: Tensor, beta: float) -> tuple[Tensor, Metrics]:
    """DPO's loss without the bias of labels that are flipped with probability epsilon; not bounded from below.

    Args:
        epsilon: [G, K] in [0, 1/2), one constant in the paper.

    Raises:
        ValueError: an epsilon outside [0, 1/2), where the loss has no meaning.
    """
    rewards = beta * log_ratios(policy_logps, ref_logps)
    margins = pair_margins(rewards)
    epsilon = epsilon.to(margins.dtype)
    if ((epsilon < 0) | (epsilon >= 0.5)).any():
        raise ValueError("robust DPO needs every epsilon in [0, 0.5)")
    losses = (epsilon * F.logsigmoid(-margins) - (1 - epsilon) * F.logsigmoid(margins)) / (1 - 2 * epsilon)
    return losses.mean(dim=1), reward_metrics(rewards)


def ipo(
    policy_logps: Tensor, ref_logps: Tensor, counts: Tensor, beta: float, average: bool = False
) -> tuple[Tensor, Metrics]:
    """Squared distance of h from ``1 / (2 beta)``.

    Args:
        counts: [G, 1 + K], tokens of every completion, EOS included.
        average: h is a difference of means over tokens (as TRL has it, and IPO's authors are said to), not of sums.
            Rewards in the metrics are of the same kind.
    """
    ratios = log_ratios(policy_logps, ref_logps)
    if average:
        ratios = ratios / counts.to(ratios.dtype)
    return (pair_margins(ratios) - 1 / (2 * beta)).square().mean(dim=1), reward_metrics(beta * ratios)


def simpo(policy_logps: Tensor, counts: Tensor, beta: float, gamma: float) -> tuple[Tensor, Metrics]:
    """Logistic loss of length-normalised log-probabilities with a target margin; there is no reference.

    Args:
        counts: [G, 1 + K], tokens of every completion, EOS included.
        gamma: by how much a chosen completion's reward should exceed a rejected one's.

    Returns:
        Loss [G] and metrics; rewards are ``beta * policy_logps / counts``, margins without gamma.
    """
    logps = to_float32(policy_logps)
    rewards = beta * logps / counts.to(logps.dtype)
    return -F.logsigmoid(pair_margins(rewards) - gamma).mean(dim=1), reward_metrics(rewards)


def dmpo(policy_logps: Tensor, ref_logps: Tensor, beta: float) -> tuple[Tensor, Metrics]:
    """Logistic loss of the chosen completion's reward against the mean of the K rejected ones'."""
    rewards = beta * log_ratios(policy_logps, ref_logps)
    return -F.logsigmoid(rewards[:, 0] - rewards[:, 1:].mean(dim=1)), reward_metrics(rewards)


def ada_dpo(
    policy_logps: Tensor, ref_logps: Tensor, beta: float, tau_min: float, tau_max: float, rho: float
) -> tuple[Tensor, Metrics]:
    """Logistic loss in which every pair scales its margin by the tau that suits it best: ambiguous pairs a small one,
    clear pairs a large one.

    The gradient is that at the best tau, held fixed (envelope theorem): ``-sigmoid(-u / tau)`` in u.

    Args:
        tau_min, tau_max: 0 < tau_min <= tau_max, where tau may lie.
        rho: what a unit of tau costs. The authors' code writes ``rho_0 - log 2`` for it, rho_0 the radius of a
            Kullback-Leibler ball around even odds; from 0 up all pairs take tau_min, from -log 2 down tau_max.

    Returns:
        Loss [G], and besides the other metrics `ada_tau` [G, K].

    Raises:
        ValueError: bounds out of order.
    """
    if not 0 < tau_min <= tau_max:
        raise ValueError(f"tau needs 0 < tau_min <= tau_max, not {tau_min} and {tau_max}")
    rewards = beta * log_ratios(policy_logps, ref_logps)
    margins = pair_margins(rewards)
    tau = best_tau(margins, tau_min, tau_max, rho)
    losses = rho * tau - tau * F.logsigmoid(margins / tau)
    return losses.mean(dim=1), reward_metrics(rewards) | {"ada_tau": tau}


@torch.no_grad()
def best_tau(margins: Tensor, tau_min: float, tau_max: float, rho: float) -> Tensor:
    """The tau in [tau_min, tau_max] that minimises ``-tau log sigmoid(d / tau) + rho tau``, shape and dtype of margins.

    The derivative is ``H(sigmoid(d / tau)) + rho`` with H the entropy of a coin in nats, and the objective is convex.
    So all minima lie at one ``|d| / tau = z``, the root of H(sigmoid(z)) = -rho: z is found once instead of every
    pair's tau, and what is left is the projection onto the bounds. (The paper takes projected Newton steps in tau for
    every pair; this shortcut to where they lead is ours.)
    """
    root = _entropy_root(rho)
    best = margins.abs() / root if root > 0 else torch.full_like(margins, tau_max)
    return best.clamp(tau_min, tau_max)


@lru_cache
def _entropy_root(rho: float) -> float:
    """z ≥ 0 with H(sigmoid(z)) = -rho, H in nats; 0 where -rho is log 2 or more, infinity where it is 0 or less."""
    if rho >= 0 or rho <= -math.log(2):
        return math.inf if rho >= 0 else 0.0
    low, high = 0.0, 1.0
    while _entropy(high) > -rho:
        low, high = high, 2 * high
    for _ in range(60):  # halves, until doubles have no number in between
        z = (low + high) / 2
        low, high = (z, high) if _entropy(z) > -rho else (low, z)
    return (low + high) / 2


def _entropy(z: float) -> float:
    """H(sigmoid(z)) in nats, z ≥ 0."""
    return math.log1p(math.exp(-z)) + z * math.exp(-z) / (1 + math.exp(-z))
