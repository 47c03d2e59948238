"""Settings of the stages around training, and of Ray."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from rosepo.config.base import STRATEGIES, Count, Gpu, NonNegative, Positive, Section, nearest, word
from rosepo.config.given import Given, given_systems
from rosepo.config.training import SAME_RESULT, AlignConfig


class ActorsConfig(Section):
    """What the stages that run Ray Data actors share."""

    actors: Count = 1
    cpus_per_actor: Positive = 1.0
    gpu: Gpu = "auto"
    """One GPU an actor: where the cluster has them, always, or never."""


_OPTIONS = {
    "self_hard_top": ("self_hard",),
    "semantic_top": ("semantic",),
    "popularity_exponent": ("popularity", "rso_from=popularity"),
    "rso_from": ("rso",),
    "rso_proposals": ("rso",),
    "rso_temperature": ("rso",),
    "policy_top": ("policy",),
    "oracle_top": ("oracle",),
}
"""Options of strategies, and which ones use them."""


class PairsConfig(ActorsConfig):
    """Rejected sampling: preference groups from training examples."""

    negatives: Count = 1
    """K, rejected titles a group; all distinct."""
    strategies: dict[str, NonNegative] = Field(default_factory=lambda: dict.fromkeys(STRATEGIES[:3], 1.0))
    """Weights of the mixture: self_hard, semantic, popularity, uniform, candidates, rso, policy, oracle, or one of your
    own by its import path, `module:callable` (rosepo/sampling/strategies.py has the signature)."""
    self_hard_top: Count = 10
    """self_hard draws from this many best wrong answers of the model (1 is the hardest)."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """Who answers for self_hard and policy, and for rso: `transformers` searches the catalogue for the model's best
    titles; `vllm` (not for policy), on GPUs and where it is installed, samples freely and keeps what is a title
    (docs/method.md)."""
    semantic_top: Count = 20
    """semantic draws from this many look-alikes of the history."""
    semantic_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Weight of an item in the history relative to the next newer one."""
    popularity_exponent: NonNegative = 1.0
    rso_from: Literal["self_hard", "popularity", "uniform"] = "self_hard"
    """What rso accepts or rejects: the model's best wrong answers, or draws of another strategy."""
    rso_proposals: Count = 20
    """Titles proposed to rso an example."""
    rso_temperature: Positive = 1.0
    """rso accepts a proposal with probability exp((f - f_max) / this), f the oracle's calibrated score."""
    policy_top: Count = 50
    """policy draws titles, each at most once, from the model's own distribution over this many of its best wrong
    answers."""
    oracle_top: Count | None = None
    """oracle draws titles, each at most once, from the distribution of its calibrated scores, softmax(f), over this
    many of its best titles outside what was seen; None over all of them."""
    encoder: str = "policy"
    """Title encoder of `semantic` and of the evaluation: `policy` (title embeddings of the model that samples, in the
    evaluation of the SFT model), `tfidf` (titles and categories), or the hub id or path of an encoder."""
    groups_per_user: Count | None = None
    """Newest training examples of each user that become groups; None takes all."""
    rounds: Count = 1
    """Rounds of pairs and align; from the second on the newest aligned model samples, and is trained on."""
    reference: Literal["frozen", "moved"] = "frozen"
    """Reference of the rounds after the first: `frozen` is the SFT model, `moved` the model that the round starts
    from. Used with rounds above 1 alone."""
    score: bool = True
    """Give every pair its epsilon and the reference's log-probabilities, as `align` needs them. false: rejected titles
    alone; no model or oracle is loaded that no strategy asks."""
    part_groups: Count | None = None
    """Groups a part file, in whole units of 256; None goes by the size of the table. Changes no group."""
    stream: bool = False
    """Groups flow into `align` while they are sampled: pairs and align run at the same time, and the table is written
    on the way. Training then shuffles within the groups of a part file (pairs.part_groups), not within 65,536."""
    reference_cache: Annotated[str, BeforeValidator(word)] = "auto"
    """Folder of reference log-probabilities, keyed by what they depend on, which runs share: `auto` is
    $ROSEPO_CACHE/reference or ~/.cache/rosepo/reference, `no` keeps none. On a cluster, a folder that all nodes see."""

    @property
    def used(self) -> tuple[str, ...]:
        """Strategies of a weight above 0, sorted."""
        return tuple(sorted(name for name, weight in self.strategies.items() if weight > 0))

    @property
    def asks_policy(self) -> bool:
        """Whether a strategy needs the policy's answers."""
        rso = "rso" in self.used and self.rso_from == "self_hard"
        return rso or not {"self_hard", "policy"}.isdisjoint(self.used)

    @property
    def asks_oracle(self) -> bool:
        """Whether a strategy needs the oracle's scores."""
        return not {"rso", "oracle"}.isdisjoint(self.used)

    @model_validator(mode="after")
    def _rounds(self) -> PairsConfig:
        if self.rounds == 1 and "reference" in self.model_fields_set:
            raise ValueError(
                f"pairs.reference={self.reference} is used by the rounds after the first: leave it out, or set "
                "pairs.rounds above 1"
            )
        return self

    @model_validator(mode="after")
    def _strategies(self) -> PairsConfig:
        for name in self.strategies:
            if name not in STRATEGIES and not re.fullmatch(r"[\w.]+:\w+", name):
                raise ValueError(
                    f"pairs.strategies has no '{name}'{nearest(name, STRATEGIES)}; known: {', '.join(STRATEGIES)}, "
                    "or module:callable"
                )
        if not self.used:
            raise ValueError("pairs.strategies needs at least one weight above 0")
        used = {*self.used, f"rso_from={self.rso_from}"} if "rso" in self.used else {*self.used}
        for option, users in _OPTIONS.items():
            if option in self.model_fields_set and not used.intersection(users):
                raise ValueError(
                    f"pairs.{option} is used by the strategy {' or '.join(users)} alone, which has no weight"
                )
        if not self.score and "reference_cache" in self.model_fields_set:
            raise ValueError("pairs.reference_cache is used by pairs.score=true alone: leave it out")
        if not self.score and self.stream:
            raise ValueError("pairs.stream=true streams groups into align, which reads none of pairs.score=false")
        if not self.score and self.rounds > 1:
            raise ValueError(f"pairs.rounds={self.rounds} aligns in between, which pairs.score=false leaves no way to")
        for name in ("policy", "oracle"):
            top = getattr(self, f"{name}_top")
            if name in self.used and top is not None and top < self.negatives:
                raise ValueError(
                    f"pairs.{name}_top={top} holds fewer titles than pairs.negatives={self.negatives} draws: raise it"
                )
        if self.engine == "vllm" and "policy" in self.used:
            raise ValueError(
                "pairs.strategies.policy draws among the model's best titles of the catalogue, which pairs.engine=vllm"
                " does not search for: leave pairs.engine out"
            )
        if "engine" in self.model_fields_set and not self.asks_policy:
            raise ValueError(
                "pairs.engine is used where the model's own answers are rejected (self_hard, or rso with"
                " rso_from=self_hard), which has no weight: give it one, or leave pairs.engine out"
            )
        return self


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

    @property
    def given(self) -> dict[str, Given]:
        """The systems of `models` and `predictions` by name."""
        return given_systems(self.models, self.predictions)

    @model_validator(mode="after")
    def _given(self) -> EvaluateConfig:
        given_systems(self.models, self.predictions)
        return self


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
    None tries align.beta 0.1 and 1 with align.epsilon_max 0.2 and 0.4 where align.epsilon is clamped (with
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

    @model_validator(mode="after")
    def _keys(self) -> SweepConfig:
        for key in self.parameters or {}:
            section, _, name = key.partition(".")
            if section != "align" or name not in AlignConfig.model_fields:
                known = [f"align.{field}" for field in AlignConfig.model_fields]
                raise ValueError(
                    f"sweep.parameters has no key '{key}' to search{nearest(key, known)}: keys of align.* alone"
                )
            if name in SAME_RESULT:
                raise ValueError(f"sweep.parameters.{key} changes no result: leave it out of sweep.parameters")
        if self.parameters is not None and not self.parameters:
            raise ValueError("sweep.parameters is empty: name at least one align.* key")
        return self


class RecommendConfig(ActorsConfig):
    """Top-k titles for histories."""

    batch_size: Count = 64
    """Histories an actor handles at once."""

    k: Count = 10
    beams: Count = 20

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
