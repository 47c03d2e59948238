"""Chances of every title in two bytes each."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from rosepo.utils.log_shares import LEAST, from_codes, to_codes


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 65_000), st.floats(0.0, 6.0), st.integers(0, 2**31))
def test_flat_and_steep_distributions_keep_their_shares_to_a_twentieth_of_a_percent(n, spread, seed):
    logs = log_softmax(np.random.default_rng(seed).normal(size=n) * spread)
    read = from_codes(to_codes(logs))
    inside = logs >= LEAST
    assert np.allclose(read[inside], np.exp(logs[inside]), rtol=5e-4, atol=0.0)
    assert (read > 0).all()


def test_what_cannot_be_drawn_has_no_share_and_what_hardly_can_has_some():
    read = from_codes(to_codes(np.array([-np.inf, -1e6, LEAST, 0.0])))
    assert read.tolist() == [0.0, np.exp(LEAST), np.exp(LEAST), 1.0]
