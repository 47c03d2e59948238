"""Settings that follow from the data, unless they are given: one table of rules.

A rule says what a key of the configuration is where nobody has set it, from what `prepare` counted and from the other
settings. They are for models from scratch: what they were measured on stands in docs/settings.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rosepo.config.base import Section
from rosepo.config.root import Config


@dataclass(frozen=True)
class LogFacts:
    """What `prepare` counted, as its manifest and `rosepo check` have it."""

    users: int
    items: int
    train: int
    """Training examples."""
    validation: int
    """Validation examples."""
    trajectories: int
    """Users with training examples."""

    @classmethod
    def of(cls, figures: Mapping[str, Any]) -> LogFacts | None:
        """Those of the figures of `prepare`; None where they do not hold them."""
        counts = {**figures, **figures.get("examples", {})}
        known = [field.name for field in fields(cls)]
        return cls(**{name: int(counts[name]) for name in known}) if all(name in counts for name in known) else None


@dataclass(frozen=True)
class Choice:
    """A setting that nobody gave: its dotted key, its value, and why it is that."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class Rule:
    """How a setting follows from the data.

    Attributes:
        value: of the configuration as it is by then, and the facts.
        why: a few words; `{name}` for facts.
        asked: whether it has a say; always where None.
    """

    value: Callable[[Config, LogFacts], Any]
    why: str
    asked: Callable[[Config], bool] | None = None


RULES: dict[str, Rule] = {}
"""By dotted key, in the order in which they are asked: later ones see what earlier ones chose."""


def open_keys(config: Config) -> list[str]:
    """The keys that follow from the data in this configuration."""
    if config.model.path is not None:
        return []
    return [key for key, rule in RULES.items() if not given(config, key) and (rule.asked is None or rule.asked(config))]


def settled(config: Config, facts: LogFacts) -> tuple[Config, tuple[Choice, ...]]:
    """The configuration with what follows from the data, and what was chosen."""
    from rosepo.config.reading import parse_config

    choices = []
    for key in open_keys(config):
        rule = RULES[key]
        choices.append(Choice(key, rule.value(config, facts), rule.why.format(**vars(facts))))
        tree = config.model_dump(mode="json", exclude_unset=True)
        place = tree
        *sections, name = key.split(".")
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = choices[-1].value
        config = parse_config(tree, source=f"{key}, which follows from the data")
    return config, tuple(choices)


def given(config: Config, key: str) -> bool:
    """Whether somebody has set a dotted key."""
    section: Any = config
    for name in key.split("."):
        if not isinstance(section, Section) or name not in section.model_fields_set:
            return False
        section = getattr(section, name)
    return True
