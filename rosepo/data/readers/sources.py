"""Where tables lie: a file, a folder, a glob or a URL becomes a list of files, each with its format."""

from __future__ import annotations

import codecs
import fnmatch
import glob
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from rosepo.utils.errors import UserError

ENDINGS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".dat": "dat",
    ".inter": "recbole",
    ".item": "recbole",
}
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")
COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
EMBEDDED = "rosepo:"
"""Scheme of the data that ships with the package: resolved where the file is read, which may be another machine."""


@dataclass(frozen=True)
class Source:
    """One file. `format` is parquet, csv, tsv, jsonl, dat (`::` between fields, no header) or recbole."""

    uri: str
    format: str

    @property
    def name(self) -> str:
        return self.uri.rsplit("/", 1)[-1] if self.uri.startswith(EMBEDDED) else self.uri


def find_sources(location: str, data_format: str, key: str) -> list[Source]:
    """The files behind a location, sorted by path.

    Args:
        location: local path, `file://`, `s3://`, `gs://` or another URL that pyarrow or fsspec reads; a file, a folder
            (names that start with `_` or `.` are passed over) or a glob.
        data_format: `data.format`.
        key: the configuration key that holds the location, for messages.

    Raises:
        UserError: nothing there, an unknown ending, or files of several formats.
    """
    if location.startswith(EMBEDDED):
        return [Source(location, "parquet")]
    try:
        uris = _remote_files(location) if "://" in location else _local_files(location)
    except (OSError, pa.ArrowException, ImportError, ValueError) as error:
        raise UserError(f"{key}={location} cannot be listed: {error}") from error
    if not uris:
        raise UserError(f"{key}={location} does not exist or holds no file: check the path")
    if data_format == "auto" and len(uris) > 1:
        uris = [uri for uri in uris if _ending(uri) in ENDINGS] or uris
    sources = [Source(uri, _format(uri, data_format, key)) for uri in sorted(uris)]
    formats = sorted({source.format for source in sources})
    if len(formats) > 1:
        raise UserError(f"{key}={location} holds files of several formats ({', '.join(formats)}): name one with a glob")
    return sources


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system of a URI, and the path in it."""
    if uri.startswith(EMBEDDED):
        return pafs.LocalFileSystem(), str(resources.files("rosepo.data").joinpath(uri.removeprefix(EMBEDDED)))
    if "://" not in uri:
        return pafs.LocalFileSystem(), uri
    try:
        found: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid:
        # Schemes that Arrow does not know (https, memory, az, …) may be known to fsspec.
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        other, path = url_to_fs(uri)
        return pafs.PyFileSystem(pafs.FSSpecHandler(other)), path
    return found


def open_stream(source: Source) -> pa.NativeFile:
    """The bytes of a text file behind its byte order mark, decompressed where its ending says so."""
    files, path = filesystem(source.uri)
    stream = files.open_input_stream(path, compression="detect")
    if stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
        return stream
    stream.close()
    return files.open_input_stream(path, compression="detect")


def path_columns(source: Source) -> dict[str, str | None]:
    """Columns that stand in a file's path as Hive writes them, `…/user_id=17/part-0.parquet`, and their one value."""
    parts = [part.partition("=") for part in source.uri.split("/")[:-1] if "=" in part]
    return {unquote(key): None if value == _HIVE_NULL else unquote(value) for key, _, value in parts if key}


def size_of(source: Source) -> int:
    """Bytes of the file as stored."""
    files, path = filesystem(source.uri)
    return int(files.get_file_info(path).size or 0)


def _local_files(location: str) -> list[str]:
    path = Path(location).expanduser()
    if path.is_file():
        return [str(path.absolute())]
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.is_file()]
        return [str(file.absolute()) for file in found if not _hidden(file.relative_to(path).as_posix())]
    matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 (Path.glob needs to know where the pattern begins)
    return [str(Path(match).absolute()) for match in matches if Path(match).is_file()]


def _remote_files(location: str) -> list[str]:
    scheme = location.split("://", 1)[0]
    wild = next((number for number, part in enumerate(location.split("/")) if glob.has_magic(part)), None)
    base = location if wild is None else "/".join(location.split("/")[:wild])
    files, root = filesystem(base)
    info = files.get_file_info(root)
    if info.type == pafs.FileType.File:
        return [location]
    if info.type == pafs.FileType.NotFound:
        return []
    prefix = base[: len(base) - len(root)] if base.endswith(root) else f"{scheme}://"
    found = [entry.path for entry in files.get_file_info(pafs.FileSelector(root, recursive=True)) if entry.is_file]
    kept = [path for path in found if not _hidden(path[len(root) :].lstrip("/"))]
    return [prefix + path for path in kept if wild is None or fnmatch.fnmatch(prefix + path, location)]


def _hidden(path: str) -> bool:
    return any(part.startswith(("_", ".")) for part in path.split("/"))


def _ending(uri: str) -> str:
    name = uri.rsplit("/", 1)[-1].split("?")[0].lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return Path(name).suffix


def _format(uri: str, data_format: str, key: str) -> str:
    ending = ENDINGS.get(_ending(uri))
    if data_format == "movielens":
        return "csv" if ending == "csv" else "dat"
    if data_format != "auto":
        return data_format
    if ending is None and _ending(uri) in ARCHIVES:
        raise UserError(f"{key}={uri} is an archive: unpack it, and name the file in it")
    if ending is None:
        known = ", ".join(ENDINGS)
        remedy = "set data.format" if key.startswith("data.") else "give it one of these"
        raise UserError(f"{key}={uri} has an ending that tells no format (known: {known}): {remedy}")
    return ending
