"""An adapter written into its base: a whole model, for programs that know no PEFT."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rosepo.data.catalogue import Catalogue
from rosepo.lm.cards.card import merged_card
from rosepo.lm.cards.usage import chat_use
from rosepo.lm.model.adapters import adapter_base
from rosepo.lm.model.loading import load_model_config, load_policy, load_tokenizer
from rosepo.lm.model.model_folder import CATALOGUE, load_builder, save_whole
from rosepo.lm.model.model_source import find_source
from rosepo.lm.model.quantized import SETTINGS, saved_quantization
from rosepo.utils.errors import UserError

_CARD = "README.md"


def merge_adapter(path: str, folder: Path) -> dict[str, Any]:
    """Write the model of an adapter as a whole one, in the precision of its base.

    Weights are added in float32 and rounded once. What rosepo keeps beside an adapter (template, catalogue, card) goes
    with it, so that the folder is one that `recommend` and `evaluate` take.

    Args:
        path: folder or hub id of a PEFT adapter.
        folder: an empty folder, made if need be.

    Returns:
        `base`, `parameters` and `dtype` of the model.

    Raises:
        UserError: no adapter, one on a base that was held in fewer bits, or one that cannot be written into weights.
    """
    source = find_source(path)
    if not source.adapter:
        raise UserError(f"--model {path} is a whole model already: give an adapter's folder")
    held = saved_quantization(source.path)
    if held != "none":
        raise UserError(
            f"--model {path} was trained on a base held in {held}, and fits no other: weights in which the two are one "
            "would be those of another model; use it as an adapter"
        )
    adapted = load_policy(path)
    if adapted.active_peft_config.is_prompt_learning:
        raise UserError(
            f"--model {path} learnt tokens before the prompt, which weights cannot hold: use it as an adapter"
        )
    base, revision = adapter_base(source)
    dtype = load_model_config(find_source(base, revision)).dtype or torch.float32
    model = adapted.merge_and_unload(safe_merge=True)
    save_whole(folder, model.to(dtype))
    model.generation_config.save_pretrained(folder)
    tokenizer = load_tokenizer(path)
    tokenizer.save_pretrained(folder)
    if (Path(source.path) / SETTINGS).is_file():
        _take_along(Path(source.path), folder, tokenizer)
    return {"base": base, "parameters": model.num_parameters(), "dtype": str(dtype).removeprefix("torch.")}


def _take_along(adapter: Path, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """What is rosepo's in an adapter's folder."""
    for name in ("generation_config.json", CATALOGUE, SETTINGS):
        shutil.copyfile(adapter / name, folder / name)
    builder, card = load_builder(adapter), (adapter / _CARD).read_text(encoding="utf-8")
    catalogue = Catalogue.load(adapter / CATALOGUE)
    chat = chat_use(builder, tokenizer, catalogue.titles)
    card = merged_card(card, builder.template, catalogue, builder.longest_completion, chat)
    (folder / _CARD).write_text(card, encoding="utf-8")
