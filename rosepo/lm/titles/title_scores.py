"""Log-probabilities of groups under the reference model: one pass before training, no training engine involved.

Nothing is trained here, so a prompt's keys and values are all that its completions need of it. Prompts of one user are
mostly prefixes of one another: the longest of a family runs once, with plain causal attention, and every group of the
family follows as one short row behind as much of it as is its own prompt. Models for which that is not exact take the
way of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from transformers import DynamicCache

from rosepo.lm.rows.base_model import OutputLayer, base_causal_lm
from rosepo.lm.rows.batch import collate, dense_mask
from rosepo.lm.rows.collate import PAD
from rosepo.lm.rows.logps import LogpsModel, attention_mask, sharing_obstacle
from rosepo.lm.rows.prefix_sharing import common_prefix, prefix_groups
from rosepo.lm.rows.rows import Branch, Row, build_row, group_row
from rosepo.lm.rows.target_logps import token_logps
from rosepo.lm.titles.cached_prompts import cached_prompts
from rosepo.lm.titles.room import Room, room_of

Group = tuple[np.ndarray, Sequence[np.ndarray]]
"""A prompt and its completions."""


@dataclass(frozen=True)
class _Line:
    """A group behind the cached prompt of its family.

    Attributes:
        place: of the group in the list given.
        family: its row of the cache.
        before: cached tokens that it sees, fewer than its prompt has.
        row: the rest of its prompt, and the completions branching off.
    """

    place: int
    family: int
    before: int
    row: Row


@torch.inference_mode()
def reference_logps(
    model: LogpsModel,
    prompts: Sequence[np.ndarray],
    completions: Sequence[Sequence[np.ndarray]],
    max_tokens: int | None = None,
) -> list[np.ndarray]:
    """log π(completion | prompt), summed over the completion's tokens, EOS included.

    What prompts have in common is computed once; prompts of like length share a batch. How groups are batched is a
    function of the groups and the room given, so equal calls with room enough give equal bits.

    Args:
        model: the reference, in eval mode, on the device that it shall run on.
        prompts: N int arrays of token ids, none empty.
        completions: N lists of int arrays, each ending in EOS.
        max_tokens: padded tokens in the model at once; None takes what the device has room for.

    Returns:
        N arrays float32 [number of completions].
    """
    groups = list(zip(prompts, completions, strict=True))
    room, found = Room(max_tokens) if max_tokens else room_of(model.model), None
    while found is None:
        found = room.attempt(lambda: _group_logps(model, groups, room.tokens))
    return found


def _group_logps(model: LogpsModel, groups: Sequence[Group], limit: int) -> list[np.ndarray]:
    found: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(groups)
    lengths = [len(prompt) + max(len(ids) for ids in titles) - 1 for prompt, titles in groups]
    shares = {length: sharing_obstacle(model.model, length) is None for length in set(lengths)}
    behind = [place for place, length in enumerate(lengths) if shares[length]]
    # A rest of half the prompt is worth a line that others are padded to; a longer one is not.
    families = prefix_groups(
        [groups[place][0] for place in behind], [-(-len(groups[place][0]) // 2) for place in behind]
    )
    for batch in _batches(groups, [[behind[place] for place in family] for family in families], limit):
        for lines, sums in _behind_prompts(model, groups, batch, limit):
            _split(found, [line.place for line in lines], sums, groups)
    alone = [place for place, length in enumerate(lengths) if not shares[length]]
    for batch in _batches(groups, [[place] for place in alone], limit):
        places = [place for family in batch for place in family]
        rows = [group_row(*groups[place]) for place in places]
        _split(found, places, model(collate(rows).to(next(model.parameters()).device))[0], groups)
    return found


def _split(found: list[np.ndarray], places: list[int], sums: torch.Tensor, groups: Sequence[Group]) -> None:
    """Give every group of a batch its part of the log-probabilities of them all."""
    ends = np.cumsum([len(groups[place][1]) for place in places])
    for place, part in zip(places, np.split(sums.float().cpu().numpy(), ends[:-1]), strict=True):
        found[place] = part


def _batches(groups: Sequence[Group], families: list[list[int]], max_tokens: int) -> Iterator[list[list[int]]]:
    """Families, longest prompt first, in lists whose prompts, with one group behind each, take at most `max_tokens`
    padded tokens, or one family."""
    batch: list[list[int]] = []
    prompt = tail = 0
    for family in sorted(families, key=lambda family: -len(groups[family[0]][0])):
        own = max(1 + sum(len(ids) - 1 for ids in groups[place][1]) for place in family)
        if batch and (len(batch) + 1) * (prompt + max(tail, own)) > max_tokens:
            yield batch
            batch, tail = [], 0
        if not batch:
            prompt = len(groups[family[0]][0]) - 1
        batch.append(family)
        tail = max(tail, own)
    if batch:
        yield batch


def _behind_prompts(
    model: LogpsModel, groups: Sequence[Group], families: list[list[int]], max_tokens: int
) -> Iterator[tuple[list[_Line], torch.Tensor]]:
    """Lines of all groups of the families, and the log-probabilities (float32) of each list's completions, in order."""
    causal_lm = base_causal_lm(model.model)
    trunks = [groups[family[0]][0] for family in families]
    cache = cached_prompts(causal_lm, [trunk[:-1] for trunk in trunks])
    lines = [
        _line(number, place, groups[place], trunks[number])
        for number, family in enumerate(families)
        for place in family
    ]
    # By what they see of the prompt: shorter prompts pay for no more keys than they need.
    lines.sort(key=lambda line: -line.before)
    start = 0
    while start < len(lines):
        stop, width = start + 1, len(lines[start].row)
        while stop < len(lines):
            wider = max(width, len(lines[stop].row))
            if (stop + 1 - start) * (lines[start].before + wider) > max_tokens:
                break
            stop, width = stop + 1, wider
        yield lines[start:stop], _line_logps(model, cache, lines[start:stop])
        start = stop


def _line(family: int, place: int, group: Group, trunk: np.ndarray) -> _Line:
    """The last token of a prompt, whose state predicts every completion's first, is always the line's own."""
    prompt, completions = group
    before = min(common_prefix(prompt, trunk), len(prompt) - 1)
    rest = np.asarray(prompt[before:], dtype=np.int32)
    branches = [Branch(len(rest), rest[:0], np.asarray(ids, dtype=np.int32)) for ids in completions]
    return _Line(place, family, before, build_row(rest, branches))


def _line_logps(model: LogpsModel, cache: DynamicCache, lines: list[_Line]) -> torch.Tensor:
    """float [completions of all lines]"""
    causal_lm = base_causal_lm(model.model)
    device = next(model.parameters()).device
    batch = collate([line.row for line in lines]).to(device)
    before = torch.tensor([line.before for line in lines], device=device)[:, None]
    kept = _cache_rows(cache, torch.tensor([line.family for line in lines], device=device), lines[0].before)
    within = dense_mask(batch)  # [B, 1, S, S]
    prompt = torch.arange(lines[0].before, device=device) < before
    seen = torch.cat([prompt[:, None, None].expand(-1, -1, within.shape[2], -1), within], dim=-1)
    output = causal_lm.get_decoder()(
        input_ids=batch.input_ids,
        attention_mask=attention_mask(seen, causal_lm),
        position_ids=torch.where(batch.segment == PAD, 0, batch.position_ids + before),
        past_key_values=kept,
        use_cache=True,
    )
    states = output.last_hidden_state.flatten(0, 1).index_select(0, batch.gather)
    head = OutputLayer(causal_lm, model.float32_logits)
    tokens = token_logps(head, states, batch.source, batch.targets, model.max_logits)
    return tokens.new_zeros(batch.n_completions).index_add(0, batch.completion, tokens)


def _cache_rows(cache: DynamicCache, rows: torch.Tensor, length: int) -> DynamicCache:
    """The first `length` keys and values of some rows of a cache, for one more step; the cache stays as it is."""
    chosen = DynamicCache()
    if length:
        for number, layer in enumerate(cast(Any, cache).layers):
            keys, values = (part[:, :, :length].index_select(0, rows) for part in (layer.keys, layer.values))
            chosen.update(keys, values, number)
    return chosen
