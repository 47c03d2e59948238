"""A model behind a server gives the log-probabilities, beams and rankings that it gives in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.serving.served_model import MOST_TOKENS, ServedModel
from rosepo.lm.serving.served_rows import served_logps
from rosepo.lm.titles.beam_search import Decoder
from rosepo.lm.titles.title_scores import reference_logps
from rosepo.utils.errors import StageError, UserError
from tests.helpers import tiny_builder, tiny_model
from tests.lm.serving.model_server import ModelServer

HISTORIES = [np.array(history, dtype=np.int64) for history in ([3], [0, 7, 12, 5], [], [1, 2])]


@contextmanager
def serving(model: torch.nn.Module, most: int = MOST_TOKENS) -> Iterator[tuple[str, ModelServer]]:
    server = ModelServer(model, "policy", "/models/policy", most)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("whole", [False, True], ids=["spelled", "a token a title"])
@pytest.mark.parametrize("beams", [4, 300])
def test_a_search_over_http_finds_the_titles_and_scores_of_a_search_in_this_process(whole: bool, beams: int) -> None:
    """Two hundred titles of a token each are more than one question may ask about."""
    builder = tiny_builder(200, vocab_size=600, whole=whole)
    model = tiny_model(vocab_size=600)
    prompts = [builder.prompt(history)[0] for history in HISTORIES]
    expected = Decoder(model, builder, beams).top_k(prompts, HISTORIES, 4)
    with serving(model) as (address, _):
        found = Decoder(ServedModel.attached(address, "policy"), builder, beams).top_k(prompts, HISTORIES, 4)
    assert found[0].tolist() == expected[0].tolist()
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4)


def test_groups_have_the_log_probabilities_of_the_reference_pass() -> None:
    builder, model = tiny_builder(), tiny_model()
    prompts = [builder.prompt(history)[0] for history in HISTORIES]
    completions = [[builder.completion(item) for item in range(row, row + 3)] for row in range(len(prompts))]
    with serving(model) as (address, _):
        found = served_logps(ServedModel.attached(address, "policy"), prompts, completions)
    for ours, expected in zip(found, reference_logps(LogpsModel(model), prompts, completions), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_any_number_of_tokens_is_asked_about_in_their_order() -> None:
    model = tiny_model()
    prompts = [np.array([1, 5, 9]), np.array([1]), np.array([1, 7])]
    tokens = [np.arange(399, -1, -1), np.zeros(0, dtype=np.int64), np.arange(MOST_TOKENS)]
    with torch.inference_mode():
        rows = [model(torch.from_numpy(prompt)[None]).logits[0, -1].log_softmax(-1).numpy() for prompt in prompts]
    with serving(model) as (address, server):
        found = ServedModel(address, "policy").next_logps(prompts, tokens)
        assert server.questions == 4 + 0 + 1
    for ours, row, asked in zip(found, rows, tokens, strict=True):
        np.testing.assert_allclose(ours, row[asked], atol=1e-4)


def test_a_server_of_another_model_or_of_too_narrow_limits_is_refused_with_what_to_do() -> None:
    with serving(tiny_model(), most=20) as (address, _):
        with pytest.raises(UserError, match=r"serves policy, and /models/other is asked for"):
            ServedModel.attached(address, "/models/other")
        with pytest.raises(UserError, match=r"greater than max allowed: start the server with .*--max-logprobs 128"):
            ServedModel.attached(address, "/models/policy")
    with pytest.raises(UserError, match=r"nothing answers at http://127.0.0.1:9: start `vllm serve x "):
        ServedModel.attached("http://127.0.0.1:9", "x")


def test_a_server_that_goes_away_ends_the_search_in_one_sentence() -> None:
    with serving(tiny_model()) as (address, _):
        model = ServedModel.attached(address, "policy")
    with pytest.raises(StageError, match=f"^the vLLM server at {address} does not answer: "):
        model.next_logps([np.array([1])], [np.array([2])])
