"""Batches that follow from memory, and smaller ones where it did not suffice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rosepo.evaluation.candidates import free_answers
from rosepo.evaluation.candidates.free_answers import greedy_answers
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.titles.beam_search import Decoder
from rosepo.lm.titles.room import CPU_TOKENS, LEAST_TOKENS, MOST_TOKENS, Room, fitting, room_of, token_bytes
from rosepo.lm.titles.title_scores import reference_logps
from rosepo.utils.errors import StageError
from tests.helpers import tiny_builder, tiny_model

EOS = 2


def small_memory(model: Any, tokens: int) -> list[int]:
    """The model raises as a full GPU does for more tokens than this at once; returns the sizes it was asked for."""
    asked: list[int] = []

    def check(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        size = kwargs["input_ids"].numel()
        asked.append(size)
        if size > tokens:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} tokens")

    model.get_decoder().register_forward_pre_hook(check, with_kwargs=True)
    return asked


def answers(model: Any) -> list[np.ndarray]:
    builder = tiny_builder(30)
    histories = [list(range(start, start + 1 + start % 5)) for start in range(24)]
    prompts = [builder.prompt(history)[0] for history in histories]
    return list(Decoder(model, builder, beams=6).top_k(prompts, [np.array(one) for one in histories], 6))


def logps(model: Any) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 400, size).astype(np.int32) for size in random.integers(20, 60, 24)]
    titles = [[np.append(random.integers(3, 400, 3), EOS).astype(np.int32) for _ in range(4)] for _ in prompts]
    return reference_logps(LogpsModel(model), prompts, titles)


def written(model: Any) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 400, size) for size in random.integers(20, 60, 24)]
    return greedy_answers(model, prompts, EOS, 4)


@pytest.mark.parametrize("work", [answers, logps, written])
def test_out_of_memory_makes_smaller_batches_and_the_same_answers(
    work: Callable[[Any], list[np.ndarray]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(free_answers, "LEAST_TOKENS", CPU_TOKENS)  # 16,384, which these prompts do not fill
    expected = work(tiny_model())
    model = tiny_model()
    asked = small_memory(model, 600)
    for found, value in zip(work(model), expected, strict=True):
        np.testing.assert_allclose(found, value, atol=1e-5)
    assert max(asked) > 600 > sorted(asked)[len(asked) // 2]
    assert "out of memory on the GPU: batches of 512 tokens from here on" in capsys.readouterr().err


def test_who_asks_next_has_the_smaller_room() -> None:
    model = tiny_model()
    asked = small_memory(model, 600)
    logps(model)
    asked.clear()
    logps(model)
    assert max(asked) <= 600
    assert room_of(model) is Decoder(model, tiny_builder(30), 2).room


def test_no_room_for_the_smallest_batch_is_told_with_what_helps() -> None:
    model = tiny_model()
    small_memory(model, 0)
    with pytest.raises(StageError, match=r"no room for 256 tokens beside the model \(CUDA out of memory.*bfloat16"):
        logps(model)


def test_ranks_that_go_through_one_model_together_do_not_part() -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    room = Room(1000, fixed=True)
    with pytest.raises(torch.OutOfMemoryError):
        room.attempt(full)
    assert room.tokens == 1000


def test_room_follows_from_memory_and_the_models_shape() -> None:
    with torch.device("meta"):
        shape = LlamaConfig(
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=1000,
        )
        model = LlamaForCausalLM(shape).to(torch.bfloat16)
    # Keys and values of 32 layers, 8 heads of 128, in two bytes: 128 KiB a token, and as much again for a copy.
    assert 2**18 < token_bytes(model) < 1.6 * 2**18
    assert token_bytes(model.float()) == 2 * token_bytes(model.bfloat16())
    rooms = [fitting(free * 2**30, model) for free in (0, 1, 8, 60, 1000)]
    assert rooms == sorted(rooms)
    assert (rooms[0], rooms[-1]) == (LEAST_TOKENS, MOST_TOKENS)
    assert rooms[2] * token_bytes(model) < 4 * 2**30 < rooms[2] * token_bytes(model) * 1.4
