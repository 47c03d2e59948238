"""What a stage's result depends on, and its digest: settings, the stages that it reads, the content of files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rosepo.config import Config, PairsConfig
from rosepo.config.training import SAME_RESULT
from rosepo.data.readers.sources import Source
from rosepo.run.manifest import FORMAT
from rosepo.run.stages import Stage
from rosepo.utils.files import digest
from rosepo.utils.imports import module_file

RESOURCE_KEYS = SAME_RESULT | {
    "actors",
    "cpus_per_actor",
    "gpus_per_actor",
    "vllm",
    "concurrent",
    "part_groups",
    "reference_cache",
}
"""Keys that do not make a stage stale."""


def stage_settings(config: Config, stage: Stage) -> dict[str, Any]:
    """The settings that a stage's result depends on, flat: dotted key to value."""
    flat = _flatten(config.model_dump(mode="json"))
    if config.pairs.score:
        flat["pairs.precision"] = config.align.precision
    searched = set(config.sweep_parameters) if stage.name == "sweep" else set()
    unused = {f"pairs.strategies.{name}" for name in config.pairs.strategies if name not in config.pairs.used}
    unused |= {"evaluate.add_items"} if config.evaluate.add_items is None else set()
    # Parts of a streamed table are what training shuffles within: their size is then no matter of speed alone.
    streamed = {"pairs.stream", "pairs.part_groups"} if config.pairs.stream and "align" in stage.sections else set()
    # Models that rosepo did not train are read with the run's template.
    external = bool(config.evaluate.models) and stage.kind == "evaluate"
    # A run of before there was a choice goes on without a chat template, and models from scratch have none.
    if config.model.template.chat == "no" or (config.model.path is None and not external):
        unused |= {"model.template.chat", "model.template.system"}
    return {"seed": config.seed} | {
        key: value
        for key, value in flat.items()
        if key in streamed
        or (external and key not in unused and (key == "model.max_length" or key.startswith("model.template.")))
        or (
            key not in unused
            and stage.depends_on(key)
            and key.rsplit(".", 1)[-1] not in RESOURCE_KEYS
            and key not in searched
            and key not in stage.without
        )
    }


def fingerprint(stage: Stage, settings: Mapping[str, Any], inputs: Mapping[str, str], files: Mapping[str, str]) -> str:
    """The digest that a stage's result is known by.

    Args:
        settings: those of `stage_settings`.
        inputs: the fingerprints of the stages that it reads, by name.
        files: the digests of `files_read`, by name.
    """
    content = {"format": FORMAT, "stage": stage.name, "settings": settings, "inputs": inputs, "files": files}
    return digest(content)


def files_read(config: Config, stage: Stage) -> dict[str, Source]:
    """The user's files that a stage reads, by name: log and items, the modules of a scorer and of strategies,
    a title encoder, models, predictions and added items that are evaluated.

    Raises:
        UserError: one that is not there, or is not of its kind.
    """
    if stage.name == "prepare":
        from rosepo.data.readers.interactions import data_files

        return data_files(config.data)
    if stage.name == "oracle" and config.oracle.scorer is not None:
        return _modules(config.oracle.scorer)
    if stage.kind == "evaluate":
        from rosepo.evaluation.external_models import external_files

        return external_files(config.evaluate)
    if stage.kind == "pairs":
        return _modules(*config.pairs.used) | _encoder_files(config.pairs)
    return {}


def _modules(*paths: str) -> dict[str, Source]:
    """The files behind import paths `module:callable`, by the module's name; other names have none."""
    found = {path.partition(":")[0]: module_file(path) for path in paths if ":" in path}
    return {name: Source(str(file.absolute()), "") for name, file in found.items() if file is not None}


def _encoder_files(pairs: PairsConfig) -> dict[str, Source]:
    """The weights of a title encoder that is a folder."""
    encoder = Path(pairs.encoder).expanduser().absolute()
    weights = sorted(encoder.glob("*.safetensors")) if pairs.asking("embeddings") else []
    return {f"{encoder.name}/{path.name}": Source(str(path), "") for path in weights}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
