"""The whole configuration, and the rules that join keys of several sections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from rosepo.config.base import Section
from rosepo.config.data import DataConfig, PrepareConfig
from rosepo.config.evaluation import EvaluateConfig, RangeConfig, RayConfig, RecommendConfig, RunConfig, SweepConfig
from rosepo.config.losses import LOSSES, SMOOTHINGS
from rosepo.config.model import ModelConfig
from rosepo.config.oracle import OracleConfig
from rosepo.config.pairs import PairsConfig
from rosepo.config.training import AlignConfig, SftConfig

MOST_NEGATIVES = 15
"""Rejected titles a group where `pairs.negatives` is left open."""
NO_END = (
    "model.template.end is empty, as where each title is one token: a model cannot spell a title there that it has no "
    "token for. Train one that spells them all and ends each, --set model.scratch.whole_titles=0 --set "
    "model.scratch.vocab_size=1024, or a pretrained one (model.path)"
)
"""Why there are models that new titles cannot be added to, and what can be done."""


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
    run: RunConfig = RunConfig()
    ray: RayConfig = RayConfig()

    def faults(self) -> Iterator[str]:
        quantize = "none" if self.model.lora is None else self.model.lora.quantize
        obstacle = self.quantized_obstacle(quantize)
        if obstacle is not None:
            yield f"model.lora.quantize={quantize}: {obstacle}"
        if self.pairs.score and self.pairs.precision not in ("auto", self.align.precision):
            yield (
                f"pairs.precision={self.pairs.precision} is not align.precision={self.align.precision}: the "
                "reference's log-probabilities would not be those that training starts from; leave pairs.precision out"
            )
        asking = self.pairs.asking("candidates")
        if asking and self.prepare.candidates < 2:
            yield (
                f"pairs.strategies.{asking[0]} draws from every example's own candidate list: set prepare.candidates to"
                " at least 2"
            )
        yield from self._faults_of_listing()
        if self.evaluate.add_items is not None and not self.model.template.end:
            yield f"evaluate.add_items={self.evaluate.add_items} adds titles, and {NO_END}"
        if LOSSES[self.align.loss].reference_free and "reference" in self.pairs.model_fields_set:
            yield (
                f"pairs.reference={self.pairs.reference} is not used: align.loss={self.align.loss} knows no reference; "
                "leave it out"
            )
        if "weights" in LOSSES[self.align.loss].inputs and self.pairs.used != ("oracle",):
            yield (
                f"align.loss={self.align.loss} learns the oracle's distribution from titles that were drawn from it, "
                f"and from no others (pairs.strategies has {', '.join(self.pairs.used)}): "
                "set pairs.strategies={oracle: 1}"
            )
        if self.align.optimizer == "sft" and not self.sft.keep_optimizer:
            yield (
                "align.optimizer=sft goes on with the optimizer's state of sft, which sft.keep_optimizer=false does "
                "not keep: set sft.keep_optimizer=true, or use align.optimizer=fresh"
            )
        if self.align.dropout and self.model.path is None and not self.model.scratch_config.dropout:
            yield (
                "align.dropout=true keeps the dropout of fine-tuning, and model.scratch.dropout is 0: raise that, or "
                "leave align.dropout out"
            )
        align = self.align
        constant = align.smoothing == "constant" and align.epsilon_value is None
        if self.pairs.stream and (constant or align.smoothing == "shuffled"):
            key = "epsilon" if LOSSES[align.loss].takes_epsilon else "loss"
            remedy = "set align.epsilon_value, or " if constant else ""
            yield (
                f"align.{key}={getattr(align, key)} reads the whole table before the first step, which "
                f"pairs.stream=true trains ahead of: {remedy}use pairs.stream=false"
            )

    def _faults_of_listing(self) -> Iterator[str]:
        template, setting = self.model.template, "model.template.candidates=true"
        if not template.candidates:
            if "candidates_prefix" in template.model_fields_set:
                yield f"model.template.candidates_prefix is used by {setting} alone: set that too, or leave it out"
            return
        if self.prepare.candidates < 2:
            yield (
                f"{setting} lists every example's own candidates in its prompt, and prepare.candidates=0 writes none: "
                "set it to 20, say"
            )
        if self.align.rows == "trajectory":
            yield (
                "align.rows=trajectory shares prompts that are prefixes of one another, and no two prompts with "
                f"candidates of their own are ({setting}): use align.rows=group"
            )
        if "row_tokens" in self.align.model_fields_set:
            yield f"align.row_tokens is for users' trajectories, and under {setting} rows are groups: leave it out"
        for section in ("pairs", "evaluate"):
            if getattr(self, section).engine == "vllm":
                yield (
                    f"{section}.engine=vllm searches the catalogue, and under {setting} each of an example's candidates"
                    f" is scored: leave {section}.engine out"
                )
        searching = self.pairs.asking("search")
        if searching:
            yield (
                f"pairs.strategies.{searching[0]} draws from the whole catalogue, and under {setting} prompts ask for "
                "one of their candidates: use self_hard, which draws among those"
            )
        if self.evaluate.add_items is not None:
            yield (
                f"evaluate.add_items is not used under {setting}, where examples have candidates of their own: leave "
                "it out"
            )
        if self.evaluate.free_generation:
            yield (
                f"evaluate.free_generation is for prompts without candidates; under {setting} every example is answered"
                " freely: leave it out"
            )
        for train in (self.sft, self.align):
            if train.validation_users:
                yield (
                    f"{train.section}.validation_users={train.validation_users} search the catalogue, and under "
                    f"{setting} prompts ask for one of their candidates: use {train.section}.best_metric="
                    "validation_loss, or leave both out"
                )

    def quantized_obstacle(self, quantize: str) -> str | None:
        """What stands against a base that is held as none, nf4 or int8, with its remedy; None for nothing."""
        if quantize == "none":
            return None
        for train in (self.sft, self.align):
            if train.zero_stage == 3:
                name = train.section
                return f"{name}.zero_stage=3 cannot divide quantized weights: use {name}.zero_stage=2"
        for section in ("pairs", "evaluate", "recommend"):
            if getattr(self, section).engine == "vllm":
                return (
                    f"{section}.engine=vllm would answer with another base than the adapter was trained on: leave"
                    f" {section}.engine out"
                )
        return None

    def precision(self, section: str, on_gpu: bool) -> str:
        """float32 or bfloat16: what the language models of pairs, evaluate or recommend are held and run in."""
        asked: str = getattr(self, section).precision
        if asked != "auto":
            return asked
        if section == "pairs" and self.pairs.score:
            return self.align.precision
        return "bfloat16" if on_gpu else "float32"

    def negatives(self, allowed: int) -> int:
        """K, rejected titles a group (`pairs.negatives`), where the catalogue has `allowed` for every one of them."""
        if self.pairs.negatives is not None:
            return self.pairs.negatives
        listed = (self.prepare.candidates - 1,) if self.reads_candidates else ()
        return min(MOST_NEGATIVES, allowed, *self.pairs.tops.values(), *listed)

    @property
    def trajectories(self) -> bool:
        """Whether a row of alignment is a user's trajectory (`align.rows`)."""
        return self.align.rows != "group" and not self.model.template.candidates

    def full_row(self, stage: str) -> int:
        """Tokens of a row of `sft` or `align` at most, but for one of a single group and for what a template puts
        between a prompt and each of its titles."""
        length = self.model.max_length
        return max(length, self.align.row_tokens) if stage == "align" and self.trajectories else length

    @property
    def learns_whole(self) -> bool:
        """Whether alignment learns the oracle's whole distribution, at every branching of the titles."""
        return LOSSES[self.align.loss].whole and self.pairs.oracle_whole

    @property
    def reads_candidates(self) -> bool:
        """Whether sampling reads the examples' candidates: to list them in prompts, or to reject them."""
        return self.model.template.candidates or bool(self.pairs.asking("candidates"))

    @property
    def sweep_parameters(self) -> dict[str, tuple[Any, ...] | RangeConfig]:
        """What a sweep searches, the default filled in."""
        if self.sweep.parameters is not None:
            return self.sweep.parameters
        if not LOSSES[self.align.loss].preference:
            return {"align.learning_rate": (1e-5, 1e-4)}
        search: dict[str, tuple[Any, ...] | RangeConfig] = {"align.beta": (0.25, 1.0)}
        if self.align.clamps_epsilon:
            search["align.epsilon_max"] = (0.2, 0.4)
        if "targets" in LOSSES[self.align.loss].inputs:
            search["align.target_min"] = (0.0, 0.5)
        return search


def shape_of(config: Config, figures: Mapping[str, Any]) -> str:
    """What the loss aims at, in a few words; `figures` of the manifest of `align` hold a value that it computed."""
    align, kind = config.align, config.align.smoothing
    settings = align.model_dump() | {"oracle_whole": config.pairs.oracle_whole}
    settings["epsilon_value"] = figures.get("epsilon_value", align.epsilon_value)
    found = LOSSES[align.loss].shape if kind is None else SMOOTHINGS[kind].shape
    shape = found.format(**settings) if isinstance(found, str) else found(settings)
    return f"{shape}, SFT weight {align.sft_weight:g}" if align.sft_weight > 0 else shape
