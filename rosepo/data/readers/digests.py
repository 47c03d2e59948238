"""What the user's files hold, as short digests: how the pipeline notices that a log has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from pyarrow.fs import FileSystem

from rosepo.data.readers.sources import Source, filesystem
from rosepo.utils.files import digest

HASHED_BYTES = 1 << 30
"""Files up to this size are known by their content, larger ones by size and time of change: to read 100 GB only to
learn that nothing changed would cost more than it saves."""


class FileDigests:
    """Digests of files, each of which is read through once: a command has one of these, and hands it on.

    A file that has another size or time of change than when it was read is read again, for a suite of experiments
    takes days.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int | None, int | None], str] = {}

    def of(self, files: Mapping[str, Source]) -> dict[str, str]:
        """Digest of every file, by the names given.

        Raises:
            OSError: a file that is not there or cannot be read.
        """
        return {name: self._digest(source) for name, source in files.items()}

    def _digest(self, source: Source) -> str:
        files, path = filesystem(source.uri)
        info = files.get_file_info(path)
        state = (info.size, info.mtime_ns)
        key = (source.uri, *state)
        if key not in self._known:
            large = (info.size or 0) > HASHED_BYTES
            self._known[key] = digest(state) if large else _content_digest(files, path)
        return self._known[key]


def _content_digest(files: FileSystem, path: str) -> str:
    with files.open_input_stream(path, compression=None) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
