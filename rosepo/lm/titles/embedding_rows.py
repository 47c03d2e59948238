"""Some rows of a model's input embeddings, read out of its files: whoever needs no more loads no model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from rosepo.lm.model.adapters import adapter_base
from rosepo.lm.model.loading import load_model_config, load_policy
from rosepo.lm.model.model_source import Source, find_source

_WEIGHTS, _INDEX, _ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"


def embedding_rows(path: str | Path, tokens: Tensor, revision: str | None = None) -> Tensor:
    """Input embeddings float32 [n, d] of tokens int64 [n], up to a factor that some families put on all of them.

    Of the files no more than these rows is read. A model whose embeddings are not one tensor of its
    files, or are changed by its adapter, is loaded whole.

    Args:
        path: model folder, adapter folder or hub id.

    Raises:
        UserError: as `load_policy`.
    """
    source = base = find_source(str(path), revision)
    if source.adapter:
        base = find_source(*adapter_base(source))
    shape, layer = _shape_and_layer(base)
    if not (source.adapter and _touches(source, layer)):
        for file, name in _candidates(base, f"{layer}.weight"):
            with safe_open(file, "pt") as tensors:
                table = tensors.get_slice(name)
                if tuple(table.get_shape()) == shape:
                    return torch.stack([table[token] for token in tokens.tolist()]).float()
    with torch.inference_mode():
        # The layer itself, not its weight: an adapter may add to it.
        embedded: Tensor = load_policy(path, revision).get_input_embeddings()(tokens)
    return embedded.float()


def _shape_and_layer(source: Source) -> tuple[tuple[int, ...], str]:
    """Of the input embeddings: their shape, and the last part of their layer's name."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_model_config(source))
    layer = model.get_input_embeddings()
    return tuple(layer.weight.shape), next(name for name, one in model.named_modules() if one is layer).split(".")[-1]


def _touches(source: Source, layer: str) -> bool:
    """Whether an adapter has weights for a layer."""
    file = _file(source, _ADAPTER)
    if file is None:
        return True
    with safe_open(file, "pt") as tensors:
        names = tensors.keys()
    return any(layer in name.split(".") for name in names)


def _candidates(source: Source, ending: str) -> list[tuple[str, str]]:
    """Files and names of the tensors that end so: the same model is saved with and without its outermost name."""
    if index := _file(source, _INDEX):
        places: dict[str, str] = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
    elif file := _file(source, _WEIGHTS):
        with safe_open(file, "pt") as tensors:
            places = dict.fromkeys(tensors.keys(), _WEIGHTS)
    else:
        return []
    found = [(_file(source, file), name) for name, file in places.items() if f".{name}".endswith(f".{ending}")]
    return [(file, name) for file, name in found if file is not None] if len(found) == 1 else []


def _file(source: Source, name: str) -> str | None:
    """A file of a model folder or hub id on this machine; None where there is none."""
    folder = Path(source.path)
    if folder.is_dir():
        return str(folder / name) if (folder / name).is_file() else None
    try:
        return hf_hub_download(source.path, name, revision=source.revision, local_files_only=source.offline)
    except (EntryNotFoundError, OSError):
        return None
