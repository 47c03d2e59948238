"""The `config.yaml` of a run's folder: what the last command there was given, which the next one goes by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rosepo.config import Config, dump_config, load_config
from rosepo.run.manifest import MANIFEST, read_manifest
from rosepo.utils.errors import UserError
from rosepo.utils.files import write_text

CONFIG_FILE = "config.yaml"


def resolve_config(root: Path, path: Path | None, overrides: Sequence[str]) -> Config:
    """The configuration of a command: `path`, or the one kept in the run's folder, or the defaults; then overrides.

    Raises:
        UserError: settings that are unknown or do not go together, or were kept by a rosepo of another format.
    """
    kept = root / CONFIG_FILE
    if path is not None or not kept.is_file():
        return load_config(path, overrides)
    try:
        return load_config(kept, overrides)
    except UserError:
        # Keys that are no more are not the user's mistake where an older rosepo kept them.
        for manifest in sorted(root.glob(f"*/{MANIFEST}")):
            read_manifest(manifest.parent, "use another --out, or give --config and --overwrite to make it again")
        raise


@contextmanager
def keeping_config(config: Config, root: Path) -> Iterator[list[str]]:
    """Keep the configuration of a command while it runs; the body adds the names of the stages that it has made.

    Where the command is refused before there are any, the file is what it was: the next command would be refused too.
    """
    path = root / CONFIG_FILE
    before = path.read_text(encoding="utf-8") if path.is_file() else None
    write_text(path, dump_config(config))
    made: list[str] = []
    try:
        yield made
    except UserError:
        if before is not None and not made:
            write_text(path, before)
        raise
