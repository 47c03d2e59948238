"""Settings of what comes after training: evaluation and the systems of others in it, answers, sweeps; and of Ray."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from rosepo.config.base import ActorsConfig, Count, Positive, Section, nearest, refuse_credentials
from rosepo.config.training import SAME_RESULT, AlignConfig

OWN = ("popular", "markov", "oracle", "sft", "aligned")
"""A run's own systems, in the order in which they are told."""
_TAKEN = (*OWN, "truth")
_ENDINGS = re.compile(r"(\.(parquet|pq|csv|tsv|jsonl|ndjson|json|gz|bz2|zst|lz4))+$", re.IGNORECASE)


@dataclass(frozen=True)
class ExternalSystem:
    """A system that is not the run's own.

    Attributes:
        name: letters, digits, `_`, `.` and `+`; in names of differences `-` stands between two of them.
        location: of a model a folder or hub id, of predictions a file, folder or glob.
        kind: `models` or `predictions`, the key of `evaluate` that has it.
    """

    name: str
    location: str
    kind: str

    @property
    def key(self) -> str:
        """Of the configuration, for messages."""
        return f"evaluate.{self.kind}"


def external_systems(models: Sequence[str], predictions: Sequence[str]) -> dict[str, ExternalSystem]:
    """The systems by name, in order.

    Raises:
        ValueError: a name that cannot be told from the location, that has other characters, or that two systems have.
    """
    found: dict[str, ExternalSystem] = {}
    entries = [("models", entry) for entry in models] + [("predictions", entry) for entry in predictions]
    for kind, entry in entries:
        named = re.fullmatch(r"([^/:=]*)=(.*)", entry)  # no name where a `=` stands further down in a path or URL
        if named and not (re.fullmatch(r"[\w.+]+", named[1]) and named[2]):
            raise ValueError(
                f"evaluate.{kind}: {entry!r} is not NAME=LOCATION, with letters, digits, '_', '.' and '+' in the name "
                f"(a location that has '=' itself: ./{entry})"
            )
        location = named[2] if named else entry
        refuse_credentials(f"evaluate.{kind}", location)
        name = named[1] if named else _name_of(location, kind)
        if not name:
            raise ValueError(f"evaluate.{kind}: {entry!r} tells no name: write NAME={entry}")
        other = found.get(name)
        if name in _TAKEN or other is not None:
            whose = "the run's own" if other is None else f"{other.location}, too"
            raise ValueError(
                f"evaluate.{kind}: {location} would be called '{name}', which is {whose}: give it another name, "
                f"NAME={location}"
            )
        found[name] = ExternalSystem(name, location, kind)
    return found


def _name_of(location: str, kind: str) -> str:
    """The last part of a location without endings; of a model that a run wrote, behind the run's name."""
    parts = [part for part in location.rstrip("/").split("/") if part not in ("", ".", "..")]
    if not parts:
        return ""
    name = _ENDINGS.sub("", parts[-1])
    if kind == "models" and re.fullmatch(r"sft|aligned(-\d+)?", name) and len(parts) > 1:
        name = f"{parts[-2]}_{name}"
    return re.sub(r"[^\w.+]+", "_", name).strip("_.")


class EvaluateConfig(ActorsConfig):
    """Catalogue protocol: rank every title that the user had not chosen yet."""

    batch_size: Count = 64
    """Examples an actor handles at once."""

    split: Literal["test", "validation"] = "test"
    beams: Annotated[int, Field(ge=20)] = 20
    """Beams of the constrained search; at least the largest cut-off, 20."""
    max_examples: Count | None = None
    """Examples, chosen by a hash of their id; None takes all."""
    bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamples of users behind every interval."""
    models: tuple[str, ...] = ()
    """Models ranked beside the run's own, each PATH_OR_ID or NAME=PATH_OR_ID: a model folder of another run on the same
    catalogue, or any causal LM or adapter, read with this run's template. The option --model sets it."""
    predictions: tuple[str, ...] = ()
    """Files of other systems' answers, each FILE or NAME=FILE: rows of user_id or example_id with a list of titles or
    item ids, or user_id, item_id and rank or score (docs/method.md). The option --predictions sets it."""

    add_items: str | None = None
    """Items that are ranked beside those of the run, which no model was trained on: a file, a folder or a glob as
    `data.items`, with the columns of `data.columns`; the format by its ending. The option --add-items sets it."""

    free_generation: Annotated[int, Field(ge=0)] = 0
    """Examples, chosen by a hash of their id, that every language model also answers without a constraint, to tell how
    often that is no title of the catalogue; 0 leaves it out. Where prompts list candidates, every example is."""

    @property
    def external(self) -> dict[str, ExternalSystem]:
        """The systems of `models` and `predictions` by name."""
        return external_systems(self.models, self.predictions)

    def faults(self) -> Iterator[str]:
        external_systems(self.models, self.predictions)
        refuse_credentials("evaluate.add_items", self.add_items or "")
        if self.engine == "vllm" and self.free_generation:
            yield (
                f"evaluate.free_generation={self.free_generation} lets models write without a search, which"
                " evaluate.engine=vllm does not do: leave one of them out"
            )
        yield from self.engine_faults("evaluate")


class RangeConfig(Section):
    """A search range of a sweep: uniform between low and high, on a log scale where `log`."""

    low: float
    high: float
    log: bool = False

    def faults(self) -> Iterator[str]:
        if not self.low < self.high or (self.log and self.low <= 0):
            yield f"sweep range low={self.low} high={self.high} log={self.log}: low < high, and low > 0 for log"


def _kind_of_space(values: Any) -> str:
    return "-range" if isinstance(values, Mapping | RangeConfig) else "-list"


Space = Annotated[
    Annotated[tuple[Any, ...], Tag("-list")] | Annotated[RangeConfig, Tag("-range")], Discriminator(_kind_of_space)
]
"""Values that a sweep tries. Told apart by hand: pydantic would tell the faults of both kinds where one was meant."""


class SweepConfig(Section):
    """Ray Tune over `align.*` keys on the same groups."""

    trials: Annotated[int, Field(ge=0)] | None = None
    """Configurations tried. Where it is set, `rosepo run` sweeps before it aligns, and aligns with the best of them; 0
    and unset leave the sweep out. `rosepo sweep` tries 4 where it is unset."""
    parameters: dict[str, Space] | None = None
    """Dotted key to a list of values or a range {low, high, log}. Lists alone, with trials enough, make a full grid.
    None tries align.beta 0.25 and 1 with align.epsilon_max 0.2 and 0.4 where align.epsilon is clamped (with
    align.target_min 0 and 0.5 for softmax); align.learning_rate 1e-5 and 1e-4 for losses without a beta."""
    metric: Literal["ndcg@10", "hr@10"] = "ndcg@10"
    """Measured on validation examples."""
    max_examples: Count = 500
    """Validation examples a trial is measured on."""
    max_groups: Count | None = None
    """Groups a trial trains on; None takes all."""
    concurrent: Count = 1
    mode: Literal["process", "trainer"] = "process"
    """`process`: every trial trains inside its own process (starts fast). `trainer`: every trial is a TorchTrainer with
    align.workers workers, for models that one process cannot hold."""

    @property
    def n_trials(self) -> int:
        """`trials` of a sweep that is made."""
        return 4 if self.trials is None else self.trials

    def faults(self) -> Iterator[str]:
        for key in self.parameters or {}:
            section, _, name = key.partition(".")
            if section != "align" or name not in AlignConfig.known_keys():
                known = [f"align.{field}" for field in AlignConfig.known_keys()]
                yield f"sweep.parameters has no key '{key}' to search{nearest(key, known)}: keys of align.* alone"
            if name in SAME_RESULT:
                yield f"sweep.parameters.{key} changes no result: leave it out of sweep.parameters"
        if self.parameters is not None and not self.parameters:
            yield "sweep.parameters is empty: name at least one align.* key"


class RecommendConfig(ActorsConfig):
    """Top-k titles for histories."""

    batch_size: Count = 64
    """Histories an actor handles at once."""

    k: Count = 10
    beams: Count = 20

    def faults(self) -> Iterator[str]:
        if self.beams < self.k:
            yield f"recommend.beams={self.beams} is below recommend.k={self.k}"
        yield from self.engine_faults("recommend")


def _seconds(value: Any) -> Any:
    """`90s`, `30m`, `1h30m` as seconds; anything else as it is."""
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", str(value).strip())
    if not isinstance(value, str) or not value.strip() or found is None:
        return value
    return sum(float(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1)))


class RunConfig(Section):
    """What `rosepo run` as a whole may take."""

    budget: Annotated[Positive, BeforeValidator(_seconds)] | None = None
    """Time for all stages together, `30m` or `1h30m` (a number: seconds), shared among the trainings: each stops at its
    share with the best model so far. Results then depend on the machine's speed. None: they train until they are
    done. Sampling, evaluation and starting processes take their time beside it (docs/settings.md)."""


class RayConfig(Section):
    """How rosepo reaches Ray."""

    address: str | None = None
    """A running cluster (`auto`, `HOST:PORT`); None joins the job's cluster or starts Ray on this machine."""
    num_cpus: Count | None = None
    """CPUs that a Ray started here may schedule; None takes the machine's, at least 4, so that two workers and Ray Data
    fit on a laptop with two cores."""
