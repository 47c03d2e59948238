"""Loading causal LMs and tokenizers from folders and the hub: safetensors alone, and never code from a repository."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerBase

from rosepo.lm.model.quantized import quantization_config, saved_quantization
from rosepo.utils.console import echo
from rosepo.utils.errors import UserError

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_HUB_TIMEOUT = 10.0
# What Transformers and PEFT raise for files that are missing, broken or of a kind that they do not know.
_FAULTS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a folder or a hub id, a whole model or an adapter."""

    path: str
    revision: str | None
    files: frozenset[str] | None
    """Names of its files; None for a hub model that is only in the local cache."""
    adapter: bool
    offline: bool

    @property
    def options(self) -> dict[str, Any]:
        """Arguments for `from_pretrained`."""
        return {"revision": self.revision or "main", "local_files_only": self.offline}


def find_source(path: str, revision: str | None = None) -> Source:
    """Look at a folder or at the hub without loading anything.

    Raises:
        UserError: neither a folder nor reachable on the hub; a folder without a config; weights only as pickle.
    """
    folder = Path(path).expanduser()
    if folder.exists():
        if not folder.is_dir():
            raise UserError(f"model.path={path} is a file: give the folder that holds config.json and the weights")
        source = Source(str(folder), None, frozenset(entry.name for entry in folder.iterdir()), False, True)
    else:
        source = _hub_source(path, revision)
    if source.files is None:
        return source
    adapter = "adapter_config.json" in source.files
    if not adapter and "config.json" not in source.files:
        raise UserError(
            f"model.path={path} has no config.json: give a Transformers model (config.json, model.safetensors,"
            " tokenizer files) or a PEFT adapter (adapter_config.json, adapter_model.safetensors)"
        )
    if not any(name.endswith(".safetensors") for name in source.files):
        pickled = sorted(name for name in source.files if name.endswith(_PICKLED))
        found = f"only {pickled[0]}, which can run code when it is read" if pickled else "no weights"
        raise UserError(
            f"model.path={path} holds {found}: rosepo reads safetensors alone, which save_pretrained of a current"
            " Transformers writes"
        )
    return Source(source.path, source.revision, source.files, adapter, source.offline)


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
    except _FAULTS as error:
        raise UserError(f"model.path={path} has no tokenizer that can be loaded: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of model.path={path} has no EOS token, which ends every title: use another model"
        )
    if tokenizer.pad_token_id is None:
        echo(f"the tokenizer of {path} has no padding token: the EOS token pads, where it is masked")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


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
        return _load_adapter(source, dtype, trainable, compute_dtype)
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
    except _FAULTS as error:
        raise UserError(
            f"model.path={path} cannot be loaded as a causal language model: {_first_line(error)}"
        ) from error
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(f"model.path={path} lacks {len(missing)} weights of its own architecture, {missing[0]} for one")
    return model.eval()


def load_model_config(source: Source) -> Any:
    """The Transformers config of a whole model.

    Raises:
        UserError: not readable, needs code of its own, or not a causal LM (encoders that Transformers loads as one
            included).
    """
    try:
        config = AutoConfig.from_pretrained(source.path, trust_remote_code=False, **source.options)
    except _FAULTS as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model.path={source.path} needs code from its repository, which rosepo never runs: use a model that"
                " Transformers knows itself"
            ) from error
        raise UserError(f"model.path={source.path}: its config cannot be read: {_first_line(error)}") from error
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


def adapter_base(source: Source) -> tuple[str, str | None]:
    """Path or hub id, and revision, of the model that an adapter was trained on."""
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(source.path, **source.options)
    except (*_FAULTS, TypeError) as error:
        raise UserError(
            f"model.path={source.path}: adapter_config.json cannot be read: {_first_line(error)}"
        ) from error
    if not config.base_model_name_or_path:
        raise UserError(f"model.path={source.path}: adapter_config.json does not name base_model_name_or_path")
    return config.base_model_name_or_path, config.revision


def _load_adapter(source: Source, dtype: torch.dtype, trainable: bool, compute_dtype: torch.dtype | None) -> Any:
    from peft import PeftModel

    base, revision = adapter_base(source)
    try:
        base_model = load_policy(
            base, revision, dtype, quantize=saved_quantization(source.path), compute_dtype=compute_dtype
        )
    except UserError as error:
        raise UserError(f"the adapter model.path={source.path} needs its base model: {error}") from error
    try:
        model = PeftModel.from_pretrained(base_model, source.path, is_trainable=trainable, **source.options)
    except _FAULTS as error:
        raise UserError(
            f"the adapter model.path={source.path} does not fit its base {base}: {_first_line(error)}"
        ) from error
    return model.eval()


def _hub_source(path: str, revision: str | None) -> Source:
    lost = UserError(
        f"model.path={path} is neither a model folder nor reachable on the hub: give an existing folder, or the id of a"
        " model on huggingface.co (log in with `hf auth login` for private and gated ones)"
    )
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise lost
    try:
        info = HfApi().model_info(path, revision=revision, timeout=_HUB_TIMEOUT)
        files = frozenset(sibling.rfilename for sibling in info.siblings or ())
        return Source(path, revision, files, False, False)
    except HFValidationError as error:
        raise lost from error
    except Exception as error:  # the errors of the HTTP client below the hub's library are its own affair
        # Without a connection a model that was downloaded earlier still does.
        for name in ("adapter_config.json", "config.json"):
            if isinstance(try_to_load_from_cache(path, name, revision=revision), str):
                return Source(path, revision, None, name == "adapter_config.json", True)
        raise lost from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
