from __future__ import annotations

import pytest
import torch

from rosepo.lm.rows.target_logps import TargetLogps


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(6, 11, generator=generator, dtype=torch.float64)
    source = torch.tensor([0, 1, 1, 3, 5, 5, 5])  # positions may predict several targets, or none
    return logits.to(dtype), source, torch.tensor([3, 0, 10, 4, 7, 7, 1])


def test_values_and_gradients_are_those_of_log_softmax():
    logits, source, targets = inputs(torch.float64)
    one, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    weights = torch.linspace(-1, 2, len(source), dtype=torch.float64)
    found = TargetLogps.apply(one, source, targets)
    expected = other.log_softmax(dim=-1)[source, targets]
    assert torch.allclose(found, expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(one.grad, other.grad)
    assert torch.equal(logits, inputs(torch.float64)[0])


def test_gradients_agree_with_finite_differences():
    logits, source, targets = inputs(torch.float64)
    # Backward consumes what forward kept, so every difference is taken on a graph of its own.
    logits.requires_grad_()
    total = TargetLogps.apply(logits, source, targets).sum()
    total.backward()
    for place in ((0, 3), (1, 5), (2, 2), (5, 7)):
        moved = logits.detach().clone()
        moved[place] += 1e-6
        slope = (TargetLogps.apply(moved, source, targets).sum() - total.detach()) / 1e-6
        assert slope.item() == pytest.approx(logits.grad[place].item(), abs=1e-4)


def test_half_precision_is_normalised_in_float32():
    logits, source, targets = inputs(torch.bfloat16)
    found = TargetLogps.apply(logits, source, targets)
    assert found.dtype == torch.float32
    assert torch.allclose(found, logits.float().log_softmax(dim=-1)[source, targets], atol=1e-5)


def test_large_logits_do_not_overflow():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    found = TargetLogps.apply(logits, torch.tensor([0, 0]), torch.tensor([0, 1]))
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(logits.grad).all()
