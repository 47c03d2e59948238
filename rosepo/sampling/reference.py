"""Log-probabilities of groups under the reference model: one pass before training, no training engine involved.

Nothing is trained here, so a prompt's keys and values are all that its completions need of it: prompts run first, with
plain causal attention, then the completions of a group as one short row behind its prompt. Models for which that is
not exact take the way of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from rosepo.evaluation.forward import batch_tokens, cached_prompts
from rosepo.training.batch import collate, dense_mask
from rosepo.training.collate import PAD
from rosepo.training.logps import LogpsModel, attention_mask, base_causal_lm, sharing_obstacle, token_logps
from rosepo.training.rows import Branch, Row, build_row, group_row

Group = tuple[np.ndarray, Sequence[np.ndarray]]
"""A prompt and its completions."""


@torch.inference_mode()
def reference_logps(
    model: LogpsModel,
    prompts: Sequence[np.ndarray],
    completions: Sequence[Sequence[np.ndarray]],
    max_tokens: int | None = None,
) -> list[np.ndarray]:
    """log π(completion | prompt), summed over the completion's tokens, EOS included.

    A group's prompt is computed once; prompts of like length share a batch. How groups are batched is a function of the
    groups given, so equal calls give equal bits.

    Args:
        model: the reference, in eval mode, on the device that it shall run on.
        prompts: N int arrays of token ids, none empty.
        completions: N lists of int arrays, each ending in EOS.
        max_tokens: padded tokens in the model at once; None takes what suits the device.

    Returns:
        N arrays float32 [number of completions].
    """
    groups = list(zip(prompts, completions, strict=True))
    found: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(groups)
    for batch in _batches(groups, max_tokens or batch_tokens(model)):
        sums = _batch_logps(model, [groups[index] for index in batch]).float().cpu().numpy()
        sizes = np.cumsum([len(groups[index][1]) for index in batch])
        for index, part in zip(batch, np.split(sums, sizes[:-1]), strict=True):
            found[index] = part
    return found


def _batches(groups: Sequence[Group], max_tokens: int) -> Iterator[list[int]]:
    """Places of groups, longest prompt first, in lists of at most `max_tokens` padded tokens or one group."""
    batch: list[int] = []
    prompt = tail = 0
    for index in sorted(range(len(groups)), key=lambda index: -len(groups[index][0])):
        own = 1 + sum(len(ids) - 1 for ids in groups[index][1])
        if batch and (len(batch) + 1) * (prompt + max(tail, own)) > max_tokens:
            yield batch
            batch, tail = [], 0
        if not batch:
            prompt = len(groups[index][0]) - 1
        batch.append(index)
        tail = max(tail, own)
    if batch:
        yield batch


def _batch_logps(model: LogpsModel, groups: Sequence[Group]) -> torch.Tensor:
    """float [completions of all groups]"""
    longest = max(len(prompt) + max(len(ids) for ids in completions) - 1 for prompt, completions in groups)
    if sharing_obstacle(model.model, longest) is None:
        return _behind_prompts(model, groups)
    device = next(model.parameters()).device
    sums: torch.Tensor = model(collate([group_row(*group) for group in groups]).to(device))[0]
    return sums


def _behind_prompts(model: LogpsModel, groups: Sequence[Group]) -> torch.Tensor:
    causal_lm = base_causal_lm(model.model)
    device = next(model.parameters()).device
    cache = cached_prompts(causal_lm, [prompt[:-1] for prompt, _ in groups])
    batch = collate([_tail_row(*group) for group in groups]).to(device)
    before = torch.tensor([len(prompt) - 1 for prompt, _ in groups], device=device)[:, None]  # cached tokens
    within = dense_mask(batch)  # [B, 1, S, S]
    prompt = torch.arange(cache.get_seq_length(), device=device) < before
    seen = torch.cat([prompt[:, None, None].expand(-1, -1, within.shape[2], -1), within], dim=-1)
    output = causal_lm.get_decoder()(
        input_ids=batch.input_ids,
        attention_mask=attention_mask(seen, causal_lm),
        position_ids=torch.where(batch.segment == PAD, 0, batch.position_ids + before),
        past_key_values=cache,
        use_cache=True,
    )
    states = output.last_hidden_state.flatten(0, 1).index_select(0, batch.gather)
    tokens = token_logps(causal_lm.get_output_embeddings(), states, batch.source, batch.targets, model.max_logits)
    return tokens.new_zeros(batch.n_completions).index_add(0, batch.completion, tokens)


def _tail_row(prompt: np.ndarray, completions: Sequence[np.ndarray]) -> Row:
    """The prompt's last token, whose state predicts every completion's first, and the completions behind it."""
    last = np.asarray(prompt[-1:], dtype=np.int32)
    return build_row(last, [Branch(1, last[:0], np.asarray(ids, dtype=np.int32)) for ids in completions])
