"""How attention is computed in training: by mask (SDPA, eager), or by blocks with FlexAttention.

FlexAttention (Dong et al. 2024, arXiv 2412.05496) takes who sees whom as a function and skips blocks in which nobody
sees anybody: the completions of a group do not see one another, nor do the rows that share a line.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rosepo.lm.rows.batch import Batch
from rosepo.utils.errors import UserError

SHARED_PREFIX_ARCHITECTURES = frozenset(
    {
        "llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "smollm3",
        "gpt_neox", "gpt2",
    }
)  # fmt: skip
"""Model types whose body takes a mask and positions as given, and whose logits are those of `OutputLayer`.
Tests compare each of them with one row a completion."""

BY_BLOCKS = "rosepo_flex"
"""Name under which Transformers knows this module's attention: FlexAttention where it is given a block mask, and SDPA
where it is given any other or none."""
LEAST_HEAD = 16
"""FlexAttention's kernels take no smaller heads."""


def set_attention(causal_lm: Any, attention: str) -> None:
    """Make a causal LM compute attention in this way: auto, sdpa, eager or flex (`TrainConfig.attention`).

    `auto` takes FlexAttention for batches on CUDA and SDPA for others, and changes nothing in a model that
    FlexAttention is not for.

    Raises:
        UserError: a model that cannot do it.
    """
    if attention in ("auto", "flex"):
        obstacle = flex_obstacle(causal_lm)
        if obstacle is None:
            causal_lm.set_attn_implementation(BY_BLOCKS)
        elif attention == "flex":
            raise UserError(f"attention=flex: {obstacle}; use attention=auto")
        return
    try:
        causal_lm.set_attn_implementation(attention)
    except (ValueError, ImportError) as error:
        raise UserError(f"attention={attention} is not for {type(causal_lm).__name__}; use attention=auto") from error


def flex_obstacle(causal_lm: Any) -> str | None:
    """Why FlexAttention cannot stand for the attention of a model as it trains; None if it can."""
    family = causal_lm.config.model_type
    if family not in SHARED_PREFIX_ARCHITECTURES:
        return f"model type {family} takes one row a completion, whose attention is its own"
    if getattr(causal_lm.config, "attn_logit_softcapping", None) is not None:
        return "FlexAttention has no cap of attention's scores, and the model has one"
    if attention_dropout(causal_lm) > 0.0:
        return "FlexAttention has no dropout of attention, and the model trains with it"
    head = head_size(causal_lm.config)
    if head < LEAST_HEAD:
        return f"FlexAttention takes heads of {LEAST_HEAD} and more, and the model's are of {head}"
    return None


def head_size(settings: Any) -> int:
    """Width of one attention head of a model's config."""
    own = getattr(settings, "head_dim", None)
    return int(own or settings.hidden_size // settings.num_attention_heads)


def attention_dropout(model: nn.Module) -> float:
    """The highest rate of dropout on attention weights that a model has in its modules."""
    rates = [0.0]
    for module in model.modules():
        for name in ("attention_dropout", "attn_dropout"):
            value = getattr(module, name, None)
            rates.append(value.p if isinstance(value, nn.Dropout) else value if isinstance(value, float) else 0.0)
    return max(rates)


def block_mask(batch: Batch) -> BlockMask:
    """`dense_mask` in blocks, [B, 1, L, L], on the batch's device."""
    lines, length = batch.input_ids.shape
    mask = create_block_mask(_sees(batch), lines, None, length, length, device=batch.input_ids.device)
    mask.ndim = 4  # type: ignore[attr-defined]  # GPT-2 asks every mask for it
    return mask


def _sees(batch: Batch) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """`dense_mask` as a function of line, head, query and key."""
    segment, document, attach = batch.segment.int(), batch.document.int(), batch.attach.int()

    def sees(line: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = segment[line, query] == segment[line, key]
        shared = (segment[line, key] == 0) & (key < attach[line, query])
        return (document[line, query] == document[line, key]) & (own | shared) & (key <= query)

    return sees


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Transformers' signature: query [B, H, L, d], key and value [B, H', L, d]. Returns [B, L, H, d]."""
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    if dropout > 0.0:
        raise ValueError("FlexAttention has no dropout")
    # Uncompiled it keeps all scores, which is no use but to compare with: CUDA has a kernel.
    attend = _compiled() if query.is_cuda else flex_attention
    dtype = value.dtype  # under autocast the rotary embedding leaves queries and keys in float32
    groups = query.shape[1] != key.shape[1]
    seen = attend(query.to(dtype), key.to(dtype), value, block_mask=attention_mask, scale=scaling, enable_gqa=groups)
    return seen.transpose(1, 2).contiguous(), None


@cache
def _compiled() -> Any:
    # One line or many, one block or many, with gradients or without: each is compiled for itself, more often than
    # Dynamo's limit of 8, beyond which it would compute all scores without a word. (torch.compile takes a limit of its
    # own from 2.12 on.)
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, 64)
    return torch.compile(flex_attention, dynamic=True)


ALL_ATTENTION_FUNCTIONS.register(BY_BLOCKS, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(BY_BLOCKS, sdpa_mask)
