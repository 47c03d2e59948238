from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.oracle.crossfit import Oracle
from rosepo.oracle.sasrec import Dropout, SASRec, SASRecConfig, pad_histories
from rosepo.utils.errors import UserError

IDS = np.arange(100, 112)


def _model(seed: int = 0, **changes: int) -> SASRec:
    torch.manual_seed(seed)
    return SASRec(SASRecConfig(n_items=12, max_length=8, hidden_size=16, **changes)).eval()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, 11), max_size=12), min_size=1, max_size=5))
def test_padding_and_neighbours_do_not_change_scores(histories: list[list[int]]) -> None:
    oracle = Oracle(_model(), tau=1.0)
    arrays = [np.array(history, dtype=np.int64) for history in histories]
    together = oracle.score_all(arrays)
    alone = np.concatenate([oracle.score_all([array]) for array in arrays])
    assert np.allclose(together, alone, atol=1e-5)


def test_a_position_says_what_the_history_cut_there_says() -> None:
    model = _model()
    history = np.array([3, 1, 4, 1, 5])
    with torch.inference_mode():
        every = model.logits(model(pad_histories([history], 8)))[0]
        for length in range(1, 6):
            cut = model.scores(pad_histories([history[:length]], 8))[0]
            assert torch.allclose(every[length - 1], cut, atol=1e-5)


def test_long_histories_keep_their_newest_items() -> None:
    assert pad_histories([np.arange(5), np.array([7])], 3).tolist() == [[3, 4, 5], [8, 0, 0]]
    assert pad_histories([np.empty(0, dtype=int)], 3).tolist() == [[0]]


def test_scores_of_chosen_items_are_those_among_all() -> None:
    oracle = Oracle(_model(), tau=1.0)
    histories = [np.array([1, 2]), np.array([5])]
    items = np.array([[0, 11, 3], [7, 7, 2]])
    chosen = oracle.score_items(histories, items)
    assert chosen.dtype == np.float32
    assert np.allclose(chosen, np.take_along_axis(oracle.score_all(histories), items, axis=1), atol=1e-5)


def test_a_saved_oracle_scores_alike_and_knows_its_catalogue(tmp_path: Path) -> None:
    model = _model()
    model.save(tmp_path, IDS, tau=1.7)
    loaded = Oracle.load(tmp_path, IDS)
    assert loaded.tau == 1.7
    histories = [np.array([1, 2, 3])]
    assert np.array_equal(loaded.score_all(histories), Oracle(model, 1.0).score_all(histories))
    with pytest.raises(UserError, match="another catalogue"):
        Oracle.load(tmp_path, IDS[::-1])
    with pytest.raises(UserError, match="not an oracle folder"):
        Oracle.load(tmp_path / "none")


def test_it_learns_a_sequence_that_has_a_rule() -> None:
    model = _model(dropout=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sequences = [(np.arange(7) + start) % 12 for start in range(12)]
    padded = pad_histories(sequences, 8)
    for _ in range(60):
        logits = model.logits(model(padded[:, :-1]))
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 12), padded[:, 1:].reshape(-1) - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    best = Oracle(model, 1.0).score_all([np.array([start, (start + 1) % 12]) for start in range(12)]).argmax(1)
    assert best.tolist() == [(start + 2) % 12 for start in range(12)]


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    dropout = Dropout(rate)
    values = dropout(torch.ones(500, 401))
    assert abs(float((values == 0).float().mean()) - rate) < 0.005
    assert abs(float(values.mean()) - 1.0) < 0.01
    assert torch.equal(dropout.eval()(torch.ones(3)), torch.ones(3))
