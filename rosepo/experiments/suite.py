"""Suites of experiments: named variants of a base configuration, over seeds and data sets, read from YAML files.

A variant is a set of overrides, nothing else: what differs between two rows of a table stands in the suite's file.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from rosepo.config import Config, Section, load_config
from rosepo.config.base import nearest
from rosepo.config.reading import explain
from rosepo.utils.errors import UserError

BASELINES = ("popular", "markov", "oracle", "sft")
"""What every evaluation ranks beside the variant's own model."""
GIVEN = ("seed", "evaluate.split")
"""Settings that the command gives every run."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Split = Literal["validation", "test"]
Metric = Literal["hr@1", "hr@10", "ndcg@10", "log_popularity", "head_share", "hallucination"]


class DataSet(Section):
    """A data set that the variants are run on."""

    base: str
    """The configuration that variants override: a YAML file, relative to the suite's."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted key to value, on this data set in every variant."""


class Variant(Section):
    """A row of the tables."""

    about: str = ""
    """What it is, in a few words."""
    like: str | None = None
    """Another variant, whose overrides it starts from."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted key to value; null goes back to the default."""


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
    data: dict[str, DataSet] = Field(default_factory=dict)
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted key to value, in every variant of this file."""
    variants: dict[str, Variant] = Field(default_factory=dict)
    comparators: tuple[str, ...] = ("sft",)
    """Systems that every variant is compared with."""
    contrasts: tuple[Contrast, ...] = ()
    test: tuple[str, ...] | None = None
    """Variants that `--test` looks at on the test split; None: all."""


@dataclass(frozen=True)
class Experiment:
    """A variant on a data set: `overrides` on the file `base`, in order, for every one of `seeds`."""

    data: str
    variant: str
    about: str
    base: Path
    overrides: tuple[tuple[str, Any], ...]
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
        own = [f"{key}={_text(value)}" for key, value in self.overrides]
        try:
            return load_config(self.base, [*own, *more, f"seed={seed}", f"evaluate.split={split}"])
        except UserError as error:
            raise UserError(f"{self.source}, variant {self.variant}: {error}") from error


@dataclass
class Experiments:
    """What one or several suites ask for together."""

    variants: dict[str, Variant] = field(default_factory=dict)
    experiments: list[Experiment] = field(default_factory=list)
    comparators: list[str] = field(default_factory=list)
    contrasts: list[Contrast] = field(default_factory=list)
    suites: list[Path] = field(default_factory=list)


def read_suites(paths: Sequence[Path]) -> Experiments:
    """The suites of these files and of those that they include, each once.

    Raises:
        UserError: a file that cannot be read, an unknown or repeated key, a variant of two files, or a name that
            nothing has.
    """
    found = Experiments()
    for path in paths:
        _add(found, path, ())
    for suite in found.suites:
        _check_names(found, _read(suite), suite)
    return found


def _add(found: Experiments, path: Path, above: tuple[Path, ...]) -> None:
    resolved = path.resolve()
    if resolved in above:
        raise UserError(f"{path}: include leads back to the file itself")
    if resolved in [suite.resolve() for suite in found.suites]:
        return
    suite = _read(path)
    for other in suite.include:
        _add(found, path.parent / other, (*above, resolved))
    found.suites.append(path)
    for name, variant in suite.variants.items():
        if name in found.variants:
            raise UserError(f"{path}: variant '{name}' is another suite's too: give one of them another name")
        # What is like a variant of this file has the file's own overrides from there.
        own = {} if variant.like in suite.variants else suite.set
        found.variants[name] = variant.model_copy(update={"set": {**own, **variant.set}})
    for data in suite.data:
        _check_name(path, "data", data)
    for name in suite.variants:
        _check_name(path, "variant", name)
        overrides = _settled(found.variants, name, path)
        for data, dataset in suite.data.items():
            _add_experiment(found, path, suite, name, overrides, data, dataset)
    found.comparators += [name for name in suite.comparators if name not in found.comparators]
    found.contrasts += suite.contrasts


def _add_experiment(
    found: Experiments,
    path: Path,
    suite: Suite,
    name: str,
    overrides: Mapping[str, Any],
    data: str,
    dataset: DataSet,
) -> None:
    base = path.parent / dataset.base
    other = next((one for one in found.experiments if one.data == data and one.base.resolve() != base.resolve()), None)
    if other is not None:
        raise UserError(f"{path}: data.{data}.base is {base}, and in {other.source} it is {other.base}")
    joined = {**dataset.set, **overrides}
    for key in joined:
        if key in GIVEN:
            raise UserError(f"{path}: variant {name} sets {key}, which the command gives every run: leave it out")
    about, tested = suite.variants[name].about, suite.test is None or name in suite.test
    experiment = Experiment(data, name, about, base, tuple(joined.items()), dataset.seeds, tested, str(path))
    found.experiments.append(experiment)


def _settled(variants: Mapping[str, Variant], name: str, path: Path) -> dict[str, Any]:
    """A variant's overrides, those that it starts from first; a later one of a key takes the place of an earlier."""
    chain: list[str] = []
    while True:
        if name in chain:
            raise UserError(f"{path}: variant {name} is like itself ({' → '.join([*chain, name])})")
        if name not in variants:
            raise UserError(f"{path}: variant {chain[-1]} is like '{name}', which is none{nearest(name, [*variants])}")
        chain.append(name)
        like = variants[name].like
        if like is None:
            break
        name = like
    settled: dict[str, Any] = {}
    for name in reversed(chain):
        for key, value in variants[name].set.items():
            settled.pop(key, None)
            settled[key] = value
    return settled


def _check_name(path: Path, kind: str, name: str) -> None:
    if name in (*BASELINES, "truth"):
        raise UserError(f"{path}: {kind} '{name}' has the name of a baseline: give it another")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise UserError(f"{path}: {kind} '{name}' names a folder: write small letters, digits and single dashes")


def _check_names(found: Experiments, suite: Suite, path: Path) -> None:
    """Refuse names that no system has: of contrasts, comparators and what is tested."""
    used = [(f"contrast '{one.question}'", name) for one in suite.contrasts for name in (one.a, one.b)]
    used += [("comparators", name) for name in suite.comparators]
    for where, name in used:
        variant, _, model = name.partition(":")
        if variant not in (found.variants if model else (*found.variants, *BASELINES)):
            known = [*found.variants, *BASELINES]
            raise UserError(f"{path}: {where} names '{name}', which is no variant{nearest(variant, known)}")
        if model not in ("", "sft", "oracle"):
            raise UserError(f"{path}: {where} names '{name}': behind the colon stands sft or oracle")
    for name in suite.test or ():
        if name not in suite.variants:
            raise UserError(f"{path}: test names '{name}', which is no variant{nearest(name, [*suite.variants])}")


def _read(path: Path) -> Suite:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_OnceLoader)
    except FileNotFoundError:
        raise UserError(f"suite {path} does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"suite {path} cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"suite {path} must hold a mapping with data and variants")
    try:
        return Suite.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {line}" for line in explain(error, Suite))) from error


class _OnceLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error: the first variant of a name would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key.value}' stands twice: give one of them another name", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _text(value: Any) -> str:
    """A value as the YAML that an override is read as."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True).removesuffix("...\n").strip()
