"""Epsilon from scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rosepo.objectives.smoothing import clamp_epsilon
from rosepo.oracle.epsilon import CEILING, calibrate, epsilon


@given(arrays(np.float64, (4, 3), elements=st.floats(-1e6, 1e6)), st.floats(0.01, 100))
def test_epsilon_is_finite_and_below_one_half(scores: np.ndarray, tau: float) -> None:
    smoothing = epsilon(calibrate(scores, tau))
    assert smoothing.dtype == np.float32
    assert smoothing.shape == (4, 2)
    assert np.isfinite(smoothing).all()
    assert (smoothing >= 0).all()
    assert (smoothing <= CEILING).all()


@given(arrays(np.float32, (4, 3), elements=st.floats(-60, 60, width=32)), st.floats(0.01, CEILING))
def test_epsilon_stays_under_its_limit_and_falls_with_the_margin(scores: np.ndarray, limit: float) -> None:
    smoothing = epsilon(scores, limit)
    assert (smoothing <= limit).all()
    assert (epsilon(scores + np.float32([1, 0, 0]), limit) <= smoothing).all()


def test_training_clamps_the_tables_epsilon_to_what_its_own_limit_would_have_given() -> None:
    scores = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    stored = torch.from_numpy(epsilon(scores))
    np.testing.assert_allclose(clamp_epsilon(stored, 0.4).numpy(), epsilon(scores, 0.4), atol=1e-6)


def test_epsilon_is_the_chance_that_the_order_is_wrong() -> None:
    assert epsilon(np.array([[np.log(9.0), 0.0]])).item() == pytest.approx(0.1)
    assert epsilon(np.array([[0.0, 5.0]])).item() == pytest.approx(CEILING, abs=1e-6)
