"""One row a completion, prompt and all, through the model's own forward: for models that cannot share a prefix."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rosepo.lm.rows.base_model import OutputLayer, base_causal_lm, learns_prompt
from rosepo.lm.rows.batch import Batch
from rosepo.lm.rows.collate import padded_size
from rosepo.lm.rows.partitioned import most_of_ranks
from rosepo.lm.rows.target_logps import MAX_LOGITS, TargetLogps

MAX_TOKENS = 2**14
"""Tokens of a pass, padding included, where a single row does not have more."""


@dataclass(frozen=True)
class _PlainRow:
    """A completion behind its prompt; `first` is the position that predicts its first token."""

    ids: np.ndarray
    first: int


def plain_logps(
    model: nn.Module,
    prompts: Sequence[np.ndarray],
    completions: Sequence[np.ndarray],
    max_logits: int = MAX_LOGITS,
    together: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log-probability (float32 [C]) and token count (int64 [C]) of each completion after its own prompt.

    Right-padded rows, in as many passes as their bounds ask for; where there are several, each is computed again in the
    backward pass.

    Args:
        model: a causal LM, or a PEFT model on one.
        prompts: C ≥ 1 arrays of token ids, none empty.
        completions: C arrays of token ids, EOS included.
        max_logits: logits (rows × positions × vocabulary) of a pass, where a single row does not have more.
        together: whether all ranks make as many passes as the one that needs most: see `token_logps`.
    """
    device = next(model.parameters()).device
    rows = [
        _PlainRow(np.concatenate([prompt, completion]).astype(np.int64), len(prompt) - 1)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    keeps = _keeps_positions(model)
    passes = _passes(rows, max(1, max_logits // _vocabulary(model)), keeps)
    n_passes = most_of_ranks(len(passes)) if together else len(passes)
    found = []
    for places in passes:
        mine = [rows[place] for place in places]
        found.append(_pass(model, mine, keeps) if n_passes == 1 else _pass_again(model, mine, keeps))
    logps = torch.cat(found)[torch.tensor(np.argsort(np.concatenate(passes)), device=device)]
    for _ in range(n_passes - len(passes)):
        # The other ranks are not done: a short row, and nothing of it.
        logps = logps + 0.0 * _pass_again(model, [min(rows, key=lambda row: len(row.ids))], keeps)
    return logps, torch.tensor([len(completion) for completion in completions], device=device)


def _passes(rows: Sequence[_PlainRow], most: int, keeps: bool) -> list[list[int]]:
    """Places of the rows of each pass: of so many positions with logits at most, padding included."""
    order = sorted(range(len(rows)), key=lambda place: (rows[place].first, len(rows[place].ids)))
    passes: list[list[int]] = []
    first = longest = 0
    for place in order:
        row = rows[place]
        # Prompts come in order of their length, so the first row of a pass has the first position that is kept.
        wide = max(longest, len(row.ids))
        size = len(passes[-1]) + 1 if passes else 1
        kept = wide - first if keeps else padded_size(wide)
        if not passes or size * kept > most or size * padded_size(wide) > MAX_TOKENS:
            passes.append([])
            first, wide = row.first, len(row.ids)
        passes[-1].append(place)
        longest = wide
    return passes


def _pass_again(model: nn.Module, rows: Sequence[_PlainRow], keeps: bool) -> torch.Tensor:
    return cast(torch.Tensor, checkpoint(_pass, model, rows, keeps, use_reentrant=False))


def _pass(model: nn.Module, rows: Sequence[_PlainRow], keeps: bool) -> torch.Tensor:
    """Summed log-probabilities of some rows' completions, float32 [n]."""
    device = next(model.parameters()).device
    longest = max(len(row.ids) for row in rows)
    limit = getattr(base_causal_lm(model).config, "max_position_embeddings", None)
    width = max(longest, min(padded_size(longest), limit or padded_size(longest)))
    ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)], mask[number, : len(row.ids)] = row.ids, 1
    start = min(row.first for row in rows) if keeps else 0
    kept: dict[str, Any] = {"logits_to_keep": torch.arange(start, longest - 1, device=device)} if keeps else {}
    logits = model(
        input_ids=torch.from_numpy(ids).to(device),
        attention_mask=torch.from_numpy(mask).to(device),
        use_cache=False,
        **kept,
    ).logits
    if not keeps:  # learned tokens before the prompt have logits too
        logits = logits[:, logits.shape[1] - width :]
    spans = [range(row.first, len(row.ids) - 1) for row in rows]
    places = (
        np.concatenate([number * logits.shape[1] + np.array(span) - start for number, span in enumerate(spans)]),
        np.concatenate([row.ids[row.first + 1 :] for row in rows]),
        np.repeat(np.arange(len(rows)), [len(span) for span in spans]),
    )
    source, targets, owner = (torch.from_numpy(part).to(device) for part in places)
    tokens = cast(torch.Tensor, TargetLogps.apply(logits.flatten(0, 1), source, targets))
    return tokens.new_zeros(len(rows)).index_add(0, owner, tokens)


def _vocabulary(model: nn.Module) -> int:
    causal_lm = base_causal_lm(model)
    return OutputLayer(causal_lm).out_features or int(causal_lm.config.get_text_config().vocab_size)


def _keeps_positions(model: nn.Module) -> bool:
    """Whether the model makes logits of the positions that it is told alone."""
    return not learns_prompt(model) and "logits_to_keep" in inspect.signature(base_causal_lm(model).forward).parameters


def separate(batch: Batch) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The prompt and the completion (int64 arrays) of every completion of a batch, as separate sequences."""
    length = batch.segment.shape[1]
    names = ("input_ids", "segment", "document", "attach")
    ids, segment, document, attach = (getattr(batch, name).cpu().numpy() for name in names)
    at = batch.gather.cpu().numpy()[batch.source.cpu().numpy()]
    owners, targets = batch.completion.cpu().numpy(), batch.targets.cpu().numpy()
    # Sources never decrease, so a stable sort keeps every completion's tokens in order.
    order = np.argsort(owners, kind="stable")
    bounds = np.searchsorted(owners[order], np.arange(batch.n_completions + 1))
    prompts, completions = [], []
    for low, high in itertools.pairwise(bounds):
        row, first = divmod(int(at[order[low]]), length)
        index = np.arange(first + 1)
        own = segment[row, : first + 1] == segment[row, first]
        trunk = (segment[row, : first + 1] == 0) & (index < attach[row, first])
        same_row = document[row, : first + 1] == document[row, first]
        prompts.append(ids[row, : first + 1][same_row & (own | trunk)])
        completions.append(targets[order[low:high]])
    return prompts, completions
