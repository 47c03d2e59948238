"""What was run, in words, and what it takes to run it again."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from typing import Any

from rosepo.config import LOSSES, Config, dump_config
from rosepo.config.root import shape_of
from rosepo.data.added_items import told_of
from rosepo.report.text.labels import label
from rosepo.run.manifest import git_revision, read_manifest, versions
from rosepo.run.paths import RunPaths, of_round
from rosepo.run.stages import find_stage, names_of_rounds
from rosepo.utils.redaction import command_line, redact

Manifests = Mapping[str, Mapping[str, Any]]
"""By stage."""


def manifests_of(paths: RunPaths) -> dict[str, dict[str, Any]]:
    """Manifests by stage, in the order of work, of those that are there."""
    folders = {name: paths.root / find_stage(name).folder for name in names_of_rounds(paths.round)}
    return {name: manifest for name, folder in folders.items() if (manifest := read_manifest(folder)) is not None}


def run_metadata(config: Config, paths: RunPaths, metrics: Mapping[str, Any], manifests: Manifests) -> dict[str, str]:
    """What was run: name to text."""
    figures = {name: manifest["figures"] for name, manifest in manifests.items()}
    facts = {
        "Data": _data(config, figures.get("prepare", {})),
        "Split": f"{config.prepare.split.replace('_', ' ')}; {metrics['split']} part measured",
        "Measured": _measured(config, metrics),
    }
    if "sft" in manifests:
        facts["Model"] = _model(config)
        facts["Fine-tuning"] = f"{_epochs(config.sft.epochs)}, learning rate {config.sft.learning_rate:g}"
    if metrics.get("oracle") is not None:
        facts["Oracle"] = _oracle(metrics["oracle"], figures.get("oracle", {}))
    if "pairs" in manifests:
        used = ", ".join(f"{name} {weight:g}" for name, weight in config.pairs.strategies.items() if weight > 0)
        facts["Rejected titles"] = f"{figures['pairs'].get('negatives', config.pairs.negatives)} a group; {used}"
    if "align" in manifests:
        facts["Alignment"] = _alignment(config, figures.get(of_round("align", paths.round), {}))
    if paths.round > 1:
        reference = "the model that each round starts from" if paths.moved else "the SFT model, frozen"
        facts["Rounds of pairs and alignment"] = (
            f"{paths.round}, each sampled from the model of the one before; reference: {reference}"
        )
    if metrics.get("added_items"):
        facts["Added titles"] = _added(metrics["added_items"], metrics)
    if metrics.get("external"):
        facts["Other systems"] = "; ".join(_external(name, one) for name, one in metrics["external"].items())
    return facts


def reproduction(config: Config, manifests: Manifests) -> dict[str, Any]:
    """The commands, configuration, seeds, versions, and digests of the files that were read."""
    made = [*manifests.values(), {"command": command_line(), "versions": versions(), "revision": git_revision()}]
    commands = (manifest.get("command", "") for manifest in made)
    return {
        "commands": list(dict.fromkeys(command for command in commands if command)),
        "config": dump_config(config).strip() or "{}",
        "seed": config.seed,
        "draws": config.evaluate.bootstrap,
        "files": {name: found for manifest in manifests.values() for name, found in manifest.get("files", {}).items()},
        "fingerprints": {name: manifest["fingerprint"] for name, manifest in manifests.items()},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        **made_by(made),
    }


def made_by(manifests: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """`versions` of the libraries, several of one where they differ, and `revisions` of rosepo."""
    used: dict[str, dict[str, None]] = {}
    revisions: dict[str, None] = {}
    for manifest in manifests:
        for name, version in manifest.get("versions", {}).items():
            used.setdefault(name, {})[version] = None
        revisions |= dict.fromkeys(filter(None, [manifest.get("revision")]))
    return {"versions": {name: " and ".join(found) for name, found in used.items()}, "revisions": list(revisions)}


def _data(config: Config, prepared: Mapping[str, Any]) -> str:
    data = config.data.dataset or config.data.interactions or "prepared examples"
    counts = [f"{prepared[key]:,} {key}" for key in ("users", "items", "interactions") if key in prepared]
    return f"{data}: {', '.join(counts)}" if counts else data


def _measured(config: Config, metrics: Mapping[str, Any]) -> str:
    listed = metrics["protocol"] == "candidates"
    ranked = "the candidates that their prompts list" if listed else "every title that the user had not chosen yet"
    told = f"{metrics['n_examples']:,} examples of {metrics['n_users']:,} users, {ranked}"
    told += f"; 95 % intervals from {config.evaluate.bootstrap:,} draws of users"
    cut = max((cut["prompts"] for cut in metrics.get("cut", {}).values()), default=0)
    return told + (f"; {cut:,} histories did not fit in the prompt and lost their oldest titles" if cut else "")


def _model(config: Config) -> str:
    if config.model.path:
        return f"{config.model.path}{' with LoRA' if config.model.lora else ''}"
    scratch = config.model.scratch_config
    return f"Llama from scratch, {scratch.layers} layers of width {scratch.hidden_size}"


def _oracle(name: str, figures: Mapping[str, Any]) -> str:
    """What the oracle is, and its temperature."""
    return name + (f", τ {figures['tau']:.3g}" if "tau" in figures else "")


def _alignment(config: Config, figures: Mapping[str, Any]) -> str:
    align = config.align
    parts = [f"{align.loss} loss", f"β {align.beta:g}" if LOSSES[align.loss].preference else ""]
    parts += [shape_of(config, figures), "trajectory rows" if config.trajectories else ""]
    parts += [f"learning rate {align.learning_rate:g}", _epochs(align.epochs)]
    return ", ".join(filter(None, parts))


def _external(name: str, one: Mapping[str, Any]) -> str:
    """A system that the run did not make: its name, where it came from, what was counted of it."""
    counts = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in one.items() if isinstance(value, int))
    kind = "model" if one["kind"] == "models" else one["kind"]
    return f"{name} ({kind} {redact(one['location'])}{': ' + counts if counts else ''})"


def _added(added: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Titles that came after training: how many, what baselines know of them, how often models recommend them."""
    told = redact(told_of(added, added["location"]))
    if not added["added"]:
        return told
    shares = ", ".join(f"{label(name, metrics)} {100 * share:.2g} %" for name, share in added["top10_share"].items())
    told += "; no example is about them; most popular, Markov and the oracle know nothing of them and rank them last"
    return f"{told}; of the first ten places they take: {shares}"


def _epochs(count: float) -> str:
    return f"{count:g} epoch{'' if count == 1 else 's'}"
