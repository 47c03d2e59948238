"""Manifests as stages leave them, for tests whose stages were not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rosepo.config import Config
from rosepo.pipeline.planning import plan_run
from rosepo.run.manifest import FORMAT, MANIFEST, find_manifest
from rosepo.run.stages import find_stage
from rosepo.utils.files import write_json

OLD_VERSION = "0.0.9"


def write_manifest(folder: Path, **content: Any) -> None:
    """A stage's manifest with this content, and the folder that it stands in."""
    empty = {"fingerprint": "", "created": "", "settings": {}, "inputs": {}, "files": {}, "figures": {}}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MANIFEST, {"format": FORMAT, "seconds": 1.0, **empty, **content})


def finish(root: Path, config: Config, *names: str) -> None:
    """The named stages as if they had been run one by one under a configuration."""
    for name in names:
        if find_manifest(root / find_stage(name).folder) is None:
            write_manifest(root / find_stage(name).folder)  # that folder's files are a stage's
        step = plan_run(config, root, [name], overwrite=True)[name]
        made = {"fingerprint": step.fingerprint, "settings": step.settings, "inputs": step.inputs, "files": step.files}
        write_manifest(root / step.stage.folder, stage=name, **made)


def make_older(folder: Path) -> None:
    """Turn a stage's manifest into one of the first format, which had no number."""
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["format"]
    made = {"fingerprint": f"{manifest['fingerprint']} of before", "versions": {"rosepo": OLD_VERSION}}
    write_json(folder / MANIFEST, manifest | made)
