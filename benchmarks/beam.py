"""Row `self_hard.beam`: the constrained search in prompts a second against Transformers' constrained `generate`.

Both look for the best `TOP` of 9,000 titles with `BEAMS` beams in the same model, with the same prompts in the same
batches. The rival is `generate` with a `prefix_allowed_tokens_fn` that walks a trie of dictionaries, with scores that
are sums of log-probabilities (`length_penalty=0`), so that both rank by the same number and stop by the same rule: when
no open beam can beat the last answer. The rival excludes nothing; rosepo leaves out history and target.

Weights are random, which would favour the shortest titles and end a search early: so all titles are of four words and
a year, and both searches take every step to the end of a title.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

from benchmarks import synthetic
from benchmarks.common import Row, rate_row, side_by_side
from rosepo.data.prompts import PromptBuilder
from rosepo.lm.model.scratch import PAD, SPECIAL_TOKENS
from rosepo.lm.titles.beam_search import Decoder

TITLES, BEAMS, TOP = 9_000, 20, 10
PROMPTS, QUICK_PROMPTS = 12, 2
HISTORY = (25, 51)
"""Titles in a prompt: 200 to 400 tokens."""
AGREE, TOLERANCE = 0.75, 1e-3
"""Share of the prompts for which both must give the same titles; the two searches part where a beam is full. Scores of
titles that both give must always agree."""

Found = list[dict[int, float]]
"""Scores of the items found, an entry a prompt."""


def beam(quick: bool) -> Row:
    """Raises ValueError where the answers disagree on a search without exclusions."""
    builder = synthetic.builder(TITLES)
    vocabulary = int(max(builder.completion(item).max() for item in range(TITLES))) + 1
    model = synthetic.model(vocabulary)
    random = np.random.default_rng(1)
    histories = [random.choice(TITLES, random.integers(*HISTORY), replace=False) for _ in range(PROMPTS)]
    histories = histories[: QUICK_PROMPTS if quick else PROMPTS]
    prompts = [builder.prompt(history)[0] for history in histories]
    excluded = [np.append(history, random.integers(TITLES)) for history in histories]
    decoder, rival = Decoder(model, builder, beams=BEAMS), Generate(model, builder)
    longest_first = np.argsort([-len(prompt) for prompt in prompts], kind="stable")
    batches = decoder._batches(prompts, longest_first)

    def generate() -> Found:
        found: Found = [{} for _ in prompts]
        for rows in batches:
            for row, answers in zip(rows, rival([prompts[row] for row in rows]), strict=True):
                found[row] = answers
        return found

    none = [np.zeros(0, dtype=np.int64)] * len(prompts)
    same = _agreement(decoder.top_k(prompts, none, TOP), generate())
    taken = side_by_side(lambda: decoder.top_k(prompts, excluded, TOP), generate, quick, warm_up=False)
    note = f"{len(prompts)} prompts of {np.mean([len(prompt) for prompt in prompts]):.0f} tokens, {BEAMS} beams, "
    note += f"{TITLES} titles; same answers for {same:.0%} of the prompts"
    return rate_row("self_hard.beam", "prompts/s", "transformers generate", len(prompts), taken, note)


class Generate:
    """Transformers' beam search over the titles of a catalogue."""

    def __init__(self, model: LlamaForCausalLM, builder: PromptBuilder) -> None:
        self.model, self.eos_id = model, builder.eos_id
        self.depth = builder.longest_completion
        self.trie: dict[int, Any] = {}
        self.item_of: dict[tuple[int, ...], int] = {}
        for item in range(len(builder)):
            tokens = tuple(builder.completion(item).tolist())
            self.item_of[tokens] = item
            node = self.trie
            for token in tokens:
                node = node.setdefault(token, {})

    def __call__(self, prompts: list[np.ndarray]) -> Found:
        """The best `TOP` titles of each prompt, all in one batch."""
        width, pad = max(map(len, prompts)), SPECIAL_TOKENS.index(PAD)
        ids = torch.full((len(prompts), width), pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.from_numpy(prompt)
            mask[row, width - len(prompt) :] = 1
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            prefix_allowed_tokens_fn=self._allowed(width),
            num_beams=BEAMS,
            num_return_sequences=TOP,
            max_new_tokens=self.depth,
            do_sample=False,
            length_penalty=0.0,
            early_stopping=False,
            eos_token_id=self.eos_id,
            pad_token_id=pad,
            return_dict_in_generate=True,
            output_scores=True,
        )
        found: Found = [{} for _ in prompts]
        for place, (tokens, score) in enumerate(
            zip(output.sequences[:, width:].tolist(), output.sequences_scores.tolist(), strict=True)
        ):
            title = tuple(tokens[: tokens.index(self.eos_id) + 1])
            found[place // TOP][self.item_of[title]] = score
        return found

    def _allowed(self, width: int) -> Callable[[int, torch.Tensor], list[int]]:
        known: dict[tuple[int, ...], list[int]] = {}

        def allowed(_: int, sequence: torch.Tensor) -> list[int]:
            key = tuple(sequence[width:].tolist())
            if key not in known:
                node: dict[int, Any] | None = self.trie
                for token in key:
                    node = None if node is None else node.get(token)
                # Beams that have ended, and those that fill up an example with fewer than BEAMS, go nowhere.
                known[key] = list(node) if node else [self.eos_id]
            return known[key]

        return allowed


def _agreement(ours: tuple[np.ndarray, np.ndarray], theirs: Found) -> float:
    """Share of the prompts with the same items in the answer."""
    same = 0
    for items, scores, found in zip(*ours, theirs, strict=True):
        both = [(score, found[item]) for item, score in zip(items.tolist(), scores, strict=True) if item in found]
        apart = max((abs(one - other) for one, other in both), default=0.0)
        if apart > TOLERANCE:
            raise ValueError(f"self_hard.beam: scores of the same titles differ by {apart:.1e}, more than {TOLERANCE}")
        same += set(items.tolist()) == found.keys()
    if same < AGREE * len(theirs):
        raise ValueError(
            f"self_hard.beam: {same} of {len(theirs)} prompts have the same answers, fewer than {AGREE:.0%}"
        )
    return same / len(theirs)
