"""Log-probabilities of completions under a causal language model, by shared-prefix rows or one row a completion.

The shared path runs the decoder body once over a row, gathers the hidden states that predict something and puts only
those through the output layer. It is exact for `SHARED_PREFIX_ARCHITECTURES`; all other models take the plain path, one
row a completion through the model's own forward, and know why.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from rosepo.lm.rows.attention import BY_BLOCKS, SHARED_PREFIX_ARCHITECTURES, block_mask, set_attention
from rosepo.lm.rows.batch import Batch, dense_mask
from rosepo.lm.rows.collate import padded_size
from rosepo.lm.rows.target_logps import TargetLogps

# Rotary embeddings of these types depend on the longest position of the batch, padding included.
_UNSTEADY_ROTARY = frozenset({"dynamic", "longrope"})


class LogpsModel(nn.Module):
    """Maps a `Batch` to log-probabilities of its completions: what the training engine wraps.

    Sub-modules are called and their weights never read, so that ZeRO-3 can gather parameters.

    Args:
        model: a causal LM of Transformers, or a PEFT model on one.
        attention: how it is computed (`TrainConfig.attention`); None leaves the model as it is.
        activation_checkpointing: recompute every layer in the backward pass instead of keeping its activations.
        max_logits: logits (positions × vocabulary) held at once; beyond it the output layer runs in chunks that are
            recomputed in the backward pass.

    Raises:
        UserError: a model that cannot compute attention in that way.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        attention: str | None = None,
        activation_checkpointing: bool = False,
        max_logits: int = 2**27,
    ) -> None:
        super().__init__()
        self.model = model
        self.max_logits = max_logits
        self.obstacle: str | None = None
        """Why the last batch that took the plain path did; None before one does."""
        if attention is not None:
            set_attention(base_causal_lm(model), attention)
        self._attention = attention
        if activation_checkpointing:
            _checkpoint_activations(model)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> LogpsModel:
        # A cast to bfloat16 would round the rotary frequencies too, while a model that is loaded has exact ones: at
        # position 400 their phases differ by up to half a radian, in heads of 128.
        exact = [
            (module, name, buffer)
            for module in self.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if name in module._non_persistent_buffers_set and buffer.dtype == torch.float32
        ]
        super()._apply(fn, recurse)
        for module, name, before in exact:
            after = getattr(module, name)
            if after.dtype != before.dtype:
                setattr(module, name, before.to(after.device))
        return self

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed log-probability (float32 [C]) and number of tokens (int64 [C]) of every completion, EOS included.

        Raises:
            ValueError: weighted targets, which are no tokens of a row of their own, under a model of the plain path.
        """
        counts = torch.zeros(batch.n_completions, dtype=torch.int64, device=batch.targets.device)
        counts.index_add_(0, batch.completion, torch.ones_like(batch.completion))
        obstacle = plain_reason(self.model, batch)
        if obstacle is None:
            return self._shared(batch), counts
        self.obstacle = obstacle
        if batch.weights is not None:
            raise ValueError(f"targets with weights take shared rows: {obstacle}")
        prompts, completions = separate(batch)
        return plain_logps(self.model, prompts, completions)[0], counts

    def _shared(self, batch: Batch) -> torch.Tensor:
        causal_lm = base_causal_lm(self.model)
        positions, mask = batch.position_ids, None
        if not batch.causal:
            mask = self._mask(batch, causal_lm)
        elif positions.shape[1] > causal_lm.config.max_position_embeddings:
            # Only padding lies there, but a table of learned positions has no such entry.
            positions = positions.clamp(max=causal_lm.config.max_position_embeddings - 1)
        body = causal_lm.get_decoder()
        hidden = body(input_ids=batch.input_ids, attention_mask=mask, position_ids=positions, use_cache=False)
        gathered = hidden.last_hidden_state.flatten(0, 1).index_select(0, batch.gather)
        tokens = token_logps(causal_lm.get_output_embeddings(), gathered, batch.source, batch.targets, self.max_logits)
        if batch.weights is not None:
            tokens = tokens * batch.weights
        return tokens.new_zeros(batch.n_completions).index_add(0, batch.completion, tokens)

    def _mask(self, batch: Batch, causal_lm: Any) -> torch.Tensor | BlockMask:
        by_blocks = causal_lm.config._attn_implementation == BY_BLOCKS
        if by_blocks and (batch.input_ids.is_cuda or self._attention == "flex"):
            return block_mask(batch)
        return attention_mask(dense_mask(batch), causal_lm)


def _checkpoint_activations(model: Any) -> None:
    """Compute activations again in the backward pass, under the name that this version of Transformers has for it:
    5.16 does not know the newer one, and newer ones warn of the older."""
    settings = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)


def token_logps(
    head: Callable[[torch.Tensor], torch.Tensor],
    hidden: torch.Tensor,
    source: torch.Tensor,
    targets: torch.Tensor,
    max_logits: int = 2**27,
) -> torch.Tensor:
    """Log-probability of every target, float32 [T]: its logit minus the logsumexp of all, taken in float32.

    Args:
        head: the output layer, [n, d] → logits [n, V].
        hidden: [P, d], one state for every position that predicts something.
        source: int64 [T], never decreasing: the position that predicts each target. Several targets may share one.
        targets: int64 [T].
        max_logits: logits held at once; more are computed in chunks and again in the backward pass.
    """
    vocabulary = int(getattr(head, "out_features", 0) or 2**17)
    size = max(1, max_logits // vocabulary)
    if len(hidden) <= size:
        return _chunk_logps(head, hidden, source, targets)
    starts = torch.arange(0, len(hidden), size, device=source.device)
    bounds = [*torch.searchsorted(source, starts).tolist(), len(source)]
    chunks = []
    for index, (low, high) in enumerate(itertools.pairwise(bounds)):
        part = hidden[index * size : (index + 1) * size]
        inputs = (head, part, source[low:high] - index * size, targets[low:high])
        chunks.append(cast(torch.Tensor, checkpoint(_chunk_logps, *inputs, use_reentrant=False)))
    return torch.cat(chunks)


def _chunk_logps(
    head: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, source: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    return cast(torch.Tensor, TargetLogps.apply(head(hidden), source, targets))


def plain_logps(
    model: nn.Module, prompts: Sequence[np.ndarray], completions: Sequence[np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log-probability (float32 [C]) and token count (int64 [C]) of each completion after its own prompt.

    One right-padded row a completion through the model's own forward, logits of every position kept: slow, and as
    simple as it gets. The partner in every parity test, and the way for models that cannot share a prefix.

    Args:
        model: a causal LM.
        prompts: C arrays of token ids, none empty.
        completions: C arrays of token ids, EOS included.
    """
    device = next(model.parameters()).device
    lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    shape = (len(lengths), padded_size(max(lengths)))
    limit = getattr(base_causal_lm(model).config, "max_position_embeddings", None)
    shape = (shape[0], max(max(lengths), min(shape[1], limit))) if limit else shape
    input_ids, attention_mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    scored = np.zeros(shape, bool)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        input_ids[row, : lengths[row]] = np.concatenate([prompt, completion])
        attention_mask[row, : lengths[row]] = 1
        scored[row, len(prompt) : lengths[row]] = True
    ids = torch.from_numpy(input_ids).to(device)
    logits = model(input_ids=ids, attention_mask=torch.from_numpy(attention_mask).to(device), use_cache=False).logits
    logps = logits[:, :-1].float().log_softmax(dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)
    keep = torch.from_numpy(scored[:, 1:]).to(device)
    return logps.masked_fill(~keep, 0.0).sum(dim=1), keep.sum(dim=1)


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


def base_causal_lm(model: nn.Module) -> Any:
    """The causal LM itself: inside a PEFT model the one that carries the adapter's layers."""
    unwrap = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()


def plain_reason(model: nn.Module, batch: Batch) -> str | None:
    """Why this batch cannot go through the model as shared-prefix rows; None if it can, exactly."""
    return sharing_obstacle(model, None if batch.causal else batch.longest)


def sharing_obstacle(model: nn.Module, longest: int | None) -> str | None:
    """Why sequences of this model cannot be computed together, each seeing its own past alone; None if they
    can, exactly.

    Args:
        model: a causal LM, or a PEFT model on one.
        longest: tokens of the longest sequence; None where a plain causal mask will do.
    """
    config = base_causal_lm(model).config
    if config.model_type not in SHARED_PREFIX_ARCHITECTURES:
        return f"model type {config.model_type} is not one of {', '.join(sorted(SHARED_PREFIX_ARCHITECTURES))}"
    if getattr(model, "peft_type", None) is not None and cast(Any, model).active_peft_config.is_prompt_learning:
        return "the adapter puts learned tokens before the prompt"
    if longest is None:
        return None
    if config._attn_implementation not in ("sdpa", "eager", BY_BLOCKS):
        return f"attention implementation {config._attn_implementation} takes no mask of its own"
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotary in _UNSTEADY_ROTARY:
        return f"rotary positions of type {rotary} depend on the longest row"
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    if window is not None and slides and longest > window:
        return f"attention slides over {window} tokens, fewer than the {longest} of a prompt and its completion"
    return None


def attention_mask(mask: torch.Tensor, causal_lm: Any) -> torch.Tensor:
    """A bool mask, True where a query may look, as the model's attention takes it: bool for SDPA; added to the scores,
    in their dtype, for the eager one. No query may be left without a key."""
    if causal_lm.config._attn_implementation != "eager":
        return mask
    dtype = causal_lm.dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
