"""The rivals' losses: values worked out by hand, limits that join them, gradients, and what they refuse."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rosepo.config import LOSSES
from rosepo.config.losses import LossEntry
from rosepo.objectives.likelihood import chosen_nll
from rosepo.objectives.rivals import ada_dpo, best_tau, dmpo, dpo, ipo, robust, sdpo, simpo
from rosepo.objectives.rosepo import pairwise, softmax
from tests.objectives.named import called, function_of

PREFERENCES = [name for name, facts in LOSSES.items() if facts.preference]
OPTIONS: dict[str, dict[str, Any]] = {
    "ipo": {"average": True},
    "simpo": {"gamma": 0.4},
    "ada_dpo": {"tau_min": 0.1, "tau_max": 5.0, "rho": 0.1 - math.log(2)},
}


def made(seed: int = 0, groups: int = 4, k: int = 3, scale: float = 2.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities of some groups under the policy, and every input that an objective may read; float64."""
    generator = torch.Generator().manual_seed(seed)
    size = (groups, 1 + k)
    policy, reference, scores = (scale * torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(3))
    return policy - 9, {
        "ref_logps": reference - 9,
        "epsilon": 0.49 * torch.rand(groups, k, generator=generator, dtype=torch.float64),
        "targets": torch.softmax(scores, 1),
        "weights": torch.softmax(scores, 1),
        "counts": torch.randint(1, 9, size, generator=generator),
    }


def loss_of(name: str, policy: Tensor, inputs: dict[str, Tensor], beta: float = 0.7) -> Tensor:
    """Loss [G] of a named loss; takes of the inputs what it reads."""
    return called(name, policy, inputs, beta, **OPTIONS.get(name, {}))[0]


def by_hand(name: str, w: tuple[float, float, int], losers: list[tuple[float, float, int]], beta: float) -> float:
    """The loss of one group in plain numbers, from (policy, reference, tokens) of each completion; epsilon 0.2."""

    def sigma(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    r = [policy - reference for policy, reference, _ in (w, *losers)]
    mean_r = [(policy - reference) / tokens for policy, reference, tokens in (w, *losers)]
    mean_p = [policy / tokens for policy, _, tokens in (w, *losers)]
    u = [beta * (r[0] - other) for other in r[1:]]
    formulas: dict[str, Callable[[], list[float]]] = {
        "dpo": lambda: [-math.log(sigma(x)) for x in u],
        "robust": lambda: [(-0.8 * math.log(sigma(x)) + 0.2 * math.log(sigma(-x))) / 0.6 for x in u],
        "ipo": lambda: [(mean_r[0] - other - 1 / (2 * beta)) ** 2 for other in mean_r[1:]],
        "simpo": lambda: [-math.log(sigma(beta * mean_p[0] - beta * other - 0.4)) for other in mean_p[1:]],
        "dmpo": lambda: [-math.log(sigma(beta * r[0] - beta / len(losers) * sum(r[1:])))],
        "sdpo": lambda: [-math.log(math.exp(beta * r[0]) / sum(math.exp(beta * x) for x in r))],
    }
    values = formulas[name]()
    return sum(values) / len(values)


@pytest.mark.parametrize("name", ["dpo", "robust", "ipo", "simpo", "dmpo", "sdpo"])
def test_the_value_is_the_formula_s(name):
    policy, inputs = made(1)
    inputs["epsilon"] = torch.full_like(inputs["epsilon"], 0.2)
    losses = loss_of(name, policy, inputs)
    for group in range(4):
        parts = [(policy[group, i].item(), inputs["ref_logps"][group, i].item(), int(inputs["counts"][group, i]))
                 for i in range(4)]  # fmt: skip
        assert losses[group].item() == pytest.approx(by_hand(name, parts[0], parts[1:], 0.7), abs=1e-9)


def test_ipo_takes_sums_or_means_over_tokens():
    policy, reference = torch.tensor([[-4.0, -9.0]]), torch.tensor([[-6.0, -6.0]])
    counts = torch.tensor([[2, 3]])
    assert ipo(policy, reference, counts, beta=0.25)[0].item() == pytest.approx((2 + 3 - 2) ** 2)
    assert ipo(policy, reference, counts, beta=0.25, average=True)[0].item() == pytest.approx((1 + 1 - 2) ** 2)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_agree_with_finite_differences(name, seed):
    policy, inputs = made(seed)
    assert torch.autograd.gradcheck(lambda p: loss_of(name, p, inputs), (policy.requires_grad_(),))


def test_limits_of_the_rivals_are_dpo():
    policy, inputs = made(2)
    reference, none = inputs["ref_logps"], torch.zeros(4, 3, dtype=torch.float64)
    plain, _ = dpo(policy, reference, 0.7)
    assert torch.equal(plain, pairwise(policy, reference, none, 0.7)[0])
    assert torch.allclose(
        plain, -F.logsigmoid(0.7 * ((policy - reference)[:, :1] - (policy - reference)[:, 1:])).mean(1)
    )
    assert torch.equal(plain, robust(policy, reference, none, 0.7)[0])
    assert torch.allclose(plain, ada_dpo(policy, reference, 0.7, tau_min=1.0, tau_max=1.0, rho=0.0)[0])
    assert torch.equal(plain, called("rpo", policy, {"ref_logps": reference}, 0.7)[0])
    # Epsilon's limit is a limit, not only a value at 0.
    nearly = torch.full_like(none, 1e-9)
    assert torch.allclose(plain, pairwise(policy, reference, nearly, 0.7)[0], atol=1e-7)
    assert torch.allclose(plain, robust(policy, reference, nearly, 0.7)[0], atol=1e-7)


def test_losses_of_whole_groups_are_dpo_for_one_rejected_title():
    policy, inputs = made(3, k=1)
    reference = inputs["ref_logps"]
    plain, _ = dpo(policy, reference, 0.7)
    assert torch.allclose(plain, dmpo(policy, reference, 0.7)[0])
    assert torch.allclose(plain, sdpo(policy, reference, 0.7)[0])


def test_s_dpo_is_softmax_with_a_one_hot_target():
    policy, inputs = made(4)
    one_hot = F.one_hot(torch.zeros(4, dtype=torch.int64), 4).double()
    assert torch.equal(sdpo(policy, inputs["ref_logps"], 0.7)[0], softmax(policy, inputs["ref_logps"], one_hot, 0.7)[0])


@settings(max_examples=60, deadline=None)
@given(st.floats(-30, 30), st.floats(0.0, 0.45))
def test_robust_dpo_is_unbiased_under_flipped_labels(u, epsilon):
    """Its mean over labels that are flipped with probability epsilon is DPO's loss of the true label."""
    reference = torch.zeros(2, 2, dtype=torch.float64)
    policy = torch.tensor([[u, 0.0], [0.0, u]], dtype=torch.float64)  # the pair, and the pair turned round
    right, flipped = robust(policy, reference, torch.full((2, 1), epsilon, dtype=torch.float64), 1.0)[0]
    expected = dpo(policy[:1], reference[:1], 1.0)[0].item()
    assert ((1 - epsilon) * right + epsilon * flipped).item() == pytest.approx(expected, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.floats(-60, 60), st.floats(-0.69, -0.001), st.floats(0.01, 2.0), st.floats(1.0, 50.0))
def test_the_tau_of_ada_dpo_is_the_best_within_its_bounds(margin, rho, low, ratio):
    d, high = torch.tensor([margin], dtype=torch.float64), low * ratio

    def cost(tau: Tensor) -> Tensor:
        return rho * tau - tau * F.logsigmoid(d / tau)

    tau = best_tau(d, low, high, rho)
    assert low <= tau.item() <= high
    assert cost(tau).item() <= cost(torch.linspace(low, high, 2001, dtype=torch.float64)).min().item() + 1e-12


@pytest.mark.parametrize("rho", [-0.6, -0.4, -0.1])
def test_the_tau_of_ada_dpo_is_where_projected_newton_steps_lead(rho):
    d = torch.linspace(-8, 8, 41, dtype=torch.float64)
    z = d / best_tau(d, 1e-3, 1e3, rho)
    tau = (d.abs() / z.abs().max() * 1.1).clamp(0.05, 5.0)  # a start in the basin of Newton's method
    for _ in range(60):
        p = torch.sigmoid(-d / tau)
        slope = -F.logsigmoid(d / tau) + p * d / tau + rho
        tau = (tau - slope / (d**2 / tau**3 * p * (1 - p)).clamp(min=1e-12)).clamp(0.05, 5.0)
    assert torch.allclose(tau, best_tau(d, 0.05, 5.0, rho), atol=1e-6)


def test_clear_pairs_scale_more_than_ambiguous_ones_and_stay_in_bounds():
    policy = torch.tensor([[0.01, 0.0], [1.0, 0.0], [3.0, 0.0], [-3.0, 0.0], [100.0, 0.0]])
    _, metrics = ada_dpo(policy, torch.zeros(5, 2), 1.0, **OPTIONS["ada_dpo"])
    tau = metrics["ada_tau"].flatten().tolist()
    assert tau[0] == pytest.approx(0.1)
    assert 0.1 < tau[1] < tau[2] == pytest.approx(tau[3])
    assert tau[4] == pytest.approx(5.0)


@pytest.mark.parametrize(("rho", "end"), [(0.0, 0.1), (0.5, 0.1), (-math.log(2), 5.0), (-2.0, 5.0)])
def test_a_cost_beyond_the_entropy_of_a_coin_leaves_tau_at_one_end(rho, end):
    margins = torch.tensor([-3.0, 0.0, 0.2, 50.0])
    assert best_tau(margins, 0.1, 5.0, rho).tolist() == pytest.approx([end] * 4)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(LOSSES)), st.floats(-1e4, 1e4), st.sampled_from([torch.float32, torch.bfloat16]))
def test_nothing_overflows(name, u, dtype):
    _, inputs = made(5, groups=1)
    inputs = {key: value if key == "counts" else value.float() for key, value in inputs.items()}
    inputs["ref_logps"] = torch.full((1, 4), -7.0)
    policy = torch.tensor([[u - 7.0, -7.0, -9.0, -7.0]], dtype=dtype, requires_grad=True)
    losses, metrics = called(name, policy, inputs, 1.0, **OPTIONS.get(name, {}))
    losses.sum().backward()
    assert losses.dtype == torch.float32
    for value in (losses, policy.grad, *metrics.values()):
        assert torch.isfinite(value).all()
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("name", PREFERENCES)
@pytest.mark.parametrize("u", [-1e4, 1e4])
def test_extreme_margins_keep_a_finite_gradient_in_the_right_direction(name, u):
    _, inputs = made(6, groups=1, k=1)
    inputs |= {"ref_logps": torch.zeros(1, 2), "counts": torch.ones(1, 2), "epsilon": torch.zeros(1, 1)}
    inputs["targets"] = torch.tensor([[1.0, 0.0]])
    policy = torch.tensor([[u, 0.0]], requires_grad=True)
    loss_of(name, policy, inputs, beta=1.0).sum().backward()
    slope = policy.grad[0, 0].item()
    assert math.isfinite(slope)
    assert policy.grad[0, 1].item() == pytest.approx(-slope)
    if u < 0:
        assert slope < 0
    elif name != "ipo":  # beyond IPO's target the slope turns round
        assert slope == pytest.approx(0.0, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(LOSSES)), st.integers(0, 10**6), st.integers(1, 5), st.randoms(use_true_random=False))
def test_the_order_of_groups_and_of_rejected_titles_has_no_say(name, seed, k, random):
    policy, inputs = made(seed, groups=3, k=k)
    losses = loss_of(name, policy, inputs)
    rows, columns = [2, 0, 1], random.sample(range(k), k)
    moved = {
        key: value[rows][:, columns if key == "epsilon" else [0, *(1 + c for c in columns)]]
        for key, value in (inputs | {"policy": policy}).items()
    }
    assert torch.allclose(loss_of(name, moved.pop("policy"), moved), losses[rows])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PREFERENCES), st.integers(0, 10**6), st.floats(-50, 50))
def test_a_constant_in_the_log_ratios_of_a_prompt_has_no_say(name, seed, shift):
    policy, inputs = made(seed)
    if LOSSES[name].reference_free or name == "ipo":
        inputs["counts"] = torch.full_like(inputs["counts"], 4)
    assert torch.allclose(loss_of(name, policy + shift, inputs), loss_of(name, policy, inputs), atol=1e-7)


def test_metrics_have_the_sizes_of_groups_and_pairs():
    policy, inputs = made(7)
    for name in LOSSES:
        losses, metrics = called(name, policy, inputs, 0.7, **OPTIONS.get(name, {}))
        assert losses.shape == (4,)
        assert bool(metrics) == (name in PREFERENCES)
        if name not in PREFERENCES:
            continue
        assert metrics["reward_chosen"].shape == (4,)
        assert all(metrics[key].shape == (4, 3) for key in ("reward_rejected", "margin", "accuracy"))
    assert torch.allclose(
        simpo(policy, inputs["counts"], 0.7, 0.4)[1]["reward_chosen"], 0.7 * policy[:, 0] / inputs["counts"][:, 0]
    )


def test_the_term_of_fine_tuning_is_the_chosen_title_s_negative_log_likelihood():
    policy, _ = made(8)
    assert torch.equal(chosen_nll(policy), -policy[:, 0])


def test_going_on_with_fine_tuning_has_no_loss_of_its_own_and_no_strength():
    policy, _ = made(9)
    losses, metrics = called("sft", policy.requires_grad_(), {}, 0.7)
    assert losses.tolist() == [0.0] * 4
    assert metrics == {}
    losses.sum().backward()
    assert not policy.grad.any()
    alone = called("sft", policy[:, :1], {}, 0.7)[0] + chosen_nll(policy[:, :1])
    assert torch.equal(alone, chosen_nll(policy))


@pytest.mark.parametrize("name", LOSSES)
def test_a_function_takes_exactly_what_its_entry_says(name):
    loss = LOSSES[name]
    said = {"policy_logps", *loss.inputs, *loss.options, *(["beta"] if loss.preference else [])}
    assert set(inspect.signature(function_of(name)).parameters) == said


def test_a_loss_without_a_reference_refuses_one():
    policy, inputs = made()
    with pytest.raises(TypeError, match="unexpected keyword argument 'ref_logps'"):
        simpo(policy, counts=inputs["counts"], ref_logps=inputs["ref_logps"], beta=1.0, gamma=0.5)


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"inputs": ("ref_logp",)}, "no loss is given ref_logp .did you mean 'ref_logps'"),
        ({"inputs": ("epsilon",)}, "epsilon and targets are made with ref_logps, which it does not read"),
        ({"whole": True}, "the whole distribution comes with weights, which it does not read"),
    ],
)
def test_an_entry_that_cannot_be_fed_is_refused(faults, words):
    with pytest.raises(ValueError, match=f"my.module:loss: {words}"):
        LossEntry("mine", "my.module:loss", **faults)


def test_values_without_meaning_are_refused():
    policy, inputs = made()
    with pytest.raises(ValueError, match=r"every epsilon in \[0, 0.5\)"):
        robust(policy, inputs["ref_logps"], torch.full((4, 3), 0.5), 1.0)
    with pytest.raises(ValueError, match="0 < tau_min <= tau_max"):
        ada_dpo(policy, inputs["ref_logps"], 1.0, tau_min=2.0, tau_max=1.0, rho=-0.5)
    with pytest.raises(ValueError, match="of one shape"):
        dpo(policy, inputs["ref_logps"][:, :2], 1.0)
