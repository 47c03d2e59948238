"""Settings that follow from the data, unless they are given: one table of rules.

A rule says what a key of the configuration is where nobody has set it, from what `prepare` counted and from the other
settings. Most are for models from scratch: what they were measured on stands in docs/settings.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rosepo.config.base import Section
from rosepo.config.root import Config


@dataclass(frozen=True)
class LogFacts:
    """What `prepare` counted, as its manifest and `rosepo check` have it."""

    users: int
    items: int
    train: int
    """Training examples."""
    validation: int
    """Validation examples."""
    trajectories: int
    """Rows of whole trajectories in training: one a user, several where a long one was cut."""

    @classmethod
    def of(cls, figures: Mapping[str, Any]) -> LogFacts | None:
        """Those of the figures of `prepare`; None where they do not hold them."""
        counts = {**figures, **figures.get("examples", {})}
        known = [field.name for field in fields(cls)]
        return cls(**{name: int(counts[name]) for name in known}) if all(name in counts for name in known) else None


@dataclass(frozen=True)
class Rule:
    """How a setting follows from the data.

    Attributes:
        value: of the configuration as it is by then, and the facts.
        why: a few words; `{name}` for facts.
        asked: whether it has a say; always where None.
        any_model: also of a pretrained one.
    """

    value: Callable[[Config, LogFacts], Any]
    why: str
    asked: Callable[[Config], bool] | None = None
    any_model: bool = False


MOST_WHOLE = 50_000
"""Titles that are one token each, at most."""
EPOCHS_A_LOOK, MOST_STEPS_A_LOOK = 2.0, 500
"""Passes of fine-tuning between two validations, and steps at most."""
TITLES_A_STEP = 430
"""Of fine-tuning, about."""
LINE = 128
"""Tokens of a line that short rows share: attention over a longer one looks in vain at other rows' tokens."""
LOOKED_AT = 2000
"""Users whose next title a training looks for in the catalogue, at most."""
GROUPS = 25_000
"""Groups to learn preferences from, about."""
ALIGN_STEPS = 800
"""Of alignment in all its passes, about; eight passes at most."""
STEPS_A_PASS = 500
"""Of alignment, about."""
SEQUENCES_WAITED, MOST_LOOKS = 50_000, 10
"""Users whose sequences the oracle goes over without getting better before it stops, about, and looks at most."""
ENSEMBLE = 150_000
"""Training examples, of all SASRecs of an oracle together, about; three at most."""
SHARES = {"oracle": 0.2, "sft": 0.4, "align": 0.25}
"""Of a budget; the rest is for sampling, evaluation and starting processes."""


def _no_list(config: Config) -> bool:
    return not config.model.template.candidates


def _has_budget(config: Config) -> bool:
    return config.run.budget is not None


def _template(config: Config, facts: LogFacts) -> dict[str, str]:
    """Titles one behind another where each is one token; else something has to end them."""
    if config.model.scratch_config.whole_titles >= facts.items:
        return {"prefix": "", "separator": "", "end": ""}
    return {"prefix": "", "separator": "{eos}"}


def _rows(config: Config, facts: LogFacts) -> int:
    """Rows of a pass of fine-tuning."""
    return facts.train if config.model.template.candidates else facts.trajectories


def _rows_a_step(config: Config, facts: LogFacts) -> int:
    """So many that a step learns from some hundred titles: few rows of long histories, more of short ones."""
    rows = 64 if config.model.template.candidates else _sequences_a_step(facts)
    return max(rows, config.sft.workers)


def _sequences_a_step(facts: LogFacts) -> int:
    titles = facts.train / max(facts.trajectories, 1) + 1
    return int(min(max(2 ** round(math.log2(TITLES_A_STEP / titles)), 8), 128))


def _validate_every(config: Config, facts: LogFacts) -> int:
    steps = round(EPOCHS_A_LOOK * _rows(config, facts) / config.sft.batch_size)
    return min(max(steps, 1), MOST_STEPS_A_LOOK)


def _sasrec(config: Config) -> bool:
    return config.oracle.kind == "sasrec"


def _of_all(config: Config) -> bool:
    """Whether the oracle is SASRecs of all users."""
    return _sasrec(config) and config.oracle.folds == 1


def _ensemble(config: Config) -> bool:
    return _sasrec(config) and config.oracle.models > 1


def _oracle_looks(facts: LogFacts) -> int:
    return int(min(max(SEQUENCES_WAITED // facts.users, 2), MOST_LOOKS))


def _users_a_step(config: Config, facts: LogFacts) -> int:
    """8 for a few thousand users; twice as many for twice as many, so that a pass stays some hundred steps."""
    return max(int(min(max(2 ** round(math.log2(facts.users / STEPS_A_PASS)), 8), 64)), config.align.workers)


def _align_epochs(config: Config, facts: LogFacts) -> float:
    return float(min(max(round(ALIGN_STEPS * config.align.batch_size / facts.users), 1), 8))


def _over_groups(config: Config) -> bool:
    return config.align.loss == "softmax"


def _share(stage: str) -> Rule:
    return Rule(
        lambda config, facts: round(SHARES[stage] * (config.run.budget or 0.0), 1),
        f"{SHARES[stage]:.0%} of run.budget",
        _has_budget,
        any_model=True,
    )


RULES: dict[str, Rule] = {
    "model.scratch.whole_titles": Rule(
        lambda config, facts: min(facts.items, MOST_WHOLE),
        "{items:,} titles, one token each",
        lambda config: _no_list(config) and not config.model.scratch_config.split_words,
    ),
    "model.template": Rule(_template, "bare titles: a model from scratch knows no words around them", _no_list),
    "model.scratch.vocab_size": Rule(
        lambda config, facts: 1024 if config.model.scratch_config.whole_titles >= facts.items else 8192,
        "pieces, for titles that are no token of their own",
        _no_list,
    ),
    "model.scratch.hidden_size": Rule(lambda config, facts: 64, "{items:,} items, {train:,} examples", _no_list),
    "model.scratch.heads": Rule(
        lambda config, facts: max(1, config.model.scratch_config.hidden_size // 32), "heads of 32", _no_list
    ),
    "model.scratch.intermediate_size": Rule(
        lambda config, facts: 4 * config.model.scratch_config.hidden_size, "four times the width", _no_list
    ),
    "model.scratch.dropout": Rule(lambda config, facts: 0.3, "{train:,} examples are few for a model from scratch"),
    "sft.batch_size": Rule(_rows_a_step, "some hundred titles a step, of {train:,} in {trajectories:,} rows"),
    "sft.micro_batch_size": Rule(lambda config, facts: min(config.sft.batch_size, 64), "what fits at once"),
    "sft.learning_rate": Rule(lambda config, facts: 1e-3, "a small model from scratch"),
    "sft.min_learning_rate": Rule(
        lambda config, facts: config.sft.learning_rate, "constant: training ends when validation says so, not at a step"
    ),
    "sft.ema": Rule(lambda config, facts: 0.99, "the mean of the last hundred steps, in place of a falling rate"),
    "sft.pack_tokens": Rule(lambda config, facts: min(config.model.max_length, LINE), "short rows share lines"),
    "sft.validation_users": Rule(
        lambda config, facts: min(facts.validation, LOOKED_AT), "{validation:,} validation examples", _no_list
    ),
    "sft.best_metric": Rule(lambda config, facts: "ndcg@10", "what is measured in the end", _no_list),
    "sft.validate_every": Rule(_validate_every, "every two passes over {trajectories:,} rows, or 500 steps"),
    "sft.patience": Rule(lambda config, facts: 4, "looks without a better one", _no_list),
    "sft.min_gain": Rule(
        lambda config, facts: 0.01,
        "a look better by less may be so by chance",
        lambda config: _no_list(config) and config.sft.patience is not None,
    ),
    "sft.epochs": Rule(lambda config, facts: 60.0, "while validation gets better", _no_list),
    "sft.keep_optimizer": Rule(lambda config, facts: True, "alignment goes on with its moments"),
    "sft.max_seconds": _share("sft"),
    "oracle.models": Rule(
        lambda config, facts: int(min(max(ENSEMBLE // max(facts.train, 1), 1), 3)),
        "{train:,} examples: where they are few, several from other starts know more",
        _of_all,
        any_model=True,
    ),
    "oracle.batch_size": Rule(
        lambda config, facts: max(_sequences_a_step(facts), config.oracle.workers),
        "some hundred titles a step",
        _ensemble,
        any_model=True,
    ),
    "oracle.learning_rate": Rule(
        lambda config, facts: 1e-3 if _ensemble(config) else 2e-3, "of {train:,} examples", _of_all, any_model=True
    ),
    "oracle.dropout": Rule(
        lambda config, facts: 0.4 if _ensemble(config) else 0.3,
        "several that differ have the better mean",
        _of_all,
        any_model=True,
    ),
    "oracle.min_gain": Rule(
        lambda config, facts: 0.01 if _oracle_looks(facts) < MOST_LOOKS else 0.0,
        "where passes are long, a look better by less is not waited for",
        lambda config: _sasrec(config) and not given(config, "oracle.patience"),
        any_model=True,
    ),
    "oracle.patience": Rule(
        lambda config, facts: _oracle_looks(facts),
        "looks without a better one, of {users:,} users each",
        _sasrec,
        any_model=True,
    ),
    "oracle.max_seconds": Rule(
        lambda config, facts: round(SHARES["oracle"] * (config.run.budget or 0.0) / config.oracle.trained_models, 1),
        f"{SHARES['oracle']:.0%} of run.budget, shared among its models",
        lambda config: _sasrec(config) and _has_budget(config),
        any_model=True,
    ),
    "pairs.groups_per_user": Rule(
        lambda config, facts: int(min(max(GROUPS // facts.users, 1), 64)), "about 25,000 groups of {users:,} users"
    ),
    "align.optimizer": Rule(
        lambda config, facts: "sft", "goes on with the moments of fine-tuning", lambda config: config.sft.keep_optimizer
    ),
    "align.beta": Rule(lambda config, facts: 1.0, "near enough to the reference to lose nothing of it", _over_groups),
    "align.learning_rate": Rule(lambda config, facts: 1e-3, "a small model from scratch", _over_groups),
    "align.batch_size": Rule(_users_a_step, "users a step, of {users:,} users"),
    "align.epochs": Rule(_align_epochs, "some 800 steps, eight passes at most", _over_groups),
    "align.micro_batch_size": Rule(lambda config, facts: min(config.align.batch_size, 32), "what fits at once"),
    "align.pack_tokens": Rule(lambda config, facts: min(config.model.max_length, LINE), "short rows share lines"),
    "align.validation_users": Rule(
        lambda config, facts: min(facts.validation, LOOKED_AT), "{validation:,} validation examples", _no_list
    ),
    "align.best_metric": Rule(lambda config, facts: "ndcg@10", "what is measured in the end", _no_list),
    "align.max_seconds": _share("align"),
}
"""By dotted key, in the order in which they are asked: later ones see what earlier ones chose."""


def open_keys(config: Config) -> list[str]:
    """The keys that follow from the data in this configuration."""
    return [key for key in RULES if is_open(config, key)]


def is_open(config: Config, key: str) -> bool:
    """Whether a key follows from the data in this configuration."""
    rule = RULES[key]
    if config.model.path is not None and not rule.any_model:
        return False
    return not given(config, key) and (rule.asked is None or rule.asked(config))


def given(config: Config, key: str) -> bool:
    """Whether somebody has set a dotted key."""
    section: Any = config
    for name in key.split("."):
        if not isinstance(section, Section) or name not in section.model_fields_set:
            return False
        section = getattr(section, name)
    return True
