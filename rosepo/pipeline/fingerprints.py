"""What a stage's result depends on, as a digest: settings, the fingerprints of what it reads, the content of files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rosepo.config import Config
from rosepo.config.training import SAME_RESULT
from rosepo.run.stages import Stage
from rosepo.utils.files import digest, file_digest
from rosepo.utils.imports import module_digest

RESOURCE_KEYS = SAME_RESULT | {"actors", "cpus_per_actor", "concurrent", "part_groups", "reference_cache"}
"""Keys that do not make a stage stale."""

_LATER: dict[str, Any] = {
    "sft.ema": None,
    "align.ema": None,
    "align.dropout": False,
    "oracle.models": 1,
    "pairs.oracle_whole": False,
}
"""Keys that came when there were outputs already, and the value under which these stay what they were: the key is then
left out."""

_ONCE: dict[str, Any] = {
    "align.ada_rho": -0.5931,
    "align.ada_tau_max": 5.0,
    "align.ada_tau_min": 0.1,
    "align.ipo_average": False,
    "align.sft_on": "chosen",
    "align.simpo_gamma": 0.5,
}
"""Keys that stood in every output once, also where they had no say, and what stood there then: so that outputs of
which they say nothing stay what they were."""


def stage_settings(config: Config, stage: Stage) -> dict[str, Any]:
    """The settings that a stage's result depends on, flat: dotted key to value."""
    flat = _ONCE | _flatten(config.model_dump(mode="json"))
    searched = set(config.sweep_parameters) if stage.name == "sweep" else set()
    unused = {f"pairs.strategies.{name}" for name in config.pairs.strategies if name not in config.pairs.used}
    # Parts of a streamed table are what training shuffles within: their size is then no matter of speed alone.
    streamed = {"pairs.stream", "pairs.part_groups"} if config.pairs.stream and "align" in stage.sections else set()
    # Models that rosepo did not train are read with the run's template.
    external = bool(config.evaluate.models) and stage.kind == "evaluate"
    return {"seed": config.seed} | {
        key: value
        for key, value in flat.items()
        if key in streamed
        or (external and (key == "model.max_length" or key.startswith("model.template.")))
        or (
            key not in unused
            and any(f"{key}.".startswith(f"{section}.") for section in stage.sections)
            and key.rsplit(".", 1)[-1] not in RESOURCE_KEYS
            and key not in searched
            and key not in stage.without
            and not (key in _LATER and value == _LATER[key])
        )
    }


def stage_fingerprint(config: Config, stage: Stage, inputs: Mapping[str, str]) -> str:
    """Digest of a stage's settings and inputs; `inputs` holds the fingerprints of the stages that are there."""
    content: dict[str, Any] = {"stage": stage.name, "settings": stage_settings(config, stage)}
    content["inputs"] = {name: inputs[name] for name in (*stage.needs, *stage.uses) if name in inputs}
    files = file_digests(config, stage)
    if files:
        content["files"] = files
    return digest(content)


def file_digests(config: Config, stage: Stage) -> dict[str, str]:
    """Digests of the content of the user's files that a stage reads: log and items, a scorer's module,
    models and predictions that are evaluated."""
    if stage.name == "prepare":
        from rosepo.data.readers.digests import source_digests

        return source_digests(config.data)
    if stage.name == "oracle" and config.oracle.scorer is not None:
        return module_digest(config.oracle.scorer)
    if stage.kind == "evaluate":
        from rosepo.evaluation.external_models import external_digests

        return external_digests(config)
    if stage.kind == "pairs":
        found: dict[str, str] = {}
        for name in config.pairs.used:
            found |= module_digest(name) if ":" in name else {}
        encoder = Path(config.pairs.encoder).expanduser()
        if config.pairs.asking("embeddings") and encoder.is_dir():
            found |= {
                f"{encoder.name}/{path.name}": file_digest(path) for path in sorted(encoder.glob("*.safetensors"))
            }
        return found
    return {}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
