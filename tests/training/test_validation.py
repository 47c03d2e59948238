"""Which validation is the best one, and when there has been none for too long."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosepo.training.validation import Best

LOOKS = st.lists(st.sampled_from([0.0, 0.0799, 0.08, 0.0804, 0.081, 0.09, 0.2, float("nan")]), min_size=1, max_size=12)


def until_exhausted(best: Best, looks: list[float]) -> int:
    """How many looks a training takes."""
    for number, value in enumerate(looks, start=1):
        best.update(number, {"ndcg@10": value, "hr@10": 0.5})
        if best.exhausted:
            return number
    return len(looks)


@given(LOOKS)
def test_the_best_look_is_kept_however_little_it_gains(looks: list[float]) -> None:
    best = Best("ndcg@10", patience=None, min_gain=0.5)
    until_exhausted(best, looks)
    known = [value for value in looks if value == value]
    assert best.step == (looks.index(max(known)) + 1 if known else None)


@pytest.mark.parametrize(
    ("min_gain", "looks", "ends"),
    [
        (0.0, [0.08, 0.0801, 0.0802, 0.0803, 0.0804], 5),
        (0.01, [0.08, 0.0801, 0.0802, 0.0803, 0.0804], 3),
        (0.01, [0.08, 0.0805, 0.0809, 0.08], 4),  # little by little it gained enough
        (0.01, [0.0, 0.001, 0.0, 0.0], 4),
        (0.01, [float("nan"), 0.08, 0.08, 0.08], 4),
    ],
)
def test_patience_waits_for_a_gain_of_some_share(min_gain: float, looks: list[float], ends: int) -> None:
    assert until_exhausted(Best("ndcg@10", patience=2, min_gain=min_gain), looks) == ends


def test_a_loss_gains_by_falling() -> None:
    best = Best("validation_loss", patience=1, min_gain=0.1)
    assert [best.update(step, {"validation_loss": value}) for step, value in enumerate([7.0, 6.2])] == [True, True]
    assert not best.exhausted
    assert best.update(2, {"validation_loss": 6.0})
    assert best.exhausted


@given(LOOKS, st.integers(0, 12), st.sampled_from([0.0, 0.01]))
def test_a_resumed_training_ends_where_it_would_have(looks: list[float], kept: int, min_gain: float) -> None:
    whole, first, second = (Best("ndcg@10", 3, min_gain) for _ in range(3))
    done = until_exhausted(first, looks[:kept]) if kept else 0
    second.restore(json.loads(json.dumps(first.facts())))
    rest = 0 if first.exhausted else until_exhausted(second, looks[done:])
    assert done + rest == until_exhausted(whole, looks)
