"""What a run's settings are where they follow from what its stages found: the data, the best trial of a sweep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rosepo.config import Config, replaced
from rosepo.config.auto import RULES, LogFacts, is_open
from rosepo.tuning.search_space import with_settings
from rosepo.utils.console import table


@dataclass(frozen=True)
class Choice:
    """A setting that nobody gave: its dotted key, its value, and why it is that."""

    key: str
    value: Any
    why: str


def settled(config: Config, facts: LogFacts) -> tuple[Config, tuple[Choice, ...]]:
    """The configuration with what follows from the data, and what was chosen."""
    choices = []
    for key, rule in RULES.items():
        if not is_open(config, key):
            continue
        choices.append(Choice(key, rule.value(config, facts), rule.why.format(**vars(facts))))
        config = replaced(config, {key: choices[-1].value}, source=f"{key}, which follows from the data")
    return config, tuple(choices)


def chosen_by_data(config: Config, prepared: Mapping[str, Any] | None) -> tuple[Config, tuple[Choice, ...]]:
    """The configuration with what follows from the data, by the manifest of `prepare`, and what was chosen; unchanged
    where it is not there."""
    facts = None if prepared is None else LogFacts.of(prepared.get("figures", {}))
    return (config, ()) if facts is None else settled(config, facts)


def chosen_by_sweep(config: Config, swept: Mapping[str, Any]) -> Config:
    """The configuration with the settings of the best trial, by the manifest of a sweep."""
    best = swept["figures"].get("best")
    return config if best is None else with_settings(config, best["settings"])


def as_made(config: Config, manifests: Mapping[str, Mapping[str, Any]]) -> Config:
    """The configuration that a run's stages were made with where this one was asked for, by their manifests."""
    config, _ = chosen_by_data(config, manifests.get("prepare"))
    swept = manifests.get("sweep") if config.sweep.trials else None
    return config if swept is None else chosen_by_sweep(config, swept)


def choices_table(choices: Iterable[Choice]) -> str:
    """What was chosen and why, as text."""
    return table([[f"{choice.key}={written(choice.value)}", choice.why] for choice in choices])


def written(value: Any) -> str:
    """A setting's value as it is typed."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {written(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, float):
        return f"{value:g}"
    return repr(value) if value == "" else str(value)
