"""What the data files hold, as short digests: how the pipeline notices that a log has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from rosepo.config import DataConfig
from rosepo.data.readers.interactions import plan_reading
from rosepo.data.readers.sources import Source, filesystem

HASHED_BYTES = 1 << 30
"""Files up to this size are known by their content, larger ones by size and time of change: to read 100 GB only to
learn that nothing changed would cost more than it saves."""


def source_digests(config: DataConfig) -> dict[str, str]:
    """Digest of every file behind `data.interactions` and `data.items`, by its name.

    Raises:
        UserError: files that are missing or cannot be read.
    """
    return digests_of([source for kind in ("interactions", "items") for source, _ in plan_reading(config, kind).files])


def digests_of(sources: Iterable[Source]) -> dict[str, str]:
    """Digest of every file, by its name."""
    return {source.name: _digest(source) for source in sources}


def _digest(source: Source) -> str:
    files, path = filesystem(source.uri)
    info = files.get_file_info(path)
    if (info.size or 0) > HASHED_BYTES:
        return hashlib.sha256(f"{info.size} {info.mtime_ns}".encode()).hexdigest()[:16]
    with files.open_input_stream(path, compression=None) as stream:
        sha = hashlib.sha256()
        while block := stream.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()[:16]
