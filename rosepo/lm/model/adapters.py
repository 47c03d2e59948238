"""Adapters (PEFT): the model that they were trained on, and all of their weights in its layers."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from rosepo.lm.model.model_source import FAULTS, Source
from rosepo.utils.errors import UserError, said


def adapter_base(source: Source) -> tuple[str, str | None]:
    """Path or hub id, and revision, of the model that an adapter was trained on."""
    config = _config(source)
    if not config.base_model_name_or_path:
        raise UserError(f"model.path={source.path}: adapter_config.json does not name base_model_name_or_path")
    return config.base_model_name_or_path, config.revision


def looks_at_base(source: Source) -> bool:
    """Whether an adapter may read or copy weights of its base as it is put on it; a plain LoRA does not."""
    config = _config(source)
    plain = _kind(config) == "LORA" and isinstance(config.init_lora_weights, bool)
    others = ("use_dora", "modules_to_save", "target_parameters", "trainable_token_indices", "layer_replication")
    return not plain or any(getattr(config, name, None) for name in others)


def saves_what_trains(module: nn.Module) -> bool:
    """Whether of a model, or of one inside a module, no more is saved than takes gradients: so it is of a LoRA."""
    adapted: Any = next((one for one in module.modules() if hasattr(one, "active_peft_config")), None)
    return adapted is not None and _kind(adapted.active_peft_config) == "LORA"


def _kind(config: Any) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))


def _config(source: Source) -> Any:
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(source.path, **source.options)
    except (*FAULTS, TypeError) as error:
        raise UserError(f"model.path={source.path}: adapter_config.json cannot be read: {said(error)}") from error


def with_adapter(model: Any, source: Source, trainable: bool) -> Any:
    """A model with the adapter of a folder or hub id on it, in eval mode, not merged.

    Raises:
        UserError: an adapter of another model, or one whose weights do not fill its layers.
    """
    from peft import PeftModel

    base = model.config.name_or_path
    try:
        adapted: Any = PeftModel.from_pretrained(
            model, source.path, is_trainable=trainable, torch_device="cpu", **source.options
        )
        missing, lost = _unfilled(adapted, source)
    except KeyError as error:
        missing, lost = [str(error.args[0])], []  # of a module that was trained whole, or of tokens that were
    except FAULTS as error:
        raise UserError(f"the adapter model.path={source.path} does not fit its base {base}: {said(error)}") from error
    faults = [f"has no weights for {len(missing)} parameters of its layers, {missing[0]} for one"] if missing else []
    faults += [f"has {len(lost)} weights that no layer of it takes, {lost[0]} for one"] if lost else []
    if faults:
        raise UserError(
            f"the adapter model.path={source.path} {' and '.join(faults)}, so that it would be its base {base} there: "
            "give an adapter and the base that it was trained on, saved by the same program"
        )
    return adapted.eval()


def check_adapter(source: Source, base: Any) -> None:
    """Refuse what `with_adapter` would, from the adapter's own files and the config of its base alone."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights that are copied to where nothing is kept
        with_adapter(model, source, trainable=False)


def _unfilled(adapted: Any, source: Source) -> tuple[list[str], list[str]]:
    """Names of an adapter's parameters that its files have no weights for, and of weights that nothing takes.

    PEFT throws the one away and says nothing of the other but to who loads an adapter a second time; such layers stay
    as they begin, and change nothing (https://github.com/huggingface/peft/issues/2566).
    """
    config = adapted.active_peft_config
    result = adapted.load_adapter(
        source.path,
        adapted.active_adapter,
        is_trainable=not config.inference_mode,
        torch_device="cpu",
        **source.options,
    )
    return sorted(result.missing_keys), [] if config.is_prompt_learning else sorted(result.unexpected_keys)
