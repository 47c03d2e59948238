"""Small real parts for tests: a catalogue, tokenizers trained on it, random models of every supported family, tables
as a run has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from rosepo.config import ScratchConfig, TemplateConfig
from rosepo.data.catalogue import Catalogue
from rosepo.data.item_columns import INDEX
from rosepo.data.prompts import PromptBuilder
from rosepo.data.random import example_keys
from rosepo.lm.model.scratch import train_tokenizer
from rosepo.sampling.strategies.example_batch import Examples

FAMILIES = ("llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2",
            "smollm3", "gpt_neox", "gpt2")  # fmt: skip
ATTENTIONS = [
    (family, kind) for family in FAMILIES for kind in ("sdpa", "eager") if (family, kind) != ("gemma2", "sdpa")
]
"""Gemma 2 caps the scores of attention, which SDPA cannot."""

CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<|eos|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""A chat template for the scratch tokenizer."""

_WORDS = [
    "Night",
    "of the",
    "Blue",
    "River",
    "Return",
    "Last",
    "König",
    "千と千尋",
    "Love",
    "in Paris",
    "Cat's",
    "2049",
]


def tiny_catalogue(n: int = 30) -> Catalogue:
    """n items with ids 100, 101, …, distinct titles of one to four words, two categories and falling counts."""
    titles = []
    for index in range(n):
        words = [_WORDS[(index * step + index) % len(_WORDS)] for step in range(1, 2 + index % 3)]
        titles.append(" ".join([*words, f"({1980 + index})"]))
    return Catalogue(
        item_ids=np.arange(100, 100 + n),
        titles=titles,
        categories=[("Drama",) if index % 2 else ("Comedy", "Drama") for index in range(n)],
        train_count=np.array([1 + 40 // (1 + index) for index in range(n)], dtype=np.int64),
    )


ITEM_COLUMNS = {
    **dict.fromkeys(("target", "chosen_item"), INDEX),
    **dict.fromkeys(("history", "candidates", "items", "rejected_items"), pa.list_(INDEX)),
}


def run_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """A table of a run from its rows: items are item indexes, int32."""
    table = pa.Table.from_pylist(list(rows))
    for name in set(table.column_names) & set(ITEM_COLUMNS):
        table = table.set_column(table.column_names.index(name), name, table[name].cast(ITEM_COLUMNS[name]))
    return table


def examples_of(
    ids: Sequence[str],
    histories: Sequence[np.ndarray],
    targets: np.ndarray,
    n_items: int,
    prompts: Sequence[np.ndarray] | None = None,
    seen: Sequence[np.ndarray] | None = None,
) -> Examples:
    """A batch of examples, each of a user of its own; `seen` where histories were cut."""
    names = np.array(ids, dtype=object)
    lists = (_flat(histories), _flat(histories if seen is None else seen))
    targets = np.asarray(targets, dtype=np.int64)
    return Examples(names, example_keys(names), names, *lists[0], *lists[1], targets, n_items, prompts=prompts)


def _flat(lists: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    items = np.concatenate([np.zeros(0, dtype=np.int64), *lists]).astype(np.int64, copy=False)
    return items, np.cumsum([0, *(len(part) for part in lists)])


def with_candidates(table: pa.Table, lists: Sequence[Sequence[int]]) -> pa.Table:
    """Examples with lists of candidates, item indexes."""
    return table.append_column("candidates", pa.array(lists, pa.list_(INDEX)))


def tiny_tokenizer(n: int = 30, vocab_size: int = 400, whole: bool = False) -> PreTrainedTokenizerFast:
    """The scratch tokenizer of `tiny_catalogue(n)`; with `whole` every title is one of its tokens."""
    catalogue, titles = tiny_catalogue(n), n if whole else 0
    config = ScratchConfig(vocab_size=vocab_size - titles, whole_titles=titles)
    return train_tokenizer(catalogue.titles, catalogue.train_count, config)


def tiny_builder(
    n: int = 30,
    template: TemplateConfig | None = None,
    max_length: int = 256,
    vocab_size: int = 400,
    whole: bool = False,
    chat: bool = False,
) -> PromptBuilder:
    """Prompts over `tiny_catalogue(n)` with `tiny_tokenizer(n)`; with `chat` that has a chat template."""
    tokenizer = tiny_tokenizer(n, vocab_size, whole)
    tokenizer.chat_template = CHAT if chat else None
    return PromptBuilder(tokenizer, tiny_catalogue(n).titles, template or TemplateConfig(), max_length)


def tiny_model(
    family: str = "llama", vocab_size: int = 400, max_length: int = 256, seed: int = 0, **changes: Any
) -> PreTrainedModel:
    """A random float32 model in eval mode: two layers of width 32, grouped key-value heads where the family has them.

    Weights are drawn wide, so that attention and positions matter to the result.
    """
    if family == "gpt2":
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": max_length}
    else:
        shape = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": max_length,
        }
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    settings = {"vocab_size": vocab_size, "initializer_range": 0.2, **shape, **special, **changes}
    config = AutoConfig.for_model(family, **settings)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
