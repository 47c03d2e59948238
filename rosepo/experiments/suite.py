"""Suites of experiments: named variants of a base configuration, over seeds and data sets, read from YAML files.

A variant is a set of overrides, nothing else: what differs between two rows of a table stands in the suite's file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from rosepo.config import Config, Section, load_config
from rosepo.config.base import nearest
from rosepo.config.reading import parse, read_yaml
from rosepo.utils.errors import UserError

BASELINES = ("popular", "markov", "oracle", "sft")
"""What every evaluation ranks beside the variant's own model."""
GIVEN = ("seed", "evaluate.split")
"""Settings that the command gives every run."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Split = Literal["validation", "test"]
Metric = Literal["hr@1", "hr@10", "ndcg@10", "log_popularity", "head_share", "hallucination"]


def _name(name: str) -> str:
    if name in (*BASELINES, "truth"):
        raise ValueError(f"'{name}' is the name of a baseline: take another")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"'{name}' names a folder: write small letters, digits and single dashes")
    return name


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    for key in GIVEN:
        if key in settings:
            raise PydanticCustomError("given", f"{key} is given to every run by the command: leave it out")
    return settings


Name = Annotated[str, AfterValidator(_name)]
Settings = Annotated[dict[str, Any], AfterValidator(_settings), Field(default_factory=dict)]
"""Dotted key to value; null goes back to the default."""


class DataSet(Section):
    """A data set that the variants are run on."""

    base: str
    """The configuration that variants override: a YAML file, relative to the suite's."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    set: Settings
    """On this data set in every variant."""


class Variant(Section):
    """A row of the tables."""

    about: str = ""
    """What it is, in a few words."""
    like: str | None = None
    """Another variant, whose overrides it starts from."""
    set: Settings


class Contrast(Section):
    """A question that is answered by the paired difference of two systems, a minus b."""

    question: str
    a: str
    b: str
    metrics: tuple[Metric, ...] = ("hr@10", "ndcg@10")


class Suite(Section):
    """One file."""

    about: str = ""
    include: tuple[str, ...] = ()
    """Other suites' files, whose variants belong to this one too."""
    data: dict[Name, DataSet] = Field(default_factory=dict)
    set: Settings
    """In every variant of this file."""
    variants: dict[Name, Variant] = Field(default_factory=dict)
    comparators: tuple[str, ...] = ("sft",)
    """Systems that every variant is compared with."""
    contrasts: tuple[Contrast, ...] = ()
    test: tuple[str, ...] | None = None
    """Variants that `--test` looks at on the test split; None: all."""


@dataclass(frozen=True)
class Experiment:
    """A variant on a data set: `settings` on the file `base`, for every one of `seeds`."""

    data: str
    variant: str
    base: Path
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    tested: bool
    source: str

    def config(self, seed: int, split: Split, more: Sequence[str] = ()) -> Config:
        """The configuration of one run.

        Args:
            more: further overrides, `section.key=value`.

        Raises:
            UserError: settings that are unknown or do not go together, naming the suite and the variant.
        """
        try:
            return load_config(self.base, [*more, f"seed={seed}", f"evaluate.split={split}"], self.settings)
        except UserError as error:
            raise UserError(f"{self.source}, variant {self.variant}: {error}") from error


@dataclass
class Experiments:
    """What one or several suites ask for together."""

    variants: dict[str, Variant] = field(default_factory=dict)
    experiments: list[Experiment] = field(default_factory=list)
    comparators: list[str] = field(default_factory=list)
    contrasts: list[Contrast] = field(default_factory=list)
    suites: dict[Path, Suite] = field(default_factory=dict)


def read_suites(paths: Sequence[Path]) -> Experiments:
    """The suites of these files and of those that they include, each once.

    Raises:
        UserError: a file that cannot be read, an unknown or repeated key, a variant of two files, or a name that
            nothing has.
    """
    found = Experiments()
    for path in paths:
        _add(found, path, ())
    for path, suite in found.suites.items():
        _check_names(found, suite, path)
    return found


def _add(found: Experiments, path: Path, above: tuple[Path, ...]) -> None:
    """Add a suite's file, behind those that it includes."""
    resolved = path.resolve()
    if resolved in above:
        raise UserError(f"{path}: include leads back to the file itself")
    if resolved in [other.resolve() for other in found.suites]:
        return
    suite = parse(Suite, read_yaml(path, "suite"), str(path))
    for included in suite.include:
        _add(found, path.parent / included, (*above, resolved))
    found.suites[path] = suite
    for name, variant in suite.variants.items():
        if name in found.variants:
            raise UserError(f"{path}: variant '{name}' is another suite's too: give one of them another name")
        # What is like a variant of this file has the file's own overrides from there.
        own = {} if variant.like in suite.variants else suite.set
        found.variants[name] = variant.model_copy(update={"set": own | variant.set})
    for data, dataset in suite.data.items():
        base = path.parent / dataset.base
        for other in found.experiments:
            if other.data == data and other.base.resolve() != base.resolve():
                raise UserError(f"{path}: data.{data}.base is {base}, and in {other.source} it is {other.base}")
    for name in suite.variants:
        settings, tested = _settled(found.variants, name, path), suite.test is None or name in suite.test
        found.experiments += [
            Experiment(data, name, path.parent / dataset.base, dataset.set | settings, dataset.seeds, tested, str(path))
            for data, dataset in suite.data.items()
        ]
    found.comparators += [name for name in suite.comparators if name not in found.comparators]
    found.contrasts += suite.contrasts


def _settled(variants: Mapping[str, Variant], name: str, path: Path, chain: tuple[str, ...] = ()) -> dict[str, Any]:
    """A variant's overrides behind those that it starts from; a later one of a key takes the place of an earlier."""
    if name in chain:
        raise UserError(f"{path}: variant {name} is like itself ({' → '.join([*chain, name])})")
    if name not in variants:
        raise UserError(f"{path}: variant {chain[-1]} is like '{name}', which is none{nearest(name, [*variants])}")
    own, like = variants[name].set, variants[name].like
    below = {} if like is None else _settled(variants, like, path, (*chain, name))
    return {key: value for key, value in below.items() if key not in own} | own


def _check_names(found: Experiments, suite: Suite, path: Path) -> None:
    """Refuse names that no system has: of contrasts, comparators and what is tested."""
    used = [(f"contrast '{one.question}'", name) for one in suite.contrasts for name in (one.a, one.b)]
    used += [("comparators", name) for name in suite.comparators]
    for where, name in used:
        variant, _, model = name.partition(":")
        known = [*found.variants, *(() if model else BASELINES)]
        if variant not in known:
            raise UserError(f"{path}: {where} names '{name}', which is no variant{nearest(variant, known)}")
        if model not in ("", "sft", "oracle"):
            raise UserError(f"{path}: {where} names '{name}': behind the colon stands sft or oracle")
    for name in suite.test or ():
        if name not in suite.variants:
            raise UserError(f"{path}: test names '{name}', which is no variant{nearest(name, [*suite.variants])}")
