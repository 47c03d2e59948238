"""Settings of rejected sampling."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from rosepo.config.base import ActorsConfig, Count, NonNegative, OpenSection, Option, Precision, nearest, word
from rosepo.config.strategies import STRATEGIES, Asked, Needs, strategies_with, strategy_options


class PairsConfig(ActorsConfig, OpenSection):
    """Rejected sampling: preference groups from training examples."""

    negatives: Count | None = None
    """K, rejected titles a group; all distinct. None takes 15, or as many as every group can have where that is fewer:
    titles outside the longest history, wrong candidates of an example, titles that policy or oracle draw from."""
    strategies: dict[str, NonNegative] = Field(
        default_factory=lambda: {"self_hard": 1.0, "semantic": 1.0, "popularity": 1.0}
    )
    """Weights of the mixture: of strategies by name, or of one of your own by its import path, `module:callable`
    (rosepo/sampling/strategies/protocol.py has the signature)."""
    semantic_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Weight of an item in the history relative to the next newer one."""
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

    precision: Precision = "auto"
    """Of the language models: `auto` is align.precision, so that the reference's log-probabilities are those that
    training starts from; with score=false bfloat16 on GPUs and float32 on CPUs."""

    section: ClassVar[str] = "pairs"

    @classmethod
    def options(cls) -> Mapping[str, Option]:
        return strategy_options()

    def used_options(self) -> Mapping[str, Option]:
        return {option.key: option for part in self.needs.values() for option in part.options}

    @property
    def needs(self) -> dict[str, Needs]:
        """What the strategies that are used need, by name, and their variants, as `rso_from=popularity`. Of those by
        import path nothing is known."""
        found: dict[str, Needs] = {}
        for name in self.used:
            entry = STRATEGIES.get(name)
            if entry is None:
                continue
            found[name] = entry
            if entry.variant_key is not None:
                value = self.option(entry.variant_key)
                found[f"{entry.variant_key}={value}"] = entry.variants[value]
        return found

    def asking(self, what: Asked) -> list[str]:
        """Which of `needs` ask for it."""
        return [name for name, part in self.needs.items() if what in part.asks]

    @property
    def tops(self) -> dict[str, int]:
        """Titles from which strategies that are used draw, where they are limited, by the key of the limit."""
        keys = [STRATEGIES[name].top for name in self.used if name in STRATEGIES]
        return {key: self.option(key) for key in keys if key is not None and self.option(key) is not None}

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
        return bool(self.asking("policy"))

    @property
    def asks_oracle(self) -> bool:
        """Whether a strategy needs the oracle's scores."""
        return bool(self.asking("oracle"))

    @property
    def served_reference(self) -> bool:
        """Whether the server that answers gives the reference's log-probabilities too: no GPU holds the model."""
        return self.engine == "vllm" and self.gpus_per_actor > 1

    def faults(self) -> Iterator[str]:
        if self.rounds == 1 and "reference" in self.model_fields_set:
            yield (
                f"pairs.reference={self.reference} is used by the rounds after the first: leave it out, or set "
                "pairs.rounds above 1"
            )
        for name in self.strategies:
            if name not in STRATEGIES and not re.fullmatch(r"[\w.]+:\w+", name):
                yield (
                    f"pairs.strategies has no '{name}'{nearest(name, [*STRATEGIES])}; known: "
                    f"{', '.join(STRATEGIES)}, or module:callable"
                )
        if not self.used:
            yield "pairs.strategies needs at least one weight above 0"
        for key in sorted(self.model_fields_set):
            users = strategies_with(key)
            if users and self.needs.keys().isdisjoint(users):
                yield f"pairs.{key} is used by the strategy {' or '.join(users)} alone, which has no weight"
        if not self.score and "reference_cache" in self.model_fields_set:
            yield "pairs.reference_cache is used by pairs.score=true alone: leave it out"
        if not self.score and self.oracle_whole:
            yield "pairs.oracle_whole=true is read by align, and pairs.score=false leaves nothing to align: drop it"
        if not self.score and self.stream:
            yield "pairs.stream=true streams groups into align, which reads none of pairs.score=false"
        if not self.score and self.rounds > 1:
            yield f"pairs.rounds={self.rounds} aligns in between, which pairs.score=false leaves no way to"
        for key, top in self.tops.items():
            if top < (self.negatives or 1):
                yield f"pairs.{key}={top} holds fewer titles than pairs.negatives={self.negatives} draws: raise it"
        if "engine" in self.model_fields_set and not self.asks_policy:
            yield (
                "pairs.engine is used where the model's own answers are rejected (self_hard, or rso with"
                " rso_from=self_hard), which has no weight: give it one, or leave pairs.engine out"
            )
        if self.served_reference and self.rounds > 1 and self.reference == "frozen":
            yield (
                f"pairs.gpus_per_actor={self.gpus_per_actor} asks the server of the policy for the reference's"
                f" log-probabilities too, and with pairs.rounds={self.rounds} the reference is another model: set"
                " pairs.reference=moved"
            )
        yield from self.engine_faults("pairs")
