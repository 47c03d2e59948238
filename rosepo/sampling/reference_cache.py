"""Reference log-probabilities on disk, found again by what they depend on.

An entry holds groups that were scored together. Its folder is named by the reference (weights, adapter, base and how it
is held, tokenizer, template, dtype), its file by the ids of the groups and the tokens of every prompt and completion:
a second run, another β or ε read it, and a model that has changed by one bit does not. How groups were put into
batches, and on what device, moves last bits alone and is no part of a name. Entries are never changed; the folder may
be deleted at any time.
"""

from __future__ import annotations

import hashlib
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.lm.model.model_folder import read_settings
from rosepo.utils.errors import StageError, UserError
from rosepo.utils.files import cache_folder, digest, file_digest

SETTING_KEYS = ("template", "max_length")
_MODEL_FILES = ("*.safetensors", "config.json", "adapter_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.*", "merges.txt")


@dataclass(frozen=True)
class ReferenceCache:
    """The entries of one reference model.

    Attributes:
        folder: of this model's entries; made when the first one is written.
    """

    folder: Path

    def key(
        self,
        ids: Sequence[str] | np.ndarray,
        prompts: Sequence[np.ndarray],
        completions: Sequence[Sequence[np.ndarray]],
    ) -> str:
        """Content of an entry: the id and every token of its groups, in order."""
        sha = hashlib.sha256()
        for name, prompt, group in zip(ids, prompts, completions, strict=True):
            sha.update(f"{name}\n".encode())
            sizes = np.array([len(prompt), len(group), *(len(ids) for ids in group)], dtype="<i4")
            for part in (sizes, np.asarray(prompt, dtype="<i4"), *(np.asarray(ids, dtype="<i4") for ids in group)):
                sha.update(part.tobytes())
        return sha.hexdigest()[:32]

    def path(self, key: str) -> Path:
        """File of an entry."""
        return self.folder / key[:2] / f"{key}.parquet"

    def read(self, key: str, ids: Sequence[str] | np.ndarray) -> np.ndarray | None:
        """The log-probabilities float32 [N, 1 + K] of an entry, None where there is none.

        Args:
            key: of the content.
            ids: the N examples in order.

        Raises:
            UserError: the file has lost or gained rows, or holds something else.
        """
        path = self.path(key)
        if not path.exists():
            return None
        remedy = "delete the file, and it will be computed again"
        try:
            table = pq.read_table(path, partitioning=None)
            logps = table["ref_logps"].combine_chunks()
            values = np.asarray(logps.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
            found = table["example_id"].to_numpy()
        except (pa.ArrowException, OSError, KeyError) as error:
            raise UserError(f"reference cache {path} cannot be read ({error}): {remedy}") from error
        if not np.array_equal(found, np.asarray(ids, dtype=object)):
            missing, extra = set(ids) - set(found), set(found) - set(ids)
            what = (
                f"misses example {min(missing)} and {len(missing) - 1} others" if missing
                else f"holds example {min(extra)} and {len(extra) - 1} others that were not asked for" if extra
                else "has its rows in another order, or twice"
            )  # fmt: skip
            raise UserError(f"reference cache {path} {what}: {remedy}")
        if len(values) % len(found) or not np.isfinite(values).all():
            raise UserError(
                f"reference cache {path} holds numbers that are not finite, or groups of many sizes: {remedy}"
            )
        return values.reshape(len(found), -1)

    def write(self, key: str, ids: Sequence[str] | np.ndarray, logps: np.ndarray) -> None:
        """Keep the log-probabilities float32 [N, 1 + K] of an entry, whole or not at all.

        Raises:
            StageError: the disk is full, or the folder cannot be written to any more.
        """
        path = self.path(key)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(logps.ravel(), pa.float32()), logps.shape[1])
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({"example_id": pa.array(ids, pa.string()), "ref_logps": lists}), aside)
            aside.replace(path)
        except OSError as error:
            raise StageError(
                f"the reference cache {self.folder} cannot be written to ({error.strerror or error}): free some space, "
                "give another pairs.reference_cache, or set it to no, and run the same command again"
            ) from error
        finally:
            aside.unlink(missing_ok=True)


def open_cache(setting: str, reference: Path, precision: str) -> ReferenceCache | None:
    """The cache of a reference model's folder, run in a precision, under `pairs.reference_cache`; None for `no`.

    Raises:
        UserError: the folder cannot be made.
    """
    if setting == "no":
        return None
    root = cache_folder() / "reference" if setting == "auto" else Path(setting).expanduser()
    folder = root.resolve() / reference_key(reference, precision)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"pairs.reference_cache={setting}: {folder} cannot be written to ({error.strerror}): give another folder, "
            "or set it to no"
        ) from error
    return ReferenceCache(folder)


def reference_key(folder: Path, precision: str) -> str:
    """Digest of everything but the groups that log-probabilities depend on.

    Args:
        folder: the reference's model folder; an adapter's base is looked at too.
        precision: float32 or bfloat16, of the weights in memory and their arithmetic.
    """
    settings = read_settings(folder)
    about: dict[str, Any] = {
        "model": _digests(folder, _MODEL_FILES),
        "tokenizer": _digests(folder, _TOKENIZER_FILES),
        "settings": {name: settings[name] for name in SETTING_KEYS},
        "quantize": settings.get("quantize", "none"),
        "dtype": precision,
    }
    if (folder / "adapter_config.json").exists():
        from rosepo.lm.model.adapters import adapter_base
        from rosepo.lm.model.model_source import find_source

        base, revision = adapter_base(find_source(str(folder)))
        local = Path(find_source(base, revision).path)
        # A model on the hub is its id and revision; on disk it is what it holds.
        about["base"] = _digests(local, _MODEL_FILES) if local.is_dir() else [base, revision]
    return digest(about)


def _digests(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return {path.name: file_digest(path) for path in files}
