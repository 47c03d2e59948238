"""Floating-point operations that a training step on shared-prefix rows needs, and the share of a device's peak.

Counted are the operations of the mathematics, a multiply-add as two, on unique tokens: padding, recomputed activations
and the repeats that a row a completion would have are work that nobody asked for. With N_body weights in the matrices
of the decoder layers, N_head in the output layer, T input tokens, P positions that predict something, A pairs (query,
key) that the mask allows, L layers and d = heads × head size:

    forward          2 N_body T + 2 N_head P + 4 L d A
    whole step       3 × forward: the backward pass has the gradients of inputs and of weights
    with adapters    2 × forward + 4 L d A + 6 N_lora T: frozen weights need no gradient; attention has none

(Kaplan et al. 2020, arXiv 2001.08361, section 2.1; Chowdhery et al. 2022, arXiv 2204.02311, appendix B, has MFU.) The
softmax of attention, norms and embeddings are left out, as usual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rosepo.lm.rows.base_model import base_causal_lm
from rosepo.lm.rows.batch import Batch, dense_mask
from rosepo.lm.rows.collate import PAD

PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}
"""Dense bfloat16 matrix operations a second, by a part of the device's name; from NVIDIA's data sheets."""


@dataclass(frozen=True)
class Work:
    """What a batch asks of a model."""

    tokens: int
    """T"""
    predicted: int
    """P"""
    pairs: int
    """A"""


@dataclass(frozen=True)
class Size:
    """What a model is made of, in weights of matrices."""

    body: int
    head: int
    adapters: int
    """Trained weights where the others are frozen; 0 for full training."""
    attention: int
    """L d"""


def work_of(batch: Batch) -> Work:
    """The work of a batch, padding left out."""
    real = batch.segment != PAD
    mask = dense_mask(batch).squeeze(1) & real[:, :, None] & real[:, None, :]
    return Work(int(real.sum()), len(torch.unique(batch.gather[batch.source])), int(mask.sum()))


def size_of(model: nn.Module) -> Size:
    """The size of a causal LM of Transformers, or of a PEFT model on one."""
    causal_lm: Any = base_causal_lm(model)
    body = adapters = 0
    for name, weight in causal_lm.get_decoder().layers.named_parameters():
        if "lora_" in name:
            adapters += weight.numel()
        elif weight.dim() == 2:
            body += weight.numel()
    config = causal_lm.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.num_hidden_layers * config.num_attention_heads * width
    return Size(body, causal_lm.get_output_embeddings().weight.numel(), adapters, attention)


def step_flops(size: Size, work: Work) -> float:
    """Operations of a forward and a backward pass."""
    forward = 2.0 * size.body * work.tokens + 2.0 * size.head * work.predicted + 4.0 * size.attention * work.pairs
    if size.adapters == 0:
        return 3.0 * forward
    attention = 4.0 * size.attention * work.pairs
    return 2.0 * forward + attention + 6.0 * size.adapters * work.tokens


def peak_flops(device: str) -> float | None:
    """bfloat16 operations a second of a device by its name; None for one that is not in `PEAK_TFLOPS`."""
    for part, peak in PEAK_TFLOPS.items():
        if part in device:
            return peak * 1e12
    return None
