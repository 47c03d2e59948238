"""Log-probabilities of completions under a causal language model, by shared-prefix rows or one row a completion.

The shared path runs the decoder body once over a row, gathers the hidden states that predict something and puts only
those through the output layer. It is exact for `SHARED_PREFIX_ARCHITECTURES`; all other models take the plain path, one
row a completion through the model's own forward, and know why.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask

from rosepo.lm.rows.attention import BY_BLOCKS, SHARED_PREFIX_ARCHITECTURES, block_mask, set_attention
from rosepo.lm.rows.base_model import OutputLayer, base_causal_lm, float32_logits, learns_prompt
from rosepo.lm.rows.batch import Batch, dense_mask
from rosepo.lm.rows.partitioned import most_of_ranks, partitioned
from rosepo.lm.rows.plain_rows import plain_logps, separate
from rosepo.lm.rows.target_logps import MAX_LOGITS, token_logps

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
        float32_logits: take logits in float32 also where the weights are bfloat16, for ranking; see `OutputLayer`.

    Raises:
        UserError: a model that cannot compute attention in that way.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        attention: str | None = None,
        activation_checkpointing: bool = False,
        max_logits: int = MAX_LOGITS,
        float32_logits: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.float32_logits = float32_logits
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
        obstacle, together = plain_reason(self.model, batch), partitioned(self.model)
        if together and most_of_ranks(obstacle is not None):
            obstacle = obstacle or "another rank's batch cannot be computed so, and all ranks go one way"
        if obstacle is None:
            return self._shared(batch, together), counts
        self.obstacle = obstacle
        if batch.weights is not None:
            raise ValueError(f"targets with weights take shared rows: {obstacle}")
        exact = float32_logits(base_causal_lm(self.model)) if self.float32_logits else nullcontext()
        with exact:
            return plain_logps(self.model, *separate(batch), self.max_logits, together)[0], counts

    def _shared(self, batch: Batch, together: bool) -> torch.Tensor:
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
        head, known = OutputLayer(causal_lm, self.float32_logits), batch.source_on_host
        tokens = token_logps(head, gathered, batch.source, batch.targets, self.max_logits, together, known)
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
    if learns_prompt(model):
        return "the adapter puts learned tokens before the prompt"
    if longest is None:
        return None
    if config._attn_implementation not in ("sdpa", "eager", BY_BLOCKS):
        return f"attention implementation {config._attn_implementation} takes no mask of its own"
    unsteady = _rotary_types(config) & _UNSTEADY_ROTARY
    if unsteady:
        return f"rotary positions of type {min(unsteady)} depend on the longest row"
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    if window is not None and slides and longest > window:
        return f"attention slides over {window} tokens, fewer than the {longest} of a prompt and its completion"
    return None


def _rotary_types(config: Any) -> set[str]:
    """Those of all layers: a model whose layers slide over a window may have others there."""
    known = getattr(config, "rope_parameters", None) or {}
    return {one.get("rope_type", "default") for one in (known, *known.values()) if isinstance(one, dict)}


def attention_mask(mask: torch.Tensor, causal_lm: Any) -> torch.Tensor:
    """A bool mask, True where a query may look, as the model's attention takes it: bool for SDPA; added to the scores,
    in their dtype, for the eager one. No query may be left without a key."""
    if causal_lm.config._attn_implementation != "eager":
        return mask
    dtype = causal_lm.dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
