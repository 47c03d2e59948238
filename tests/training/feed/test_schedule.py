from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.training.feed.schedule import Schedule

tables = st.fixed_dictionaries(
    {
        "n_rows": st.integers(1, 300),
        "batch_size": st.integers(1, 40),
        "seed": st.integers(0, 2**32 - 1),
        "epochs": st.floats(0.01, 4.0),
        "window": st.integers(1, 64),
    }
)


@settings(max_examples=60, deadline=None)
@given(tables)
def test_every_whole_epoch_takes_every_row_once(table):
    schedule = Schedule(**table)
    for epoch in range(schedule.steps // schedule.steps_per_epoch):
        first = epoch * schedule.steps_per_epoch
        rows = np.concatenate([schedule.indices(first + batch) for batch in range(schedule.steps_per_epoch)])
        assert rows.dtype == np.int64
        assert np.array_equal(np.sort(rows), np.arange(table["n_rows"]))


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(1, 5), st.integers(1, 9))
def test_ranks_share_a_step_without_loss_and_in_equally_many_micro_batches(table, world, micro):
    schedule = Schedule(**table)
    for step in range(min(schedule.steps, 12)):
        shares = [schedule.share(step, rank, world, micro) for rank in range(world)]
        assert {len(share) for share in shares} == {schedule.micro_batches(world, micro)}
        assert all(len(rows) <= micro for share in shares for rows in share)
        union = np.concatenate([rows for share in shares for rows in share])
        assert np.array_equal(np.sort(union), np.sort(schedule.indices(step)))


@settings(max_examples=30, deadline=None)
@given(tables, st.data())
def test_a_step_is_the_same_in_any_order_of_asking(table, data):
    asked, fresh = Schedule(**table), Schedule(**table)
    steps = data.draw(st.lists(st.integers(0, asked.steps - 1), min_size=1, max_size=10))
    for step in steps:
        asked.indices(step)
    assert np.array_equal(asked.indices(steps[0]), Schedule(**table).indices(steps[0]))
    assert np.array_equal(asked.indices(steps[-1]), fresh.indices(steps[-1]))


def test_epochs_and_seeds_are_shuffled_differently():
    schedule, other = Schedule(1000, 1000, seed=0, epochs=2), Schedule(1000, 1000, seed=1)
    assert not np.array_equal(schedule.indices(0), schedule.indices(1))
    assert not np.array_equal(schedule.indices(0), other.indices(0))


def test_a_billion_rows_need_no_permutation_of_the_table():
    schedule = Schedule(10**9, 512, seed=3, epochs=1)
    rows = schedule.indices(schedule.steps // 2)
    assert len(rows) == 512
    assert len(set(rows.tolist())) == 512
    assert rows.max() < 10**9


@pytest.mark.parametrize(("epochs", "steps"), [(0.001, 1), (0.5, 2), (1.0, 4), (2.5, 10), (0.25, 1)])
def test_fractions_of_an_epoch_end_at_a_whole_batch(epochs, steps):
    assert Schedule(100, 25, seed=0, epochs=epochs).steps == steps


def test_a_step_past_the_end_is_an_error():
    with pytest.raises(IndexError, match="outside"):
        Schedule(10, 5, seed=0).indices(2)
