"""Rows `reference.k1` and `reference.k7`: the reference pass in pairs a second against one row a completion.

The rival is the pass that preference trainers make: every prompt with its completion is a right-padded row of the
model's own forward, with its mask and the logits of all positions (`plain_logps`, which rosepo itself falls back to).
The note has the ratio to a leaner one too: no mask, no EOS fed, and the output layer on the states alone that predict a
completion's tokens. Both sort rows by length and keep the same token budget a batch; prompts of 400 tokens and titles
of 8 (EOS included) leave them next to no padding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from transformers import LlamaForCausalLM

from benchmarks import synthetic
from benchmarks.common import Row, rate_row, side_by_side
from rosepo.lm.model.scratch import EOS, SPECIAL_TOKENS
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.rows.plain_rows import plain_logps
from rosepo.lm.titles.room import room_of
from rosepo.lm.titles.title_scores import reference_logps

PROMPT, TITLE = 400, 8
"""Tokens."""
PAIRS, QUICK_PAIRS = 56, 14
"""Pairs (chosen, rejected) that each call scores, at every K; multiples of 7."""
TOLERANCE = 1e-4

Score = Callable[[list[tuple[np.ndarray, np.ndarray]], int, LlamaForCausalLM], np.ndarray]
"""Rows (prompt, completion) and their padded length to log-probabilities [rows]."""
Groups = tuple[list[np.ndarray], list[list[np.ndarray]]]


def k1(quick: bool) -> Row:
    """Groups of one rejected title."""
    return _measure("reference.k1", 1, quick)


def k7(quick: bool) -> Row:
    """Groups of seven rejected titles."""
    return _measure("reference.k7", 7, quick)


def _measure(name: str, negatives: int, quick: bool) -> Row:
    """Raises ValueError where the two disagree."""
    pairs = QUICK_PAIRS if quick else PAIRS
    model = synthetic.model(synthetic.SHAPE.vocab_size)
    prompts, completions = groups(pairs // negatives, negatives, synthetic.SHAPE.vocab_size)
    ours = partial(reference_logps, LogpsModel(model), prompts, completions)
    rival, lean = (partial(row_a_completion, model, prompts, completions, score) for score in (_plain, _lean))
    apart = max(
        np.abs(one - other).max() for made in (rival(), lean()) for one, other in zip(ours(), made, strict=True)
    )
    if not apart < TOLERANCE:
        raise ValueError(f"{name}: log-probabilities differ by {apart:.1e}, more than {TOLERANCE}")
    taken = side_by_side(ours, rival, quick, warm_up=False)
    against_lean = side_by_side(ours, lean, quick, warm_up=False)
    note = (
        f"prompts of {PROMPT} tokens, titles of {TITLE}, {pairs} pairs, apart by at most {apart:.0e}; "
        f"{against_lean.rival / against_lean.ours:.2f}x the lean one"
    )
    return rate_row(name, "pairs/s", "one row a completion", pairs, taken, note)


def groups(n: int, negatives: int, vocabulary: int) -> Groups:
    """`n` prompts of random tokens, each with 1 + `negatives` completions that end in EOS."""
    random, first = np.random.default_rng(0), len(SPECIAL_TOKENS)
    prompts = [random.integers(first, vocabulary, PROMPT, dtype=np.int32) for _ in range(n)]
    titles = random.integers(first, vocabulary, (n, 1 + negatives, TITLE), dtype=np.int32)
    titles[:, :, -1] = SPECIAL_TOKENS.index(EOS)
    return prompts, [list(rows) for rows in titles]


@torch.inference_mode()
def row_a_completion(
    model: LlamaForCausalLM, prompts: list[np.ndarray], completions: list[list[np.ndarray]], score: Score
) -> list[np.ndarray]:
    """log π of every completion, float32, in a row of its own; what `reference_logps` returns."""
    rows = [(prompt, ids) for prompt, group in zip(prompts, completions, strict=True) for ids in group]
    # The last token predicts nothing and is no input.
    lengths = np.array([len(prompt) + len(ids) - 1 for prompt, ids in rows])
    order = np.argsort(-lengths, kind="stable")
    out = np.zeros(len(rows), dtype=np.float32)
    start = 0
    while start < len(order):
        width = int(lengths[order[start]])
        batch = order[start : start + max(1, room_of(model).tokens // width)]
        out[batch] = score([rows[index] for index in batch], width, model)
        start += len(batch)
    return np.split(out, np.cumsum([len(group) for group in completions])[:-1])


def _plain(rows: list[tuple[np.ndarray, np.ndarray]], width: int, model: LlamaForCausalLM) -> np.ndarray:
    prompts, completions = zip(*rows, strict=True)
    return plain_logps(model, prompts, completions)[0].numpy()


def _lean(rows: list[tuple[np.ndarray, np.ndarray]], width: int, model: LlamaForCausalLM) -> np.ndarray:
    input_ids = np.zeros((len(rows), width), dtype=np.int64)
    for row, (prompt, ids) in enumerate(rows):
        input_ids[row, : len(prompt) + len(ids) - 1] = np.concatenate([prompt, ids[:-1]])
    at_row = np.repeat(np.arange(len(rows)), [len(ids) for _, ids in rows])
    at = np.concatenate([np.arange(len(prompt) - 1, len(prompt) + len(ids) - 1) for prompt, ids in rows])
    targets = torch.from_numpy(np.concatenate([ids for _, ids in rows]).astype(np.int64))
    # Padding stands behind, where causal attention does not look: no mask is needed.
    hidden = model.model(input_ids=torch.from_numpy(input_ids), use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[torch.from_numpy(at_row), torch.from_numpy(at)]).float()
    tokens = logits.log_softmax(dim=-1).gather(1, targets[:, None]).squeeze(1)
    return tokens.new_zeros(len(rows)).index_add(0, torch.from_numpy(at_row), tokens).numpy()
