"""The whole configuration, read from YAML files and dotted ``--set`` overrides, with faults told in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from rosepo.config.base import Section, nearest
from rosepo.config.data import DataConfig, PrepareConfig
from rosepo.config.losses import LOSSES
from rosepo.config.model import ModelConfig
from rosepo.config.oracle import OracleConfig
from rosepo.config.stages import EvaluateConfig, PairsConfig, RangeConfig, RayConfig, RecommendConfig, SweepConfig
from rosepo.config.training import AlignConfig, SftConfig
from rosepo.errors import UserError


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

    @model_validator(mode="after")
    def _table(self) -> Config:
        for name in ("rso", "oracle"):
            if self.oracle.kind == "table" and name in self.pairs.used:
                raise ValueError(
                    f"pairs.strategies.{name} asks the oracle about titles that nobody knows yet, which no table "
                    "(oracle.kind=table) has scores of: use oracle.kind=scorer"
                )
        if self.oracle.kind == "table" and self.pairs.rounds > 1:
            raise ValueError(
                f"pairs.rounds={self.pairs.rounds}: later rounds draw titles that nobody knows yet, which no table "
                "(oracle.kind=table) has scores of: use oracle.kind=scorer"
            )
        if self.oracle.kind == "table" and self.align.best_metric == "validation_loss":
            raise ValueError(
                "align.best_metric=validation_loss needs groups of validation examples, which no table "
                "(oracle.kind=table) has scores of: use hr@10 or ndcg@10 with align.validation_users"
            )
        return self

    @model_validator(mode="after")
    def _quantized(self) -> Config:
        quantize = "none" if self.model.lora is None else self.model.lora.quantize
        obstacle = self.quantized_obstacle(quantize)
        if obstacle is not None:
            raise ValueError(f"model.lora.quantize={quantize}: {obstacle}")
        return self

    def quantized_obstacle(self, quantize: str) -> str | None:
        """What stands against a base that is held as none, nf4 or int8, with its remedy; None for nothing."""
        if quantize == "none":
            return None
        for train in (self.sft, self.align):
            if train.zero_stage == 3:
                name = train.section
                return f"{name}.zero_stage=3 cannot divide quantized weights: use {name}.zero_stage=2"
        if self.pairs.engine == "vllm":
            return (
                "pairs.engine=vllm would answer with another base than the adapter was trained on: leave pairs.engine"
                " out"
            )
        return None

    @model_validator(mode="after")
    def _candidates(self) -> Config:
        if "candidates" in self.pairs.used and self.prepare.candidates < 2:
            raise ValueError(
                "pairs.strategies.candidates draws from every example's own candidate list: set prepare.candidates to"
                " at least 2"
            )
        return self

    @model_validator(mode="after")
    def _listed(self) -> Config:
        template, setting = self.model.template, "model.template.candidates=true"
        if not template.candidates:
            if "candidates_prefix" in template.model_fields_set:
                raise ValueError(
                    f"model.template.candidates_prefix is used by {setting} alone: set that too, or leave it out"
                )
            return self
        if self.prepare.candidates < 2:
            raise ValueError(
                f"{setting} lists every example's own candidates in its prompt, and prepare.candidates=0 writes none: "
                "set it to 20, say"
            )
        if self.align.rows == "trajectory":
            raise ValueError(
                "align.rows=trajectory shares prompts that are prefixes of one another, and no two prompts with "
                f"candidates of their own are ({setting}): use align.rows=group"
            )
        if self.pairs.engine == "vllm":
            raise ValueError(
                f"pairs.engine=vllm writes freely, and under {setting} the policy's wrong answers are its candidates, "
                "each of which is scored: leave pairs.engine out"
            )
        if "policy" in self.pairs.used:
            raise ValueError(
                f"pairs.strategies.policy draws from the whole catalogue, and under {setting} prompts ask for one of "
                "their candidates: use self_hard, which draws among those"
            )
        if self.evaluate.free_generation:
            raise ValueError(
                f"evaluate.free_generation is for prompts without candidates; under {setting} every example is answered"
                " freely: leave it out"
            )
        for train in (self.sft, self.align):
            if train.validation_users:
                raise ValueError(
                    f"{train.section}.validation_users={train.validation_users} search the catalogue, and under "
                    f"{setting} prompts ask for one of their candidates: use {train.section}.best_metric="
                    "validation_loss, or leave both out"
                )
        return self

    @property
    def reads_candidates(self) -> bool:
        """Whether sampling reads the examples' candidates: to list them in prompts, or to reject them."""
        return self.model.template.candidates or "candidates" in self.pairs.used

    @model_validator(mode="after")
    def _reference(self) -> Config:
        if LOSSES[self.align.loss].reference_free and "reference" in self.pairs.model_fields_set:
            raise ValueError(
                f"pairs.reference={self.pairs.reference} is not used: align.loss={self.align.loss} knows no reference; "
                "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _distill(self) -> Config:
        if self.align.loss == "distill" and self.pairs.used != ("oracle",):
            raise ValueError(
                "align.loss=distill learns the oracle's distribution from titles that were drawn from it, and from no "
                f"others (pairs.strategies has {', '.join(self.pairs.used)}): set pairs.strategies={{oracle: 1}}"
            )
        return self

    @model_validator(mode="after")
    def _optimizer(self) -> Config:
        if self.align.optimizer == "sft" and not self.sft.keep_optimizer:
            raise ValueError(
                "align.optimizer=sft goes on with the optimizer's state of sft, which sft.keep_optimizer=false does "
                "not keep: set sft.keep_optimizer=true, or use align.optimizer=fresh"
            )
        return self

    @model_validator(mode="after")
    def _dropout(self) -> Config:
        if self.align.dropout and self.model.path is None and not self.model.scratch_config.dropout:
            raise ValueError(
                "align.dropout=true keeps the dropout of fine-tuning, and model.scratch.dropout is 0: raise that, or "
                "leave align.dropout out"
            )
        return self

    @model_validator(mode="after")
    def _stream(self) -> Config:
        align = self.align
        constant = align.smoothing == "constant" and align.epsilon_value is None
        if self.pairs.stream and (constant or align.smoothing == "shuffled"):
            setting = f"align.epsilon={align.epsilon}" if align.loss == "pairwise" else f"align.loss={align.loss}"
            remedy = "set align.epsilon_value, or " if constant else ""
            raise ValueError(
                f"{setting} reads the whole table before the first step, which pairs.stream=true"
                f" trains ahead of: {remedy}use pairs.stream=false"
            )
        return self

    @property
    def sweep_parameters(self) -> dict[str, tuple[Any, ...] | RangeConfig]:
        """What a sweep searches, the default filled in."""
        if self.sweep.parameters is not None:
            return self.sweep.parameters
        if not LOSSES[self.align.loss].preference:
            return {"align.learning_rate": (1e-5, 1e-4)}
        search: dict[str, tuple[Any, ...] | RangeConfig] = {"align.beta": (0.1, 1.0)}
        if self.align.clamps_epsilon:
            search["align.epsilon_max"] = (0.2, 0.4)
        if self.align.loss == "softmax":
            search["align.target_min"] = (0.0, 0.5)
        return search


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
        raise UserError("\n".join(f"{source}: {line}" for line in explain(error, Config))) from error


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
    if keys[:2] == ["pairs", "strategies"] and len(keys) > 2:
        # One weight of a mixture is set beside the others, not instead of them.
        pairs = tree.get("pairs") or {}
        tree["pairs"] = {"strategies": dict(PairsConfig().strategies)} | pairs
    if value is None:  # back to the default: what a kept file has set can be taken away again
        for key in keys[:-1]:
            node = node.get(key) or {}
        node.pop(keys[-1], None)
        return
    for key in keys[:-1]:
        child = node.get(key)
        if child is None:
            child = node[key] = {}
        if not isinstance(child, dict):
            raise UserError(f"--set {override!r}: {key} holds a value, not keys")
        node = child
    node[keys[-1]] = value


def explain(error: ValidationError, root: type[Section]) -> list[str]:
    """A sentence a fault, of what was read as a `root`."""
    lines = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "default_factory_not_called":
            continue  # a default that depends on another key: there is a fault in that section, which is told
        if fault["type"] == "extra_forbidden":
            known = _known_keys(root, fault["loc"][:-1])
            lines.append(f"unknown key '{where}'{nearest(str(fault['loc'][-1]), known)}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            value = fault.get("input")
            shown = "" if isinstance(value, (dict, BaseModel)) else f" (got {value!r})"
            lines.append(f"{where}: {message}{shown}" if where and fault["type"] != "value_error" else message)
    return lines


def _known_keys(root: type[Section], location: tuple[int | str, ...]) -> list[str]:
    model: Any = root
    key = False
    for part in location:
        if key:  # of a mapping, or the place in a list: no field
            key = False
            continue
        field = model.model_fields.get(str(part)) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            return []
        types = [arg for arg in getattr(field.annotation, "__args__", ()) if isinstance(arg, type)]
        sections = [arg for arg in types if issubclass(arg, BaseModel)]
        model = next(iter(sections or types), field.annotation)
        key = bool(sections) and get_origin(field.annotation) in (dict, tuple)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
