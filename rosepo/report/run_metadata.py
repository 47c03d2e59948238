"""What was run, in words, and what it takes to run it again."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rosepo.config import LOSSES, Config, dump_config
from rosepo.config.root import shape_of
from rosepo.run.manifest import git_revision, read_manifest, versions
from rosepo.run.paths import of_round
from rosepo.utils.redaction import command_line, redact

if TYPE_CHECKING:
    from rosepo.run.paths import RunPaths

Manifests = Mapping[str, Mapping[str, Any]]


def manifests_of(paths: RunPaths) -> dict[str, dict[str, Any]]:
    """Manifests by stage, in the order of work, of those that are there."""
    folders = {"prepare": paths.examples, "sft": paths.sft, "oracle": paths.oracle}
    for one in paths.rounds:
        folders |= {of_round("pairs", one.round): one.groups, of_round("align", one.round): one.aligned}
    found = {name: read_manifest(folder) for name, folder in (folders | {"sweep": paths.sweep}).items()}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def run_metadata(
    config: Config, paths: RunPaths, metrics: Mapping[str, Any], manifests: Manifests
) -> list[tuple[str, str]]:
    """What was run, as name and text."""
    facts = [
        ("Data", _data(config, manifests)),
        ("Split", f"{config.prepare.split.replace('_', ' ')}; {metrics['split']} part measured"),
        ("Measured", _measured(config, metrics)),
    ]
    if "sft" in manifests:
        trained = f"{_epochs(config.sft.epochs)}, learning rate {config.sft.learning_rate:g}"
        facts += [("Model", _model(config)), ("Fine-tuning", trained)]
    if metrics.get("oracle") is not None:
        facts.append(("Oracle", _oracle(metrics["oracle"], manifests.get("oracle", {}).get("figures", {}))))
    if "pairs" in manifests:
        used = config.pairs.strategies.items()
        strategies = ", ".join(f"{name} {weight:g}" for name, weight in used if weight > 0)
        negatives = manifests["pairs"].get("figures", {}).get("negatives", config.pairs.negatives)
        facts.append(("Rejected titles", f"{negatives} a group; {strategies}"))
    if "align" in manifests:
        align = config.align
        shape = shape_of(config, aligned_figures(paths, manifests))
        beta = f"β {align.beta:g}, " if LOSSES[align.loss].preference else ""
        rows = "trajectory rows, " if config.trajectories else ""
        settings = f"{align.loss} loss, {beta}{shape}, {rows}learning rate {align.learning_rate:g}"
        facts.append(("Alignment", f"{settings}, {_epochs(align.epochs)}"))
    if paths.round > 1:
        reference = "the model that each round starts from" if paths.moved else "the SFT model, frozen"
        told = f"{paths.round}, each sampled from the model of the one before; reference: {reference}"
        facts.append(("Rounds of pairs and alignment", told))
    if metrics.get("external"):
        facts.append(("Other systems", "; ".join(_external(name, one) for name, one in metrics["external"].items())))
    return facts


def aligned_figures(paths: RunPaths, manifests: Manifests) -> Mapping[str, Any]:
    """Figures of the last round's alignment."""
    figures: Mapping[str, Any] = manifests.get(of_round("align", paths.round), {}).get("figures", {})
    return figures


def reproduction(config: Config, manifests: Manifests) -> dict[str, Any]:
    """The commands, configuration, seeds, versions, and digests of the files that were read."""
    commands = (*(manifest.get("command", "") for manifest in manifests.values()), command_line())
    digests = {name: found for manifest in manifests.values() for name, found in manifest.get("files", {}).items()}
    revisions = (manifest.get("revision") for manifest in manifests.values())
    return {
        "commands": list(dict.fromkeys(command for command in commands if command)),
        "config": dump_config(config).strip() or "{}",
        "seed": config.seed,
        "draws": config.evaluate.bootstrap,
        "files": digests,
        "fingerprints": {name: found["fingerprint"] for name, found in manifests.items() if "fingerprint" in found},
        "versions": _versions(manifests),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "revisions": list(dict.fromkeys(found for found in (*revisions, git_revision()) if found)),
    }  # fmt: skip


def _versions(manifests: Manifests) -> dict[str, str]:
    """Versions that the stages ran with, and of what wrote this; several of a library where they differ."""
    found: dict[str, dict[str, None]] = {}
    for each in (*(manifest.get("versions", {}) for manifest in manifests.values()), versions()):
        for name, version in each.items():
            found.setdefault(name, {})[version] = None
    return {name: " and ".join(each) for name, each in found.items()}


def _data(config: Config, manifests: Manifests) -> str:
    data = config.data.dataset or config.data.interactions or "prepared examples"
    prepared = manifests.get("prepare", {}).get("figures", {})
    counts = ", ".join(f"{prepared[key]:,} {key}" for key in ("users", "items", "interactions")
                       if isinstance(prepared.get(key), int))  # fmt: skip
    return f"{data}{': ' + counts if counts else ''}"


def _measured(config: Config, metrics: Mapping[str, Any]) -> str:
    cut = max((cut["prompts"] for cut in metrics.get("cut", {}).values()), default=0)
    listed = metrics["protocol"] == "candidates"
    ranked = "the candidates that their prompts list" if listed else "every title that the user had not chosen yet"
    told = f"{metrics['n_examples']:,} examples of {metrics['n_users']:,} users, {ranked}"
    told += f"; 95 % intervals from {config.evaluate.bootstrap:,} draws of users"
    if cut:
        told += f"; {cut:,} histories did not fit in the prompt and lost their oldest titles"
    return told


def _model(config: Config) -> str:
    if config.model.path:
        return f"{config.model.path}{' with LoRA' if config.model.lora else ''}"
    scratch = config.model.scratch_config
    return f"Llama from scratch, {scratch.layers} layers of width {scratch.hidden_size}"


def _oracle(name: str, figures: Mapping[str, Any]) -> str:
    """What the oracle is, and its temperature."""
    return name + (f", τ {figures['tau']:.3g}" if "tau" in figures else "")


def _external(name: str, one: Mapping[str, Any]) -> str:
    """A system that the run did not make: its name, where it came from, what was counted of it."""
    counts = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in one.items() if isinstance(value, int))
    kind = {"models": "model", "predictions": "predictions"}.get(one["kind"], one["kind"])
    return f"{name} ({kind} {redact(one['location'])}{': ' + counts if counts else ''})"


def _epochs(count: float) -> str:
    return f"{count:g} epoch{'' if count == 1 else 's'}"
