"""Free generation: what a language model writes after a prompt when nothing holds it to the catalogue.

Transformers' `generate` writes, greedily, until EOS or a limit beyond the longest title. The answers are kept as
rankings are: in part files that actors write and from which a later run goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rosepo.data.item_columns import INDEX, items_of
from rosepo.data.prompts import PromptBuilder
from rosepo.data.titles import normalised
from rosepo.evaluation.measured_examples import EXAMPLES_FILE, Batch, plan_parts
from rosepo.evaluation.rankers import Answer
from rosepo.evaluation.systems import Ranking

if TYPE_CHECKING:
    from rosepo.lm.model.model_folder import Recommender

ANSWERS_FOLDER = "answers"
LEAST_TOKENS = 2**13
"""Tokens in the model at once, also on a CPU: every step of `generate` has a price of its own, whatever its width."""
MARGIN = 8
"""Tokens beyond the longest title after which an answer without EOS is cut off: enough to see that it runs on."""


@torch.inference_mode()
def greedy_answers(
    model: Any, prompts: Sequence[np.ndarray], stop_id: int, limit: int, max_tokens: int | None = None
) -> list[np.ndarray]:
    """The likeliest next token again and again, until one ends the answer or `limit` tokens, after each prompt.

    Args:
        model: a causal LM (or PEFT model on one) of Transformers, in eval mode, on its device.
        prompts: N int arrays of token ids, none empty.
        stop_id: the token that ends an answer; no other one does, whatever the model's own settings say.
        limit: tokens of an answer at most, that one included.
        max_tokens: tokens in the model at once; bounds memory. None takes what the device has room for.

    Returns:
        N int64 arrays of the tokens written, the last among them where it ended the answer.
    """
    from transformers import GenerationConfig

    from rosepo.lm.rows.base_model import base_causal_lm
    from rosepo.lm.titles.room import Room, room_of

    causal_lm = base_causal_lm(model)
    room, device = Room(max_tokens or max(room_of(model).tokens, LEAST_TOKENS)), next(causal_lm.parameters()).device
    order = np.argsort([-len(prompt) for prompt in prompts], kind="stable")
    answers: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(prompts)
    # A model's own penalties, bad words or sampling would fill in what is unset here.
    kept, causal_lm.generation_config = causal_lm.generation_config, GenerationConfig()
    greedy = GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=limit, eos_token_id=stop_id,
                              pad_token_id=stop_id)  # fmt: skip

    def write(rows: np.ndarray) -> np.ndarray:
        ids, mask = _left_padded([prompts[row] for row in rows], stop_id)
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        written: torch.Tensor = causal_lm.generate(**inputs, generation_config=greedy)
        return written[:, ids.shape[1] :].cpu().numpy()

    try:
        for rows, written in room.in_batches(order, lambda first: len(prompts[first]) + limit, write):
            for row, tokens in zip(rows, written, strict=True):
                ends = np.flatnonzero(tokens == stop_id)
                answers[row] = tokens[: ends[0] + 1] if len(ends) else tokens
    finally:
        causal_lm.generation_config = kept
    return answers


def _left_padded(prompts: Sequence[np.ndarray], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask int64 [B, S], prompts at the right end."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.from_numpy(np.asarray(prompt, dtype=np.int64))
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def answer_limit(model: Any, builder: PromptBuilder) -> int:
    """Tokens of an answer at most: the longest completion's and `MARGIN`, as far as the model has positions."""
    from rosepo.lm.model.policy import max_positions

    positions = max_positions(model.config)
    spare = MARGIN if positions is None else max(0, min(MARGIN, positions - builder.max_length))
    return builder.longest_completion + (spare if len(builder.end) else 0)


class TitleMatcher:
    """Which title of the catalogue an answer is: by its tokens, or by its text after the catalogue's normalisation.

    No two titles of a catalogue are equal after normalisation or have the same tokens. The tokens count too because a
    tokenizer may not give back every character of a title.
    """

    def __init__(self, builder: PromptBuilder, titles: Sequence[str]) -> None:
        self._by_tokens = {builder.completion(item).astype(np.int32).tobytes(): item for item in range(len(builder))}
        self._by_text = {normalised(title): item for item, title in enumerate(titles)}

    def first(self, tokens: np.ndarray) -> np.ndarray:
        """The title that an answer begins with, where nothing ends titles; the answer where it begins with none."""
        ends = (end for end in range(1, len(tokens) + 1) if tokens[:end].astype(np.int32).tobytes() in self._by_tokens)
        return tokens[: next(ends, len(tokens))]

    def __call__(self, tokens: np.ndarray, text: str) -> int:
        """The item index; -1 for no title. `tokens` with the EOS, where there was one."""
        item = self._by_tokens.get(np.asarray(tokens, dtype=np.int32).tobytes())
        return self._by_text.get(normalised(text), -1) if item is None else item


def writing(recommender: Recommender, beams: int) -> Answer:
    """A model's free answers to a batch: example_id, user_id, target, answer (text), ended (by EOS), item: null for
    what is no title of the catalogue; target and item are item indexes. It searches nothing: `beams` is not used."""
    builder, tokenizer = recommender.builder, recommender.tokenizer
    matcher = TitleMatcher(builder, recommender.catalogue.titles)
    limit = answer_limit(recommender.model, builder)

    def answer(batch: Batch) -> pa.Table:
        newest = [history[-recommender.max_history :] for history in batch.histories]
        prompts, _ = builder.prompts(newest, batch.candidates)
        answers = greedy_answers(recommender.model, prompts, builder.stop_id, limit)
        if not len(builder.end):
            answers = [matcher.first(tokens) for tokens in answers]
        texts = [_text(tokenizer, tokens) for tokens in answers]
        items = np.array([matcher(*found) for found in zip(answers, texts, strict=True)], dtype=np.int64)
        return pa.table(
            {
                "example_id": pa.array(batch.example_ids, pa.string()),
                "user_id": batch.users,
                "target": pa.array(batch.targets, INDEX),
                "answer": pa.array(texts, pa.string()),
                "ended": pa.array([not len(builder.end) or builder.stop_id in tokens for tokens in answers]),
                "item": pa.array(items, INDEX, mask=items < 0),
            }
        )

    return answer


def _text(tokenizer: Any, tokens: np.ndarray) -> str:
    text: str = tokenizer.decode(tokens.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def freely(ranked: Ranking, examples_name: str = EXAMPLES_FILE) -> Ranking:
    """Beside the rankings of an evaluation, free answers to its examples or to those of another file in its folder."""
    return replace(
        ranked,
        parts=plan_parts(ranked.out / examples_name),
        examples_name=examples_name,
        folder_name=ANSWERS_FOLDER,
        answering=writing,
        doing=", freely",
        made_by={"margin": MARGIN, "count": ranked.config.evaluate.free_generation},
    )


def read_answers(path: Path) -> tuple[list[str], np.ndarray]:
    """Texts and item indexes int64 [n] (-1: no title) of a part."""
    table = pq.read_table(path, columns=["answer", "item"], partitioning=None)
    return table["answer"].to_pylist(), items_of(table, "item")
