"""Models of llama.cpp in one file, made into the ordinary folder of safetensors that all else reads."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rosepo.utils.console import echo
from rosepo.utils.errors import UserError, said
from rosepo.utils.files import cache_folder, digest

SUFFIX = ".gguf"


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one of a folder without a config; None where it means none.

    Raises:
        UserError: a folder of several.
    """
    if path.is_file():
        return path if path.suffix == SUFFIX else None
    if any((path / name).exists() for name in ("config.json", "adapter_config.json")):
        return None
    found = sorted(path.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        raise UserError(f"model.path={path} holds {len(found)} GGUF files, {found[0].name} for one: give one of them")
    return found[0] if found else None


def plain_folder(file: Path) -> Path:
    """The model folder of a GGUF file: made once, and kept in the user's cache, which may be deleted at any time.

    Weights are unpacked into float16, which holds every quantized one as exactly as the file does; bfloat16 and float32
    stay what they are. Files are known by path, size and time of their last change.

    Raises:
        UserError: the library `gguf` is not installed, the cache cannot be written to, or the file is not a model that
            Transformers reads.
    """
    file = file.resolve()
    facts = file.stat()
    folder = cache_folder() / "models" / f"{file.stem}-{digest([str(file), facts.st_size, facts.st_mtime_ns])[:16]}"
    if folder.exists():
        return folder
    try:
        import gguf  # noqa: F401  # Transformers asks for it after some minutes
    except ImportError as error:
        raise UserError(f"model.path={file} needs the library gguf: pip install 'rosepo[gguf]'") from error
    echo(f"  {file.name} is made into a model folder, once: {folder}")
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        aside.mkdir(parents=True)
        _convert(file, aside)
        _take_place(aside, folder)
    except OSError as error:
        raise UserError(f"model.path={file} cannot be made into a folder at {folder}: {said(error)}") from error
    except (ValueError, KeyError, RuntimeError, IndexError) as error:
        raise UserError(f"model.path={file} is not a GGUF model that Transformers reads: {said(error)}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _take_place(aside: Path, folder: Path) -> None:
    try:
        aside.rename(folder)
    except OSError:
        if not folder.exists():  # another process was faster
            raise


def _convert(file: Path, folder: Path) -> None:
    where: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    dtype = _dtype(file)
    packed = AutoModelForCausalLM.from_pretrained(file.parent, dtype=dtype, **where, **_unpacking(file.name))
    config = AutoConfig.from_pretrained(file.parent, **where)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = dtype
    # A model that came out of a quantized file refuses to be saved.
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(packed.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, **where).save_pretrained(folder)


def _unpacking(name: str) -> dict[str, Any]:
    """Later versions of Transformers keep weights packed where they have kernels for them."""
    import transformers

    kind = getattr(transformers, "GgufConfig", None)
    return {} if kind is None else {"quantization_config": kind(gguf_file=name, dequantize=True)}


def _dtype(file: Path) -> torch.dtype:
    """Of the largest tensor: matrices are of one kind, vectors mostly float32."""
    from gguf import GGMLQuantizationType, GGUFReader

    largest = max(GGUFReader(str(file)).tensors, key=lambda tensor: int(tensor.n_elements))
    exact = {GGMLQuantizationType.F32: torch.float32, GGMLQuantizationType.BF16: torch.bfloat16}
    return exact.get(largest.tensor_type, torch.float16)
