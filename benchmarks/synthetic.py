"""A catalogue, prompts and a model that the benchmarks share: made from a seed, like real ones in size and shape."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaForCausalLM

from rosepo.config import ScratchConfig, TemplateConfig
from rosepo.data.prompts import PromptBuilder
from rosepo.lm.model.scratch import scratch_config, train_tokenizer

SHAPE = ScratchConfig(hidden_size=256, layers=8, heads=4, intermediate_size=1024, vocab_size=8192, split_words=True)
"""A Llama of 10.5 million parameters with tied embeddings; its tokenizer keeps words apart, as pretrained ones do."""
MAX_LENGTH = 512
_FIRST, _LAST, _WORDS = 1950, 2020, 12_000
_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ka", "le", "mi", "no", "ru", "sa", "te", "vi", "wo", "zan", "mor", "lin")


def titles(n: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """`n` distinct titles of four words and a year, words by Zipf's law, and how often each was chosen [n]."""
    random = np.random.default_rng(seed)
    parts = random.integers(len(_SYLLABLES), size=(_WORDS, 3))
    sizes = random.integers(1, 4, size=_WORDS)
    words = ["".join(_SYLLABLES[part] for part in row[:size]) for row, size in zip(parts, sizes, strict=True)]
    weights = 1 / np.arange(2, 2 + len(words))
    found: dict[str, None] = {}
    while len(found) < n:
        chosen = random.choice(len(words), size=4, p=weights / weights.sum())
        name = " ".join(words[word] for word in chosen).capitalize()
        found.setdefault(f"{name} ({random.integers(_FIRST, _LAST)})")
    counts = np.maximum(1, (20_000 / (1 + random.permutation(n))).astype(np.int64))
    return list(found), counts


def builder(n: int, seed: int = 0) -> PromptBuilder:
    """Prompts over `titles(n, seed)` with a tokenizer trained on them and the default template."""
    names, counts = titles(n, seed)
    template = TemplateConfig()
    return PromptBuilder(train_tokenizer(names, counts, SHAPE, template), names, template, MAX_LENGTH)


def model(vocabulary: int, seed: int = 0) -> LlamaForCausalLM:
    """A Llama of `SHAPE` with random float32 weights for so many tokens, in eval mode, on the CPU."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(scratch_config(SHAPE, vocabulary, MAX_LENGTH)).eval()
