"""Freely generated answers become titles exactly, and what is missing is a counted fallback."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.data.random import Draws
from rosepo.lm.rows.plain_rows import plain_logps
from rosepo.lm.titles.beam_search import Decoder
from rosepo.lm.titles.title_match import completions_index, match_titles
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.sampling.strategies.mixture import sample_rejected
from rosepo.sampling.strategies.picking import pick_from_top
from tests.helpers import examples_of, tiny_builder, tiny_model

N_ITEMS = 12
BUILDER = tiny_builder(N_ITEMS)
COMPLETIONS = [BUILDER.completion(item).tolist() for item in range(N_ITEMS)]
INDEX = completions_index(BUILDER)

_title = st.sampled_from(COMPLETIONS)
_answer = st.one_of(
    _title,
    _title.map(lambda ids: ids[:-1]),  # cut off before its EOS
    _title.map(lambda ids: [*ids, ids[-1]]),
    st.tuples(_title, _title).map(lambda pair: [*pair[0][:-1], *pair[1]]),
    st.lists(st.integers(0, 399), max_size=6),
)
# Few values, so that titles tie; also ones that are only equal as float32.
_logp = st.sampled_from([-0.5, -1.0, -1.0 - 1e-12, -7.25, -30.0])
_row = st.tuples(st.lists(st.tuples(_answer, _logp), max_size=25), st.lists(st.integers(0, N_ITEMS - 1), max_size=8))


def slow_match(answers: list[tuple[list[int], float]], excluded: list[int]) -> tuple[list[tuple[float, int]], int]:
    """(-score, item) of all titles in order, and how many answers are none: every title against every answer."""
    found = []
    for item, completion in enumerate(COMPLETIONS):
        scores = [np.float32(logp) for tokens, logp in answers if tokens == completion]
        if scores and item not in excluded:
            found.append((-float(max(scores)), item))
    return sorted(found), sum(tokens not in COMPLETIONS for tokens, _ in answers)


@settings(deadline=None, max_examples=150)
@given(rows=st.lists(_row, max_size=4), k=st.integers(1, 15))
def test_matching_equals_a_slow_loop_over_all_titles(
    rows: list[tuple[list[tuple[list[int], float]], list[int]]], k: int
) -> None:
    items, scores, unknown = match_titles(
        [[tokens for tokens, _ in answers] for answers, _ in rows],
        [[logp for _, logp in answers] for answers, _ in rows],
        INDEX,
        [np.array(excluded, dtype=np.int64) for _, excluded in rows],
        k,
    )
    assert items.shape == scores.shape == (len(rows), k)
    assert (items.dtype, scores.dtype) == (np.int64, np.float32)
    expected = [slow_match(*row) for row in rows]
    assert unknown == sum(strays for _, strays in expected)
    for row, (found, _) in enumerate(expected):
        filled = len(found[:k])
        assert items[row].tolist() == [item for _, item in found[:k]] + [-1] * (k - filled)
        assert scores[row].tolist() == [-score for score, _ in found[:k]] + [-np.inf] * (k - filled)


def test_a_policy_that_wrote_every_title_is_ranked_as_the_constrained_search_ranks() -> None:
    model, histories = tiny_model(), [np.array([1]), np.array([2, 3, 4])]
    prompts = [BUILDER.prompt(history)[0] for history in histories]
    order = np.random.default_rng(0).permutation(N_ITEMS)
    generated = [[COMPLETIONS[item] for item in order] for _ in prompts]
    with torch.inference_mode():
        logps = [
            plain_logps(model, [prompt] * N_ITEMS, [np.array(ids) for ids in row])[0].tolist()
            for prompt, row in zip(prompts, generated)
        ]
    items, scores, unknown = match_titles(generated, logps, INDEX, histories, 5)
    best, best_scores = Decoder(model, BUILDER, beams=N_ITEMS).top_k(prompts, histories, 5)
    assert unknown == 0
    assert items.tolist() == best.tolist()
    np.testing.assert_allclose(scores, best_scores, atol=1e-4)


def test_titles_that_were_not_written_are_counted_as_fallbacks() -> None:
    examples = examples_of(["a", "b"], [np.array([0]), np.array([5])], np.array([1, 6]), N_ITEMS)
    written = [[COMPLETIONS[item] for item in (0, 1, 7, 7)], [[3], COMPLETIONS[8][:-1]]]
    logps = [[-1.0, -2.0, -3.0, -3.0], [-1.0, -2.0]]

    def strategy(part: Examples, count: int, draws: Draws) -> np.ndarray:
        ranked, _, unknown = match_titles(written, logps, INDEX, part.excluded.lists(), count)
        assert unknown == 2
        return pick_from_top(ranked, 1, count, draws)

    rejected = sample_rejected(examples, {"self_hard": strategy}, {"self_hard": 1.0}, 2, seed=3)
    assert rejected.items[0, 0] == 7
    assert rejected.fallback.tolist() == [[False, True], [True, True]]
    assert (rejected.items >= 0).all()
