"""The reference pass against one row a completion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rosepo.sampling.reference import reference_logps
from rosepo.training.logps import LogpsModel, plain_logps
from tests.helpers import tiny_builder, tiny_model


@pytest.mark.parametrize("max_tokens", [1, 200, None])
def test_groups_score_as_rows_of_their_own(max_tokens: int | None) -> None:
    builder, model = tiny_builder(), tiny_model()
    groups = [([1, 2, 3], [4, 5, 6]), ([7], [8]), (list(range(12)), [20, 13, 29, 14])]
    prompts = [builder.prompt(history)[0] for history, _ in groups]
    completions = [[builder.completion(item) for item in items] for _, items in groups]
    found = reference_logps(LogpsModel(model), prompts, completions, max_tokens)
    for prompt, ids, logps in zip(prompts, completions, found, strict=True):
        with torch.inference_mode():
            expected = plain_logps(model, [prompt] * len(ids), ids)[0].numpy()
        assert logps.dtype == np.float32
        np.testing.assert_allclose(logps, expected, atol=1e-4)


def test_no_groups_take_no_time() -> None:
    assert reference_logps(LogpsModel(tiny_model()), [], []) == []
