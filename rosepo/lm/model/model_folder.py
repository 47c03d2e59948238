"""Finished model folders: a Hugging Face model (or PEFT adapter) that also knows its catalogue and its template.

config.json, model.safetensors, generation_config.json      or adapter_config.json, adapter_model.safetensors
tokenizer.json, tokenizer_config.json, README.md
rosepo.json          template, max_length, max_history, base, revision, quantize, stage
catalogue.parquet    the items that it recommends from
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerBase

import rosepo
from rosepo.config import ModelConfig, TemplateConfig
from rosepo.config.root import NO_END
from rosepo.data.catalogue import Catalogue
from rosepo.data.prompts import PromptBuilder
from rosepo.lm.cards.card import model_card
from rosepo.lm.cards.record import ModelRecord
from rosepo.lm.cards.usage import chat_use
from rosepo.lm.model.loading import load_policy, load_tokenizer, save_tokenizer
from rosepo.lm.model.quantized import SETTINGS, quantization_of
from rosepo.utils.errors import StageError, UserError

CATALOGUE = "catalogue.parquet"


@dataclass(frozen=True)
class Recommender:
    """A finished model and everything that it needs to recommend."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    builder: PromptBuilder
    catalogue: Catalogue
    max_history: int
    """Newest items of a history that it was trained to read."""


def load_recommender(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    catalogue: Catalogue | None = None,
    serving: Callable[[str, int], Any] | None = None,
) -> Recommender:
    """The recommender of a folder that `save_policy` wrote; the model in eval mode, on the CPU, or served.

    Args:
        catalogue: what it recommends from: the folder's own items and those that were added behind them; None for the
            folder's own.
        serving: of the folder and the tokens of the longest prompt with its title a model that runs elsewhere, see
            `rosepo.lm.serving.server.Serving`; None loads it into this process.

    Raises:
        UserError: no such folder, not one of rosepo's, or added titles that the model cannot spell.
    """
    tokenizer, builder, catalogue = _without_model(Path(folder), catalogue)
    longest = int(read_settings(folder)["max_history"])
    if serving is None:
        model = load_policy(folder, dtype=dtype)
    else:
        model = serving(str(Path(folder).resolve()), builder.max_length)
    return Recommender(model, tokenizer, builder, catalogue, longest)


def load_builder(folder: str | Path, catalogue: Catalogue | None = None) -> PromptBuilder:
    """The prompts of a folder that `save_policy` wrote, without its model.

    Args:
        catalogue: as of `load_recommender`.

    Raises:
        UserError: as `load_recommender`.
    """
    return _without_model(Path(folder), catalogue)[1]


def check_catalogue(folder: str | Path, catalogue: Catalogue, remedy: str) -> None:
    """Refuse a model folder of other items than the run's: an item index would mean another title to it.

    Raises:
        UserError: that, with what to do; or as `read_settings`.
    """
    read_settings(folder)
    theirs = Catalogue.load(Path(folder) / CATALOGUE)
    if not catalogue.same_items(theirs):
        raise UserError(
            f"the model in {folder} was trained on another catalogue ({len(theirs):,} items, the run has "
            f"{len(catalogue):,}): {remedy}"
        )


def _without_model(
    folder: Path, catalogue: Catalogue | None
) -> tuple[PreTrainedTokenizerBase, PromptBuilder, Catalogue]:
    settings = read_settings(folder)
    template = _template(settings)
    items = Catalogue.load(folder / CATALOGUE) if catalogue is None else catalogue
    if items.added and not template.end:
        raise UserError(f"titles cannot be added to what {folder} recommends: {NO_END}")
    tokenizer = load_tokenizer(folder)
    builder = PromptBuilder(tokenizer, items.titles, template, settings["max_length"])
    if builder.chat is None and template.chat != "no":
        raise UserError(
            f"{tokenizer.name_or_path} was trained with its chat template, which is no longer there: put "
            "chat_template.jinja back, or train the model again"
        )
    return tokenizer, builder, items


def _template(settings: Mapping[str, Any]) -> TemplateConfig:
    """The template in `rosepo.json`. A folder of before chat templates were used says nothing of them."""
    return TemplateConfig(**{"chat": "no", **settings["template"]})


def read_settings(folder: str | Path) -> dict[str, Any]:
    """What `rosepo.json` of a model folder holds.

    Raises:
        UserError: no folder, no such file in it, or one that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist: give the folder that sft or align wrote")
    for name in (SETTINGS, CATALOGUE):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}, so it is not a model that rosepo trained: give one of sft or align"
            )
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        _template(settings)
        return {**settings, "max_length": int(settings["max_length"]), "max_history": int(settings["max_history"])}
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise UserError(
            f"{folder / SETTINGS} cannot be read ({type(error).__name__}): train the model again"
        ) from error


def save_policy(
    folder: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    catalogue: Catalogue,
    record: ModelRecord,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    figures: Mapping[str, Any] | None = None,
) -> None:
    """Write a finished model into a folder, made if need be.

    Args:
        folder: where to.
        model: the causal LM or PEFT model, for its architecture; its weights count where no state_dict is given.
        tokenizer: its tokenizer.
        catalogue: what it recommends from.
        record: how it was made.
        state_dict: consolidated weights (of ZeRO-3, say) named as in ``model``, or as in a `LogpsModel` around it. For
            an adapter its own weights are enough.
        figures: rows of the model card's metrics.

    Raises:
        StageError: weights that are missing, empty or not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    builder = PromptBuilder(tokenizer, catalogue.titles, record.model.template, record.model.max_length)
    record = replace(record, model=record.model.model_copy(update={"template": builder.template}))
    adapter = getattr(model, "peft_type", None) is not None
    if adapter:
        _save_adapter(folder, model, record.model, state_dict)
    else:
        save_whole(folder, model, state_dict)
    ends = list(dict.fromkeys((builder.stop_id, builder.eos_id)))
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=builder.longest_completion,
    ).save_pretrained(folder)
    save_tokenizer(folder, tokenizer, catalogue.titles)
    catalogue.save(folder / CATALOGUE)
    quantize = quantization_of(model)
    settings = {
        "template": record.model.template.model_dump(),
        "max_length": record.model.max_length,
        "max_history": record.max_history,
        "base": record.model.path,
        "revision": record.model.revision,
        "quantize": quantize,
        "stage": record.stage,
        "version": rosepo.__version__,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    longest = builder.longest_completion
    card = model_card(
        record,
        catalogue,
        max_new_tokens=longest,
        adapter=adapter,
        quantize=quantize,
        figures=figures,
        chat=chat_use(builder, tokenizer, catalogue.titles),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def save_whole(folder: Path, model: Any, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write config and weights of a causal LM; as `save_policy`, which writes what goes with them too."""
    weights = _named_like(model, state_dict if state_dict is not None else model.state_dict())
    _check(weights)
    # A clean shell of the same architecture: no hooks, no partitioned parameters, and the weights' own dtype.
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(model.config)
    tied = set(getattr(shell, "all_tied_weights_keys", None) or {})
    missing, unexpected = shell.load_state_dict(weights, strict=False, assign=True)
    shell.tie_weights()
    lost = sorted(set(missing) - tied)
    if lost or unexpected:
        raise StageError(f"the trained weights do not fit their architecture: {(lost or unexpected)[0]} and more")
    shell.save_pretrained(folder)


def _save_adapter(folder: Path, model: Any, config: ModelConfig, state_dict: Mapping[str, torch.Tensor] | None) -> None:
    base = config.path
    settings = model.active_peft_config
    if base is not None and not settings.base_model_name_or_path:
        settings.base_model_name_or_path = base
    local = Path(settings.base_model_name_or_path or "").expanduser()
    if settings.base_model_name_or_path and local.exists():
        settings.base_model_name_or_path = str(local.resolve())
    elif config.lora is not None:
        settings.revision = config.revision
    weights = None if state_dict is None else _named_like(model, state_dict)
    # Without save_embedding_layers PEFT would ask the hub about the base's vocabulary, which nothing here resizes.
    model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        names = list(file.keys())
        saved = {name: file.get_tensor(name) for name in names}
    _check(saved)
    halves = {half: {name.replace(f"lora_{half}", "") for name in saved if f"lora_{half}" in name} for half in "AB"}
    expected = sum(".lora_A." in name or ".lora_embedding_A." in name for name, _ in model.named_parameters())
    if halves["A"] != halves["B"] or len(halves["A"]) != expected:
        raise StageError(
            f"the adapter has {expected} adapted layers, but {len(halves['A'])} A and {len(halves['B'])} B matrices"
            " came out"
        )


def _named_like(model: Any, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights under the model's own names: a wrapper's prefix is taken off."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    names |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    for prefix in ("", "module.", "model.", "module.model."):
        stripped = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        if len(stripped) == len(state_dict) and stripped.keys() <= names:
            return stripped
    raise StageError(f"the trained weights are not those of {type(model).__name__}: {next(iter(state_dict), 'none')}")


def _check(weights: Mapping[str, torch.Tensor]) -> None:
    if not weights:
        raise StageError("the trained model came out without weights")
    for name, value in weights.items():
        if value.numel() == 0:
            raise StageError(f"weight {name} came out empty: its parts were not gathered")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise StageError(f"weight {name} holds NaN or infinity: training diverged; lower the learning rate")
