"""The language model that becomes the recommender: how it starts, and what can be known of it without its weights.

Loading and saving live in `loading` and `folder`; their functions can be imported from here too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from rosepo.config import Config, LoraConfig, ModelConfig
from rosepo.data.catalogue import Catalogue
from rosepo.data.chat import chat_of
from rosepo.lm.model.adapters import adapter_base, check_adapter
from rosepo.lm.model.dropout import disable_dropout
from rosepo.lm.model.loading import load_model_config, load_policy, load_tokenizer
from rosepo.lm.model.model_folder import Recommender, load_recommender, read_settings, save_policy
from rosepo.lm.model.model_source import find_source
from rosepo.lm.model.quantized import check_quantization, saved_quantization
from rosepo.lm.model.scratch import scratch_config, scratch_model, train_tokenizer
from rosepo.utils.errors import UserError, said

__all__ = [
    "Recommender",
    "initial_policy",
    "load_policy",
    "load_recommender",
    "load_tokenizer",
    "read_settings",
    "save_policy",
    "validate_model",
]


def initial_policy(
    config: ModelConfig, catalogue: Catalogue, seed: int, compute_dtype: torch.dtype | None = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model that supervised fine-tuning starts from, float32 on the CPU, and its tokenizer.

    A function of its arguments. `compute_dtype`: of a quantized base, see `load_policy`.

    From scratch: a random Llama and a tokenizer trained on the catalogue. Otherwise the model of ``model.path``, with a
    fresh adapter where ``model.lora`` asks for one; an adapter that is given by path is trained on.
    Dropout of a scratch model is not in it: see `models.dropout`.

    Raises:
        UserError: a model that cannot be loaded, is too short for ``model.max_length``, lacks tokens of its tokenizer,
            or has no such LoRA targets.
    """
    if config.path is None:
        scratch = config.scratch_config
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(
            catalogue.titles, catalogue.train_count, scratch, config.template
        )
        return scratch_model(scratch, tokenizer, config.max_length, seed), tokenizer
    _check_adapter_use(config)
    tokenizer = load_tokenizer(config.path, config.revision)
    lora = config.lora
    model = load_policy(
        config.path,
        config.revision,
        trainable=True,
        quantize="none" if lora is None else lora.quantize,
        compute_dtype=compute_dtype,
        whole=lora is not None and lora.dora,  # which begins with the lengths of their rows
    )
    check_length(model.config, config)
    rows = len(model.get_input_embeddings().weight)
    if len(tokenizer) > rows:
        raise UserError(
            f"model.path={config.path}: the tokenizer has {len(tokenizer)} tokens, the model {rows} embeddings;"
            " they do not belong together"
        )
    if lora is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = add_adapter(model, lora)
    return model, tokenizer


def add_adapter(model: nn.Module, lora: LoraConfig) -> Any:
    """The model with a fresh LoRA adapter (Hu et al. 2021, arXiv 2106.09685), the only weights that train.

    Raises:
        UserError: target_modules that the model does not have.
    """
    import peft

    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a float does, whatever its annotation says
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
    )
    try:
        return peft.get_peft_model(model, settings)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(
            f"model.lora.target_modules={lora.target_modules!r} does not fit {type(model).__name__}: all-linear does"
            f" ({said(error)})"
        ) from error


def check_length(model_settings: Any, config: ModelConfig) -> None:
    """Refuse prompts that are longer than the model's positions.

    Raises:
        UserError: model.max_length above the model's own.
    """
    positions = max_positions(model_settings)
    if positions is not None and config.max_length > positions:
        raise UserError(
            f"model.max_length={config.max_length} is above the {positions} positions of {config.path}: lower it to"
            f" {positions}"
        )


def max_positions(model_settings: Any) -> int | None:
    """Longest sequence that a model's config allows; None where it names none."""
    positions = getattr(text_settings(model_settings), "max_position_embeddings", None)
    return None if positions is None else int(positions)


def text_settings(model_settings: Any) -> Any:
    """The part of a model's config that describes its language model: all of it, but for models of images and text."""
    return model_settings.get_text_config(decoder=True)


def validate_model(config: Config) -> dict[str, Any]:
    """What can be known of the model before any work, from its config and tokenizer alone; no weights are loaded.

    Returns:
        source, model_type, adapter ("none", "new" or "given"), parameters (of the base; for scratch an upper bound,
        since the catalogue may not fill the vocabulary), quantize, quantized_parameters (how many of them are),
        trainable_parameters (None for a given adapter), vocabulary, max_positions, max_length, hidden_size, layers,
        weights_dtype, shared_prefix.

    Raises:
        UserError: whatever `initial_policy` would refuse, weights of whole models that do not match their config
            excepted.
    """
    from rosepo.lm.rows.attention import SHARED_PREFIX_ARCHITECTURES, set_attention
    from rosepo.lm.rows.base_model import base_causal_lm

    model_config = config.model
    adapter = "none" if model_config.lora is None else "new"
    quantize = _quantization(model_config)
    check_quantization(quantize)
    obstacle = config.quantized_obstacle(quantize)
    if obstacle is not None:
        raise UserError(f"model.path={model_config.path} is an adapter on a base in {quantize}: {obstacle}")
    if model_config.path is None:
        scratch = model_config.scratch_config
        vocabulary = scratch.vocab_size + scratch.whole_titles
        settings: Any = scratch_config(scratch, vocabulary, model_config.max_length)
    else:
        settings, given = _settings_of(model_config)
        adapter = "given" if given else adapter
        check_length(settings, model_config)
        vocabulary = _vocabulary(model_config, settings)
    _check_whole(config, settings.model_type)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(settings)
        total = model.num_parameters()
        quantized = 0 if quantize == "none" else _in_linear_layers(model)
        if model_config.lora is not None:
            model = add_adapter(model, model_config.lora)
    for train in (config.sft, config.align):
        try:
            if train.section == "align":
                disable_dropout(model)
            set_attention(base_causal_lm(model), train.attention)
        except UserError as error:
            raise UserError(f"{train.section}.{error}") from error
    text, dtype = text_settings(settings), settings.dtype or text_settings(settings).dtype
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "source": model_config.path or "scratch",
        "model_type": settings.model_type,
        "adapter": adapter,
        "parameters": total,
        "quantize": quantize,
        "quantized_parameters": quantized,
        "trainable_parameters": trainable if adapter != "given" else None,
        "vocabulary": vocabulary,
        "max_positions": max_positions(settings),
        "max_length": model_config.max_length,
        "hidden_size": text.hidden_size,
        "layers": text.num_hidden_layers,
        "weights_dtype": str(dtype).removeprefix("torch.") if dtype else "float32",
        "shared_prefix": settings.model_type in SHARED_PREFIX_ARCHITECTURES,
    }


def _vocabulary(model: ModelConfig, settings: Any) -> int:
    """Tokens of the tokenizer of `model.path`; refuses one whose tokens the model has no embeddings for."""
    tokenizer = load_tokenizer(str(model.path), model.revision)
    chat_of(tokenizer, model.template)
    embeddings = text_settings(settings).vocab_size
    if len(tokenizer) > embeddings:
        raise UserError(
            f"model.path={model.path}: the tokenizer has {len(tokenizer)} tokens, the model"
            f" {embeddings} embeddings; they do not belong together"
        )
    return len(tokenizer)


def _check_whole(config: Config, model_type: str) -> None:
    """Refuse the oracle's whole distribution for a model whose rows cannot be shared."""
    from rosepo.lm.rows.attention import SHARED_PREFIX_ARCHITECTURES

    if config.learns_whole and model_type not in SHARED_PREFIX_ARCHITECTURES:
        raise UserError(
            f"pairs.oracle_whole=true takes rows that share their prompts, which models of type {model_type} cannot "
            f"(those that can: {', '.join(sorted(SHARED_PREFIX_ARCHITECTURES))}): leave it out"
        )


def _quantization(config: ModelConfig) -> str:
    """How the base is held: as asked for, or, for an adapter that is given, as it was."""
    if config.lora is not None:
        return config.lora.quantize
    return "none" if config.path is None else saved_quantization(config.path)


def _in_linear_layers(model: Any) -> int:
    """Parameters that bitsandbytes would hold in fewer bits: those of linear layers, but for the output layer."""
    head = model.get_output_embeddings()
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, Conv1D)) and module is not head]
    sizes: list[int] = [layer.weight.numel() for layer in layers]
    return sum(sizes)


def _settings_of(config: ModelConfig) -> tuple[Any, bool]:
    """The Transformers config of model.path (of its base, for an adapter), and whether it is an adapter."""
    assert config.path is not None
    _check_adapter_use(config)
    source = find_source(config.path, config.revision)
    if not source.adapter:
        return load_model_config(source), False
    settings = load_model_config(find_source(*adapter_base(source)))
    check_adapter(source, settings)
    return settings, True


def _check_adapter_use(config: ModelConfig) -> None:
    if config.lora is not None and find_source(str(config.path), config.revision).adapter:
        raise UserError(
            f"model.path={config.path} is an adapter already: leave model.lora out to train it on, or give its"
            " base model"
        )
