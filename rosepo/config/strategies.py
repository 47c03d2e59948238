"""The strategies of rejected sampling, in one table.

A new one is a maker of a callable and an entry here. Configuration, `--help`, sampling, metrics by strategy and report
ask the table; no other file knows the strategies by name.

    def make_newest(inputs):                    # in rosepo/sampling/strategies/; `protocol` says what it is given
        return Newest(inputs.catalogue, inputs.option("newest_top"))

    TOP = Option("newest_top", Count, 10, "newest draws from this many of the newest titles.")
    STRATEGIES["newest"] = StrategyEntry(
        "new titles", "rosepo.sampling.strategies.newest:make_newest", options=(TOP,), colour="#4d6b00"
    )
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rosepo.config.base import Count, NonNegative, Option, Positive

Asked = Literal["policy", "search", "oracle", "catalogue", "embeddings", "candidates"]
ASKED: dict[Asked, str] = {
    "policy": "the policy's answers",
    "search": "its best titles of the whole catalogue",
    "oracle": "the oracle's scores",
    "catalogue": "those of the whole catalogue",
    "embeddings": "title embeddings",
    "candidates": "every example's own candidates",
}
"""What a strategy may ask for, and what that is called."""
OWN_STRATEGY = "own"
"""What figures call all strategies that are no entry here, but import paths."""
OWN_COLOUR = "#8c8c8c"


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a strategy asks for, and the options that it declares."""

    asks: tuple[Asked, ...] = ()
    options: tuple[Option, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StrategyEntry(Needs):
    """What there is to know of a strategy.

    Attributes:
        described: where its titles come from, for people.
        maker: import path of what makes it, of `StrategyInputs`; resolved where it is called.
        settings: fields of `pairs` that it alone uses.
        top: key of the option that limits how many titles it draws from.
        variant_key: key of the option that names one of `variants`.
        variants: what it needs beside, under each value of that option.
        colour: of its pictures.
    """

    described: str
    maker: str
    settings: tuple[str, ...] = ()
    top: str | None = None
    variant_key: str | None = None
    variants: Mapping[str, Needs] = field(default_factory=dict)
    colour: str = OWN_COLOUR

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of `pairs` that it takes, whatever its variant is, and not every other strategy does."""
        return (*(option.key for option in self.options), *self.settings)


_MAKERS = "rosepo.sampling.strategies"
_EXPONENT = Option(
    "popularity_exponent", NonNegative, 1.0, "popularity draws by training interactions to the power of this."
)

STRATEGIES: dict[str, StrategyEntry] = {
    "self_hard": StrategyEntry(
        described="the model's own wrong answers",
        maker=f"{_MAKERS}.self_hard:make_self_hard",
        asks=("policy",),
        options=(
            Option("self_hard_top", Count, 10, "self_hard draws from this many best wrong answers (1 is the hardest)."),
        ),
        colour="#0072b2",
    ),
    "semantic": StrategyEntry(
        described="look-alikes of the history",
        maker=f"{_MAKERS}.look_alikes:make_semantic",
        asks=("embeddings",),
        options=(Option("semantic_top", Count, 20, "semantic draws from this many look-alikes of the history."),),
        colour="#009e73",
    ),
    "popularity": StrategyEntry(
        described="popular titles",
        maker=f"{_MAKERS}.weighted:make_popularity",
        options=(_EXPONENT,),
        colour="#cc79a7",
    ),
    "uniform": StrategyEntry(described="any other title", maker=f"{_MAKERS}.weighted:make_uniform", colour="#8b5a2b"),
    "candidates": StrategyEntry(
        described="the example's own candidates, as S-DPO rejects them (arXiv 2406.09215)",
        maker=f"{_MAKERS}.candidates:make_candidates",
        asks=("candidates",),
        colour="#56b4e9",
    ),
    "rso": StrategyEntry(
        described="proposals that the oracle lets pass (RSO, arXiv 2309.06657)",
        maker=f"{_MAKERS}.rso:make_rso",
        asks=("oracle",),
        options=(
            Option(
                "rso_from",
                Literal["self_hard", "popularity", "uniform"],
                "self_hard",
                "What rso accepts or rejects: the model's best wrong answers, or draws of another strategy.",
            ),
            Option("rso_proposals", Count, 20, "Titles proposed to rso an example."),
            Option(
                "rso_temperature",
                Positive,
                1.0,
                "rso accepts a proposal with probability exp((f - f_max) / this), f the oracle's calibrated score.",
            ),
        ),
        variant_key="rso_from",
        variants={
            "self_hard": Needs(asks=("policy",)),
            "popularity": Needs(options=(_EXPONENT,)),
            "uniform": Needs(),
        },
        colour="#e69f00",
    ),
    "policy": StrategyEntry(
        described="draws from the model's own distribution",
        maker=f"{_MAKERS}.distributions:make_policy",
        asks=("policy", "search"),
        options=(
            Option(
                "policy_top",
                Count,
                50,
                "policy draws titles, each at most once, from the model's own distribution over this many of its best "
                "wrong answers.",
            ),
        ),
        top="policy_top",
        colour="#7a4fa3",
    ),
    "oracle": StrategyEntry(
        described="draws from the oracle's distribution",
        maker=f"{_MAKERS}.distributions:make_oracle",
        asks=("oracle", "catalogue"),
        options=(
            Option(
                "oracle_top",
                Count | None,
                None,
                "oracle draws titles, each at most once, from the distribution of its calibrated scores, softmax(f), "
                "over this many of its best titles outside what was seen; None over all of them.",
            ),
        ),
        settings=("oracle_whole",),
        top="oracle_top",
        colour="#d55e00",
    ),
}


def strategy_options() -> dict[str, Option]:
    """The options of all strategies, by key."""
    needs = [part for entry in STRATEGIES.values() for part in (entry, *entry.variants.values())]
    return {option.key: option for part in needs for option in part.options}


def strategies_with(key: str) -> list[str]:
    """Who takes a key of `pairs`: strategies, and variants as `rso_from=popularity`; empty where all of them do."""
    found = [name for name, entry in STRATEGIES.items() if key in entry.keys]
    for entry in STRATEGIES.values():
        for value, part in entry.variants.items():
            found += [f"{entry.variant_key}={value}"] if key in [option.key for option in part.options] else []
    return found
