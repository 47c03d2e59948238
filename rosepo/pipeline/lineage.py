"""What stands in a run's folder, and whether it goes together: what each stage was made from is still there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rosepo.config import Config
from rosepo.data.readers.digests import FileDigests
from rosepo.pipeline.fingerprints import files_read, stage_settings
from rosepo.run.manifest import REMADE, check_format, find_manifest
from rosepo.run.stages import Stage, find_stage
from rosepo.utils.errors import UserError
from rosepo.utils.files import digest
from rosepo.utils.redaction import redact_tree

SHOWN = 4
"""Differences that a message names."""


class Lineage:
    """The manifests in a run's folder as they were when they were first asked for; each is read once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._manifests: dict[str, dict[str, Any] | None] = {}
        self._sound: set[str] = set()

    def find(self, stage: Stage) -> dict[str, Any] | None:
        """The manifest of a finished stage of whatever format, None where there is none."""
        if stage.name not in self._manifests:
            self._manifests[stage.name] = find_manifest(self.root / stage.folder)
        return self._manifests[stage.name]

    def read(self, stage: Stage, remedy: str = REMADE) -> dict[str, Any] | None:
        """The same, of this format.

        Raises:
            UserError: see `check_format`.
        """
        manifest = self.find(stage)
        if manifest is not None:
            check_format(manifest, self.root / stage.folder, remedy)
        return manifest

    def check_input(self, config: Config, needed: Stage, reader: str, digests: FileDigests) -> None:
        """Refuse what the stage `needed` left where it is not there, or not of this configuration and its inputs.

        Args:
            reader: the stage that reads it.

        Raises:
            UserError: naming the folder and what differs.
        """
        folder, manifest = self.root / needed.folder, self.read(needed)
        if manifest is None:
            raise UserError(
                f"{reader} reads {folder}, which is not there: run `rosepo {needed.command}` or `rosepo run` first"
            )
        changed = differences(manifest["settings"], stage_settings(config, needed))
        if needed.name != "prepare":  # the log may be gone by now, and its examples do
            changed += differences(manifest["files"], digests.of(files_read(config, needed)))
        if changed:
            raise UserError(
                f"{reader} reads {folder}, which was made by another configuration ({'; '.join(changed[:SHOWN])}): "
                f"use that configuration, or run `rosepo {needed.command}` again"
            )
        self.check_origin(needed, reader)

    def check_origin(self, stage: Stage, reader: str) -> None:
        """Refuse what a stage left where it was made from something else than what stands in the run's folder now,
        however far back.

        Args:
            reader: the stage or command that reads it.

        Raises:
            UserError: naming the folder that is stale and the one that was made again.
        """
        if stage.name in self._sound:
            return
        self._sound.add(stage.name)
        manifest = self.read(stage) or {}
        for name, made_from in manifest.get("inputs", {}).items():
            source = find_stage(name)
            now_there = self.read(source)
            if now_there is not None and now_there["fingerprint"] != made_from:
                raise UserError(
                    f"{reader} reads {self.root / stage.folder}, which was made before {self.root / source.folder} was "
                    f"made again: run `rosepo {stage.command} --overwrite`, or `rosepo run --overwrite`, first"
                )
            self.check_origin(source, reader)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two mappings of which the first was read from a manifest, `key: old → new`."""
    keys = sorted({*old, *new})
    return [f"{key}: {old.get(key)} → {new.get(key)}" for key in keys if differ(old.get(key), new.get(key))]


def differ(old: Any, new: Any) -> bool:
    """Whether two values differ in what a manifest holds of them."""
    return digest(redact_tree(old)) != digest(redact_tree(new))
