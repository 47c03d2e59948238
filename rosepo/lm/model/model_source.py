"""Where models are: a folder or a hub id, looked at without loading anything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError

from rosepo.lm.model.gguf import gguf_file, plain_folder
from rosepo.utils.errors import UserError

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_HUB_TIMEOUT = 10.0
FAULTS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
"""What Transformers and PEFT raise for files that are missing, broken or of a kind that they do not know."""


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a folder or a hub id, a whole model or an adapter."""

    path: str
    given: str
    """The path that was asked for, which is another one where that is a GGUF file."""
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
        file = gguf_file(folder)
        if file is not None:
            folder = plain_folder(file)
        elif not folder.is_dir():
            raise UserError(
                f"model.path={path} is a file: give the folder that holds config.json and the weights, or a .gguf file"
            )
        source = Source(str(folder), path, None, frozenset(entry.name for entry in folder.iterdir()), False, True)
    else:
        source = _hub_source(path, revision)
    if source.files is None:
        return source
    adapter = "adapter_config.json" in source.files
    if not adapter and "config.json" not in source.files:
        raise UserError(
            f"model.path={path} has no config.json: give a Transformers model (config.json, model.safetensors,"
            " tokenizer files), a PEFT adapter (adapter_config.json, adapter_model.safetensors) or a GGUF file"
        )
    if not any(name.endswith(".safetensors") for name in source.files):
        pickled = sorted(name for name in source.files if name.endswith(_PICKLED))
        found = f"only {pickled[0]}, which can run code when it is read" if pickled else "no weights"
        raise UserError(
            f"model.path={path} holds {found}: rosepo reads safetensors alone, which save_pretrained of a current"
            " Transformers writes"
        )
    return replace(source, adapter=adapter)


def _hub_source(path: str, revision: str | None) -> Source:
    remedy = (
        "unset HF_HUB_OFFLINE, which keeps to models that were downloaded before, or give an existing folder"
        if constants.HF_HUB_OFFLINE
        else "give an existing folder, or the id of a model on huggingface.co (log in with `hf auth login` for private"
        " and gated ones)"
    )
    lost = UserError(f"model.path={path} is neither a model folder nor reachable on the hub: {remedy}")
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise lost
    try:
        info = HfApi().model_info(path, revision=revision, timeout=_HUB_TIMEOUT)
        files = frozenset(sibling.rfilename for sibling in info.siblings or ())
        return Source(path, path, revision, files, False, False)
    except HFValidationError as error:
        raise lost from error
    except Exception as error:  # the errors of the HTTP client below the hub's library are its own affair
        # Without a connection a model that was downloaded earlier still does.
        for name in ("adapter_config.json", "config.json"):
            if isinstance(try_to_load_from_cache(path, name, revision=revision), str):
                return Source(path, path, revision, None, name == "adapter_config.json", True)
        raise lost from error
