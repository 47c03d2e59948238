"""Configuration: one frozen model per stage, read from YAML files and dotted ``--set`` overrides.

Unknown keys are errors that name the nearest known key. Rules that join several keys are checked here, so that
nothing starts with a configuration that cannot work.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rosepo.errors import UserError

Fraction = Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]

STRATEGIES = ("self_hard", "semantic", "popularity")


class Section(BaseModel):
    """Base of every section: immutable, closed to unknown keys, documented field by field."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)


class ColumnsConfig(Section):
    """Names of the columns in the user's own files."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    rating: str = "rating"
    timestamp: str = "timestamp"
    title: str = "title"
    categories: str = "categories"


class DataConfig(Section):
    """Where the interactions and the items come from."""

    dataset: Literal["movietweetings-100k"] | None = None
    """A data set that ships with rosepo, instead of files."""
    interactions: str | None = None
    """Parquet, CSV, TSV, JSON Lines, MovieLens `.dat`/`.csv` or RecBole `.inter`: a file, a folder or a glob; a local
    path or a URL that pyarrow reads (`s3://`, `gs://`)."""
    items: str | None = None
    """The same for items (RecBole: `.item`)."""
    format: Literal["auto", "parquet", "csv", "tsv", "jsonl", "movielens", "recbole"] = "auto"
    """`auto` goes by the file's ending and, for CSV, by its header."""
    columns: ColumnsConfig = ColumnsConfig()

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        files = [name for name in ("interactions", "items") if getattr(self, name) is not None]
        if self.dataset is not None and files:
            raise ValueError(f"data.dataset={self.dataset} excludes data.{files[0]}: give one or the other")
        for name in files:
            _, scheme, rest = getattr(self, name).partition("://")
            if scheme and "@" in rest.split("/", 1)[0]:
                raise ValueError(
                    f"data.{name} carries credentials in its URL: give them by environment or profile instead"
                )
        if len(files) == 1:
            missing = "items" if files == ["interactions"] else "interactions"
            raise ValueError(f"data.{files[0]} is given without data.{missing}: both are needed")
        return self


class PrepareConfig(Section):
    """From interactions to examples."""

    min_rating: float | None = Field(default=None, allow_inf_nan=False)
    """Keep interactions rated at least this. None keeps all, whatever their rating."""
    k_core: Count = 5
    """Drop users and items with fewer interactions, repeated until stable."""
    split: Literal["leave_one_out", "temporal"] = "leave_one_out"
    """`leave_one_out`: each user's last item is test, the one before validation. `temporal`: by global time."""
    validation_fraction: Fraction = 0.1
    """Share of interactions (by time) in validation. Used by `temporal` alone."""
    test_fraction: Fraction = 0.1
    """Share of interactions (by time) in test. Used by `temporal` alone."""
    min_history: Count = 1
    """Shortest history that makes an example."""
    max_history: Count = 50
    """Longest history; older items are left out and counted."""
    window: Literal["anchored", "sliding"] = "anchored"
    """How long training histories are cut. `anchored` keeps histories of one user prefixes of one another, so that they
    share a row in training; `sliding` always keeps the newest `max_history` items."""
    candidates: Annotated[int, Field(ge=0)] = 0
    """Candidates a list (target included) for the candidate protocol; 0 writes none."""
    duplicate_titles: Literal["disambiguate", "refuse"] = "refuse"
    """Two items with one normalised title: append ` (2)`, ` (3)`, … in item order, or stop."""

    @model_validator(mode="after")
    def _rules(self) -> PrepareConfig:
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise ValueError("prepare.validation_fraction + prepare.test_fraction must stay below 1")
        if self.split != "temporal" and self.model_fields_set & {"validation_fraction", "test_fraction"}:
            raise ValueError(
                "prepare.validation_fraction and prepare.test_fraction are used by prepare.split=temporal alone"
            )
        if self.max_history < self.min_history:
            raise ValueError(f"prepare.max_history={self.max_history} is below prepare.min_history={self.min_history}")
        if self.candidates == 1:
            raise ValueError("prepare.candidates=1 would hold the target alone: use 0 or at least 2")
        return self


class ScratchConfig(Section):
    """A small Llama with a BPE tokenizer trained on the catalogue: needs no download."""

    hidden_size: Count = 128
    layers: Count = 2
    heads: Count = 4
    intermediate_size: Count = 512
    vocab_size: Annotated[int, Field(ge=300)] = 8192
    """Upper bound of the tokenizer's vocabulary (bytes included)."""
    split_words: bool = False
    """False lets merges cross spaces: frequent titles become one or two tokens."""
    dropout: Rate = 0.3

    @model_validator(mode="after")
    def _heads(self) -> ScratchConfig:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"model.scratch.hidden_size={self.hidden_size} must be a multiple of 2 * heads={2 * self.heads}"
            )
        return self


class LoraConfig(Section):
    """Low-rank adapters instead of full training (PEFT)."""

    rank: Count = 16
    alpha: Positive = 32.0
    dropout: Rate = 0.05
    target_modules: str | tuple[str, ...] = "all-linear"


class TemplateConfig(Section):
    """How a history becomes a prompt: BOS (if there is one), `prefix`, every title followed by `separator`, `suffix`.

    Parts are tokenised one by one and joined in token space, so that the boundary between prompt and completion is the
    same everywhere. `{eos}` in a part stands for the end-of-sequence token.
    """

    prefix: str = "Titles that one person liked, oldest first:\n"
    separator: str = "\n"
    suffix: str = ""
    """Text between the last title and the completion."""
    candidates_prefix: str = "Choose from:\n"
    """Opens the candidate list in the candidate protocol (between `prefix` and the history)."""

    @model_validator(mode="after")
    def _separator(self) -> TemplateConfig:
        if not self.separator:
            raise ValueError("model.template.separator is empty: titles would run into one another")
        return self


class ModelConfig(Section):
    """The language model that becomes the recommender."""

    path: str | None = None
    """Hub id or local folder of any causal LM that Transformers loads. None trains `scratch`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    scratch: ScratchConfig | None = None
    lora: LoraConfig | None = None
    """None trains all weights."""
    max_length: Annotated[int, Field(ge=16)] = 512
    """Tokens of prompt and completion together; over-long prompts lose their oldest items."""
    template: TemplateConfig = TemplateConfig()

    @model_validator(mode="after")
    def _one_model(self) -> ModelConfig:
        if self.path is not None and self.scratch is not None:
            raise ValueError(f"model.path={self.path} excludes model.scratch: give one or the other")
        if self.path is None and self.revision is not None:
            raise ValueError("model.revision needs model.path")
        if self.path is None and self.lora is not None:
            raise ValueError("model.lora needs a pretrained model.path: a model from scratch has no base to adapt")
        return self

    @property
    def scratch_config(self) -> ScratchConfig:
        """The scratch settings, defaults filled in."""
        return self.scratch or ScratchConfig()


class TrainConfig(Section):
    """What `sft` and `align` share: a Ray Train TorchTrainer running a DeepSpeed engine."""

    workers: Count = 1
    cpus_per_worker: Positive = 1.0
    gpu: Literal["auto", "yes", "no"] = "auto"
    """One GPU a worker: where the cluster has them, always, or never."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    activation_checkpointing: bool = False
    epochs: Positive = 1.0
    """Passes over the training rows; fractions allowed."""
    batch_size: Count = 32
    """Rows a step over all workers; the loss is a mean over them, however they are split."""
    micro_batch_size: Count = 16
    """Rows a worker puts through the model at once; gradients accumulate to `batch_size`."""
    pack_tokens: Count | None = None
    """Short rows share lines of up to this many tokens, without attention between them; unset, each is padded instead."""
    learning_rate: Positive = 1e-4
    warmup_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    """Share of the steps with a linear warm-up, before the cosine."""
    min_learning_rate: NonNegative = 0.0
    """Where the cosine ends."""
    weight_decay: NonNegative = 0.01
    max_grad_norm: Positive = 1.0
    log_every: Count = 10
    """Steps between two lines of metrics."""


class SftConfig(TrainConfig):
    """Supervised fine-tuning on next titles; the loss falls on completions alone."""

    learning_rate: Positive = 2e-4


class OracleConfig(Section):
    """SASRec (arXiv 1808.09781) with cross-entropy over the full catalogue: the preference oracle."""

    workers: Count = 1
    cpus_per_worker: Positive = 1.0
    gpu: Literal["auto", "yes", "no"] = "auto"
    hidden_size: Count = 64
    layers: Count = 2
    heads: Count = 2
    dropout: Rate = 0.5
    learning_rate: Positive = 3e-3
    weight_decay: NonNegative = 0.01
    batch_size: Count = 64
    """Users a step over all workers."""
    max_epochs: Count = 200
    evaluate_every: Count = 1
    """Epochs between two looks at validation."""
    patience: Count = 10
    """Looks without a better NDCG@10 on validation before stopping."""
    max_seconds: Positive | None = None
    """Also stop after this long; None trains to the end."""

    @model_validator(mode="after")
    def _heads(self) -> OracleConfig:
        if self.hidden_size % self.heads:
            raise ValueError(f"oracle.hidden_size={self.hidden_size} must be a multiple of oracle.heads={self.heads}")
        return self


class PairsConfig(Section):
    """Rejected sampling: preference groups from training examples."""

    negatives: Count = 1
    """K, rejected titles a group; all distinct."""
    strategies: dict[str, NonNegative] = {"self_hard": 1.0, "semantic": 1.0, "popularity": 1.0}
    """Weights of the mixture."""
    self_hard_top: Count = 10
    """self_hard draws from this many best wrong answers of the model (1 is the hardest)."""
    semantic_top: Count = 20
    """semantic draws from this many look-alikes of the history."""
    semantic_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Weight of an item in the history relative to the next newer one."""
    popularity_exponent: NonNegative = 1.0
    encoder: str = "policy"
    """Title encoder of `semantic` and of the evaluation: `policy` (the SFT model's own title embeddings), `tfidf`
    (titles and categories), or the hub id or path of an encoder."""
    groups_per_user: Count | None = None
    """Newest training examples of each user that become groups; None takes all."""
    actors: Count = 1
    cpus_per_actor: Positive = 1.0
    gpu: Literal["auto", "yes", "no"] = "auto"
    batch_size: Count = 64
    """Examples an actor handles at once."""

    @model_validator(mode="after")
    def _strategies(self) -> PairsConfig:
        for name in self.strategies:
            if name not in STRATEGIES:
                raise ValueError(
                    f"pairs.strategies has no '{name}'{_nearest(name, STRATEGIES)}; known: {', '.join(STRATEGIES)}"
                )
        if not any(weight > 0 for weight in self.strategies.values()):
            raise ValueError("pairs.strategies needs at least one weight above 0")
        return self


class AlignConfig(TrainConfig):
    """The smoothed preference objective, from the SFT model, which is also the reference."""

    learning_rate: Positive = 3e-5
    beta: Positive = 1.0
    """Strength of the tie to the reference."""
    loss: Literal["pairwise", "softmax"] = "pairwise"
    epsilon_max: Annotated[float, Field(ge=0.0, lt=0.5, allow_inf_nan=False)] = 0.4
    """Upper clamp of every pair's smoothing; 0 is DPO. Used by `pairwise`."""
    target_min: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Lower clamp of the chosen title's target. Used by `softmax`."""

    @model_validator(mode="after")
    def _used(self) -> AlignConfig:
        if self.loss == "pairwise" and "target_min" in self.model_fields_set:
            raise ValueError("align.target_min is used by align.loss=softmax alone")
        if self.loss == "softmax" and "epsilon_max" in self.model_fields_set:
            raise ValueError("align.epsilon_max is used by align.loss=pairwise alone")
        return self


class EvaluateConfig(Section):
    """Catalogue protocol: rank every title of the catalogue outside the history."""

    split: Literal["test", "validation"] = "test"
    beams: Annotated[int, Field(ge=20)] = 20
    """Beams of the constrained search; at least the largest cut-off, 20."""
    max_examples: Count | None = None
    """Examples, chosen by a hash of their id; None takes all."""
    bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamples of users behind every interval."""
    actors: Count = 1
    cpus_per_actor: Positive = 1.0
    gpu: Literal["auto", "yes", "no"] = "auto"
    batch_size: Count = 64


class RangeConfig(Section):
    """A search range of a sweep: uniform between low and high, on a log scale where `log`."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _order(self) -> RangeConfig:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"sweep range low={self.low} high={self.high} log={self.log}: low < high, and low > 0 for log"
            )
        return self


class SweepConfig(Section):
    """Ray Tune over `align.*` keys on the same groups."""

    trials: Annotated[int, Field(ge=0)] = 4
    """Configurations tried; 0 leaves the sweep out of `rosepo run`."""
    parameters: dict[str, tuple[Any, ...] | RangeConfig] | None = None
    """Dotted key to a list of values or a range {low, high, log}. Lists alone, with trials enough, make a full grid.
    None tries align.beta 0.1 and 1 with align.epsilon_max 0.2 and 0.4 (align.target_min 0 and 0.5 for softmax)."""
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

    @model_validator(mode="after")
    def _keys(self) -> SweepConfig:
        for key in self.parameters or {}:
            section, _, name = key.partition(".")
            if section != "align" or name not in AlignConfig.model_fields:
                known = [f"align.{field}" for field in AlignConfig.model_fields]
                raise ValueError(
                    f"sweep.parameters has no key '{key}' to search{_nearest(key, known)}: keys of align.* alone"
                )
        if self.parameters is not None and not self.parameters:
            raise ValueError("sweep.parameters is empty: name at least one align.* key")
        return self


class RecommendConfig(Section):
    """Top-k titles for histories."""

    k: Count = 10
    beams: Count = 20
    actors: Count = 1
    cpus_per_actor: Positive = 1.0
    gpu: Literal["auto", "yes", "no"] = "auto"
    batch_size: Count = 64

    @model_validator(mode="after")
    def _beams(self) -> RecommendConfig:
        if self.beams < self.k:
            raise ValueError(f"recommend.beams={self.beams} is below recommend.k={self.k}")
        return self


class RayConfig(Section):
    """How rosepo reaches Ray."""

    address: str | None = None
    """A running cluster (`auto`, `HOST:PORT`); None joins the job's cluster or starts Ray on this machine."""
    num_cpus: Count | None = None
    """CPUs that a Ray started here may schedule; None takes the machine's, at least 4, so that two workers and Ray Data
    fit on a laptop with two cores."""


class Config(Section):
    """Everything a run needs, a section a stage."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataConfig = DataConfig()
    prepare: PrepareConfig = PrepareConfig()
    model: ModelConfig = ModelConfig()
    sft: SftConfig = SftConfig()
    oracle: OracleConfig = OracleConfig()
    pairs: PairsConfig = PairsConfig()
    align: AlignConfig = AlignConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    sweep: SweepConfig = SweepConfig()
    recommend: RecommendConfig = RecommendConfig()
    ray: RayConfig = RayConfig()

    @property
    def sweep_parameters(self) -> dict[str, tuple[Any, ...] | RangeConfig]:
        """What a sweep searches, the default filled in."""
        if self.sweep.parameters is not None:
            return self.sweep.parameters
        clamp: dict[str, tuple[Any, ...] | RangeConfig] = (
            {"align.epsilon_max": (0.2, 0.4)} if self.align.loss == "pairwise" else {"align.target_min": (0.0, 0.5)}
        )
        return {"align.beta": (0.1, 1.0), **clamp}


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file (defaults where None) with ``section.key=value`` overrides, values read as YAML.

    Raises:
        UserError: a file that cannot be read, an unknown key (naming the nearest known one), a value of the wrong type
            or outside its range, or rules that join keys.
    """
    tree = _read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {override!r} is not section.key=value")
        try:
            _assign(tree, key.strip().split("."), yaml.safe_load(text), override)
        except yaml.YAMLError as error:
            raise UserError(f"--set {override!r}: the value is not YAML ({error})") from error
    return parse_config(tree, source=str(path) if path is not None else "--set")


def parse_config(tree: Mapping[str, Any], source: str = "config") -> Config:
    """Validate a nested mapping. Raises UserError with every fault on its own line."""
    try:
        return Config.model_validate(dict(tree))
    except ValidationError as error:
        raise UserError("\n".join(f"{source}: {line}" for line in _explain(error))) from error


def dump_config(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back to an equal one: only keys that were set."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"config file {path} does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"config file {path} cannot be read: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"config file {path} must hold a mapping of sections, not a {type(tree).__name__}")
    return tree


def _assign(tree: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    node = tree
    # Keys of sweep.parameters hold a dot themselves: everything behind it is one key.
    if keys[:2] == ["sweep", "parameters"] and len(keys) > 2:
        keys = [*keys[:2], ".".join(keys[2:])]
    for key in keys[:-1]:
        child = node.get(key)
        if child is None:
            child = node[key] = {}
        if not isinstance(child, dict):
            raise UserError(f"--set {override!r}: {key} holds a value, not keys")
        node = child
    node[keys[-1]] = value


def _explain(error: ValidationError) -> list[str]:
    lines = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = _known_keys(fault["loc"][:-1])
            lines.append(f"unknown key '{where}'{_nearest(str(fault['loc'][-1]), known)}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            value = fault.get("input")
            shown = "" if isinstance(value, (dict, BaseModel)) else f" (got {value!r})"
            lines.append(f"{where}: {message}{shown}" if where and fault["type"] != "value_error" else message)
    return lines


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Config
    for part in location:
        field = model.model_fields.get(str(part)) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            return []
        model = next(
            (arg for arg in getattr(field.annotation, "__args__", ()) if isinstance(arg, type)), field.annotation
        )
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _nearest(name: str, known: Sequence[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if match:
        return f" (did you mean '{match[0]}'?)"
    return f" (known: {', '.join(known)})" if known else ""
