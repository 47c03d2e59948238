"""Rankings of an example's own candidates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rosepo.config import TemplateConfig
from rosepo.data.prompts import PromptBuilder
from rosepo.evaluation.baselines import top_k
from rosepo.evaluation.rankers import restricted
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.rows.plain_rows import plain_logps
from rosepo.lm.titles.candidate_scores import best_candidates, candidate_logps
from tests.helpers import tiny_builder, tiny_model


def listing_builder() -> PromptBuilder:
    return tiny_builder(template=TemplateConfig(candidates=True))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_candidates_are_scored_as_one_row_a_completion_would_be(family: str) -> None:
    builder, model = listing_builder(), tiny_model(family)
    candidates = np.array([[3, 9, 4, 20], [9, 3, 1, 0]])
    prompts, _ = builder.prompts([np.array([5, 6]), np.array([5, 6, 7, 8])], candidates)
    found = candidate_logps(LogpsModel(model), builder, prompts, candidates)
    for row, items in enumerate(candidates):
        with torch.inference_mode():
            alone = plain_logps(model, [prompts[row]] * 4, [builder.completion(int(item)) for item in items])[0]
        np.testing.assert_allclose(found[row], alone.numpy(), atol=1e-4)
    with torch.inference_mode():
        unlisted = plain_logps(model, [tiny_builder().prompt([5, 6])[0]], [builder.completion(3)])[0]
    assert abs(float(unlisted[0]) - found[0, 0]) > 1e-2  # the list is read


def test_candidates_are_ranked_by_score_then_item_and_never_outside_what_is_allowed() -> None:
    candidates = np.array([[7, 3, 5, 1], [2, 8, 4, 6]])
    scores = np.array([[-1.0, -1.0, -0.5, -9.0], [-3.0, -2.0, -1.0, -4.0]], dtype=np.float32)
    allowed = np.array([[True, True, False, True], [True] * 4])
    items, best = best_candidates(candidates, scores, allowed, 5)
    assert items.tolist() == [[3, 7, 1, -1, -1], [4, 8, 2, 6, -1]]
    assert best[0].tolist() == [-1.0, -1.0, -9.0, -np.inf, -np.inf]
    assert best_candidates(candidates, scores, allowed, 2)[0].tolist() == [[3, 7], [4, 8]]


def test_a_score_of_the_catalogue_restricted_to_candidates_ranks_them_alone() -> None:
    scores = np.array([[9.0, 1.0, 3.0, 3.0, 8.0]])
    items, _ = top_k(restricted(scores, np.array([[3, 1, 2]])), [np.array([0])], 4)
    assert items.tolist() == [[2, 3, 1, -1]]
    assert restricted(scores, None) is scores
