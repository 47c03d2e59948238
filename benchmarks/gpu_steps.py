"""Whole training steps of the product's engine on Llamas of several sizes with random weights, in bfloat16."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.flops import size_of, step_flops, work_of
from benchmarks.reference import groups
from rosepo.config import LoraConfig
from rosepo.config.training import AlignConfig
from rosepo.lm.rows.batch import Batch, collate
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.rows.rows import group_row
from rosepo.objectives.rosepo import pairwise
from rosepo.training.engine import Engine

MAX_LENGTH = 1024
BETA = 0.1


@dataclass(frozen=True)
class Shape:
    """A Llama and the groups that a step takes."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    groups: int

    def model(self, device: torch.device, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
        """Random weights, made on the device; rotary frequencies stay float32."""
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=self.hidden < 4096,
        )
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with device:
                return LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(before)


SHAPES = {
    "tiny": Shape(32, 2, 2, 2, 64, 512, 2),
    "100m": Shape(768, 12, 12, 12, 2048, 32_000, 32),
    "1b": Shape(2048, 16, 32, 8, 8192, 128_256, 16),
    "8b": Shape(4096, 32, 32, 8, 14_336, 128_256, 4),
}
"""The last three have 110 million, 1.2 and 8 billion parameters (the two larger ones those of Llama 3)."""


@dataclass(frozen=True)
class Taken:
    """One measurement of whole training steps."""

    seconds: float
    gib: float
    tokens: int
    flops: float


def steps(
    shape: Shape, method: str, negatives: int, device: torch.device, quick: bool, attention: str | None = None
) -> Taken:
    """Whole training steps on one batch; `attention` None takes what the product takes by itself."""
    prompts, completions = groups(shape.groups, negatives, shape.vocabulary)
    batch = collate([group_row(*group) for group in zip(prompts, completions)]).to(device)
    model: Any = shape.model(device, torch.float32 if method == "full" else torch.bfloat16)
    if method == "lora":
        from rosepo.lm.model.policy import add_adapter

        model = add_adapter(model, LoraConfig(dropout=0.0))
    flops = step_flops(size_of(model), work_of(batch))
    options = {} if attention is None else {"attention": attention}
    train = AlignConfig(
        precision="bfloat16", batch_size=shape.groups, micro_batch_size=shape.groups, beta=BETA, warmup_fraction=0.0
    )
    reset_peak(device)
    engine = Engine(LogpsModel(model, **options).train(), train, 1000)
    del model
    try:
        taken = [_step(engine, batch, negatives, device) for _ in range(4 if quick else 7)][1 if quick else 2 :]
        return Taken(statistics.median(taken), peak_gib(device), batch.n_tokens, flops)
    finally:
        engine.close()


def _step(engine: Engine, batch: Batch, negatives: int, device: torch.device) -> float:
    """Seconds of one step; the reference's log-probabilities are taken to be the policy's own, shifted."""
    started = now(device)
    policy = engine.forward(batch)[0].view(-1, 1 + negatives)
    losses, _ = pairwise(policy, policy.detach() - 0.1, torch.zeros_like(policy[:, 1:]), BETA)
    engine.accumulate(losses.sum(), float(len(losses)))
    engine.step()
    return now(device) - started


def fitting(call: Callable[[], Taken]) -> Taken | None:
    """What `call` returns; None where the device's memory is too small for it."""
    try:
        return call()
    except torch.OutOfMemoryError:
        return None
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def now(device: torch.device) -> float:
    """Seconds, everything that the device was given to do being done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak(device: torch.device) -> None:
    """Begin to watch the device's memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: torch.device) -> float:
    """Highest memory allocated on the device since `reset_peak`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0


def device_name(device: torch.device) -> str:
    """As the driver calls it."""
    return torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
