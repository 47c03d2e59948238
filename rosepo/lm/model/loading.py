"""Loading causal LMs and tokenizers from folders and the hub: safetensors alone, and never code from a repository."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerBase

from rosepo.lm.model.adapters import adapter_base, with_adapter
from rosepo.lm.model.model_source import FAULTS, Source, find_source
from rosepo.lm.model.quantized import quantization_config, saved_quantization
from rosepo.utils.console import echo
from rosepo.utils.errors import StageError, UserError, said


def load_tokenizer(path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, hub id or adapter (its own, or else its base's), padding on the right.

    Without a padding token the EOS token pads, in memory only: padding is masked everywhere, so nothing depends on it.

    Raises:
        UserError: no tokenizer there, one that needs code of its own, or one without an EOS token.
    """
    source = find_source(str(path), revision)
    if source.adapter and source.files is not None and "tokenizer_config.json" not in source.files:
        base = adapter_base(source)
        return load_tokenizer(base[0], base[1])
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, trust_remote_code=False, **source.options)
    except FAULTS as error:
        raise UserError(f"model.path={path} has no tokenizer that can be loaded: {said(error)}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of model.path={path} has no EOS token, which ends every title: use another model"
        )
    if tokenizer.pad_token_id is None:
        echo(f"the tokenizer of {path} has no padding token: the EOS token pads, where it is masked")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def save_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, titles: Sequence[str]) -> None:
    """Write a tokenizer beside a model.

    Raises:
        StageError: what is read back from there is another one, by the first of the titles or by its chat template.
    """
    tokenizer.save_pretrained(folder)
    # AutoTokenizer goes by the model's type, and for some types rebuilds a tokenizer of its own from the files.
    sample, saved = list(titles[:1000]), load_tokenizer(folder)
    before, after = (made(sample, add_special_tokens=False)["input_ids"] for made in (tokenizer, saved))
    if before != after:
        title = next(title for title, old, new in zip(sample, before, after, strict=True) if old != new)
        raise StageError(f"the saved tokenizer reads {title!r} differently: its class does not suit the model's type")
    if saved.chat_template != tokenizer.chat_template:
        raise StageError("the saved tokenizer has lost its chat template: its class does not suit the model's type")


def load_policy(
    path: str | Path,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    trainable: bool = False,
    quantize: str = "none",
    compute_dtype: torch.dtype | None = None,
) -> Any:
    """A causal LM in eval mode on the CPU: a `PreTrainedModel`, or a `PeftModel` for an adapter, not merged.

    An adapter that was trained on a quantized base gets that base again, on the GPU where there is one.

    Args:
        path: model folder, adapter folder or hub id.
        revision: branch, tag or commit on the hub.
        dtype: of the weights in memory.
        trainable: let an adapter's weights take gradients; without an effect on whole models, whose weights all do.
        quantize: of a whole model: none, nf4 or int8; see `quantization_config`.
        compute_dtype: that nf4 weights are multiplied in; None takes `dtype`.

    Raises:
        UserError: not a model that can be loaded, one whose weights are incomplete, or no bitsandbytes.
    """
    source = find_source(str(path), revision)
    if source.adapter:
        base, base_revision = adapter_base(source)
        held = saved_quantization(source.path)
        try:
            base_model = load_policy(base, base_revision, dtype, quantize=held, compute_dtype=compute_dtype)
        except UserError as error:
            raise UserError(f"the adapter model.path={source.path} needs its base model: {error}") from error
        adapted = with_adapter(base_model, source, trainable)
        for parameter in adapted.parameters():  # PEFT holds it in float32 on a base in bfloat16; no engine does
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        return adapted
    load_model_config(source)
    options = dict(source.options)
    if quantize != "none":
        options["quantization_config"] = quantization_config(quantize, compute_dtype or dtype)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except FAULTS as error:
        raise UserError(f"model.path={path} cannot be loaded as a causal language model: {said(error)}") from error
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(f"model.path={path} lacks {len(missing)} weights of its own architecture, {missing[0]} for one")
    # An adapter's base is what was asked for; PEFT takes it from the model itself.
    model.name_or_path = model.config.name_or_path = str(source.given)
    return model.eval()


def load_model_config(source: Source) -> Any:
    """The Transformers config of a whole model.

    Raises:
        UserError: not readable, needs code of its own, or not a causal LM (encoders that Transformers loads as one
            included).
    """
    try:
        config = AutoConfig.from_pretrained(source.path, trust_remote_code=False, **source.options)
    except FAULTS as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model.path={source.path} needs code from its repository, which rosepo never runs: use a model that"
                " Transformers knows itself"
            ) from error
        raise UserError(f"model.path={source.path}: its config cannot be read: {said(error)}") from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UserError(f"model.path={source.path} is a {config.model_type}, which is not a causal language model")
    if _sees_ahead(config):
        raise UserError(
            f"model.path={source.path} is a {config.model_type} whose tokens attend to the ones after them, so that it"
            " would be shown the titles that it has to predict: use a decoder, such as a Llama or a Qwen"
        )
    return config


def _sees_ahead(config: Any) -> bool:
    """Whether a config that `AutoModelForCausalLM` takes is that of an encoder, with attention in both directions."""
    settings = config.get_text_config(decoder=True)
    # Gemma 4 writes "vision" where only the tokens of an image attend to later ones.
    bidirectional = getattr(settings, "use_bidirectional_attention", False) in (True, "all")
    if bidirectional or not getattr(settings, "is_causal", True) or settings.model_type == "xlnet":
        return True
    # Some decoders (GPT-NeoX) leave is_decoder false too: it says something of families of masked models alone.
    encoder = type(settings) in AutoModelForMaskedLM._model_mapping and not settings.is_encoder_decoder
    return encoder and not (getattr(settings, "is_decoder", False) or getattr(settings, "causal", False))
