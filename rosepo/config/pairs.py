"""Settings of rejected sampling."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from rosepo.config.base import STRATEGIES, ActorsConfig, Count, NonNegative, Positive, nearest, word

_OPTIONS = {
    "self_hard_top": ("self_hard",),
    "semantic_top": ("semantic",),
    "popularity_exponent": ("popularity", "rso_from=popularity"),
    "rso_from": ("rso",),
    "rso_proposals": ("rso",),
    "rso_temperature": ("rso",),
    "policy_top": ("policy",),
    "oracle_top": ("oracle",),
    "oracle_whole": ("oracle",),
}
"""Options of strategies, and which ones use them."""


class PairsConfig(ActorsConfig):
    """Rejected sampling: preference groups from training examples."""

    negatives: Count | None = None
    """K, rejected titles a group; all distinct. None takes 15, or as many as every group can have where that is fewer:
    titles outside the longest history, wrong candidates of an example, titles that policy or oracle draw from."""
    strategies: dict[str, NonNegative] = Field(default_factory=lambda: dict.fromkeys(STRATEGIES[:3], 1.0))
    """Weights of the mixture: self_hard, semantic, popularity, uniform, candidates, rso, policy, oracle, or one of your
    own by its import path, `module:callable` (rosepo/sampling/strategies/strategies.py has the signature)."""
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
    oracle_whole: bool = False
    """Keep the distribution that oracle draws from in every group, two bytes a title of the catalogue: wherever titles
    part, align.loss=distill then learns from all of them at once, not only from those that were drawn."""
    encoder: str = "policy"
    """Title encoder of `semantic` and of the evaluation: `policy` (title embeddings of the model that samples, in the
    evaluation of the SFT model), `tfidf` (titles and categories), or the hub id or path of an encoder."""
    groups_per_user: Count | Literal["all"] = 8
    """Newest training examples of each user that become groups, or `all` of them."""
    rounds: Count = 1
    """Rounds of pairs and align; from the second on the newest aligned model samples, and is trained on."""
    reference: Literal["frozen", "moved"] = "frozen"
    """Reference of the rounds after the first: `frozen` is the SFT model, `moved` the model that the round starts
    from. Used with rounds above 1 alone."""
    score: bool = True
    """Give every pair its epsilon and the reference's log-probabilities, as `align` needs them. false: rejected titles
    alone; no model or oracle is loaded that no strategy asks."""
    part_groups: Count | None = None
    """Groups a part file; None goes by the size of the table. Changes no draw."""
    stream: bool = False
    """Groups flow into `align` while they are sampled: pairs and align run at the same time, and the table is written
    on the way. Training then shuffles within the groups of a part file (pairs.part_groups), not within 65,536."""
    reference_cache: Annotated[str, BeforeValidator(word)] = "auto"
    """Folder of reference log-probabilities, keyed by what they depend on, which runs share: `auto` is
    $ROSEPO_CACHE/reference or ~/.cache/rosepo/reference, `no` keeps none. On a cluster, a folder that all nodes see."""

    @property
    def tops(self) -> tuple[int, ...]:
        """Titles from which strategies that are used draw, where they are limited."""
        tops = {"policy": self.policy_top, "oracle": self.oracle_top}
        return tuple(top for name, top in tops.items() if name in self.used and top is not None)

    @property
    def newest(self) -> int | None:
        """`groups_per_user` as a number; None where there is no limit."""
        return None if self.groups_per_user == "all" else self.groups_per_user

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
        if not self.score and self.oracle_whole:
            raise ValueError(
                "pairs.oracle_whole=true is read by align, and pairs.score=false leaves nothing to align: drop it"
            )
        if not self.score and self.stream:
            raise ValueError("pairs.stream=true streams groups into align, which reads none of pairs.score=false")
        if not self.score and self.rounds > 1:
            raise ValueError(f"pairs.rounds={self.rounds} aligns in between, which pairs.score=false leaves no way to")
        for name in ("policy", "oracle"):
            top = getattr(self, f"{name}_top")
            if name in self.used and top is not None and top < (self.negatives or 1):
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
