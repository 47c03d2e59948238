"""Base models of adapters in four or eight bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314), by bitsandbytes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch

from rosepo.utils.errors import UserError

SETTINGS = "rosepo.json"
"""File of a model folder whose key `quantize` says how the base of its adapter is held."""


def check_quantization(quantize: str) -> None:
    """Refuse what needs a library that is not there.

    Raises:
        UserError: naming it.
    """
    if quantize != "none" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.lora.quantize={quantize} needs bitsandbytes, which is not installed: pip install bitsandbytes, or"
            " leave model.lora.quantize out"
        )


def quantization_config(quantize: str, compute_dtype: torch.dtype) -> Any:
    """What `from_pretrained` takes: nf4 or int8 weights in all linear layers but the output layer.

    Args:
        compute_dtype: that nf4 weights are multiplied in. int8 has its own arithmetic.

    Raises:
        UserError: no bitsandbytes.
    """
    from transformers import BitsAndBytesConfig

    check_quantization(quantize)
    if quantize == "int8":
        # Above a threshold, columns are kept apart by what the whole batch holds in them: a row's result would depend
        # on the rows beside it.
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def quantization_of(model: Any) -> str:
    """none, nf4 or int8: how the weights of a model, or of an adapter's base, are held."""
    unwrap = getattr(model, "get_base_model", None)
    settings = getattr((model if unwrap is None else unwrap()).config, "quantization_config", None)
    if settings is None:
        return "none"
    return "int8" if settings.load_in_8bit else "nf4"


def saved_quantization(folder: str) -> str:
    """How the base of the adapter in a folder was held when it was trained; none where nothing says so."""
    path = Path(folder) / SETTINGS
    if not path.is_file():
        return "none"
    return str(json.loads(path.read_text(encoding="utf-8")).get("quantize", "none"))
