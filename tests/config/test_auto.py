"""Settings that follow from the data: which, and which not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.config import load_config
from rosepo.config.auto import RULES, LogFacts, open_keys
from rosepo.config.auto import given as is_given
from rosepo.oracle.crossfit import oracle_models
from rosepo.pipeline.chosen_settings import settled

FACTS = LogFacts(users=938, items=1008, train=49_000, validation=938, trajectories=1_900)
COUNTS = st.integers(1, 10**9)


def test_what_is_given_stays_and_the_rest_follows() -> None:
    config, choices = settled(load_config(None, ["sft.epochs=3", "model.scratch.dropout=0.1"]), FACTS)
    assert (config.sft.epochs, config.model.scratch_config.dropout) == (3.0, 0.1)
    assert config.model.scratch_config.whole_titles == 1008
    keys = {choice.key for choice in choices}
    assert {"sft.epochs", "model.scratch.dropout"}.isdisjoint(keys)
    assert "sft.learning_rate" in keys
    assert open_keys(config) == []
    assert settled(config, FACTS) == (config, ())


def test_a_pretrained_model_keeps_its_defaults() -> None:
    given = load_config(None, ["model.path=some/model"])
    config, choices = settled(given, FACTS)
    assert {choice.key.split(".")[0] for choice in choices} == {"oracle"}
    assert config.model_copy(update={"oracle": given.oracle}) == given


@settings(max_examples=50, deadline=None)
@given(st.builds(LogFacts, *[COUNTS] * 5))
def test_any_log_gives_settings_that_go_together(facts: LogFacts) -> None:
    for overrides in ([], ["run.budget=30m"], ["prepare.candidates=20", "model.template.candidates=true"]):
        config, choices = settled(load_config(None, overrides), facts)
        assert all(choice.why and "{" not in choice.why for choice in choices)
        assert open_keys(config) == []


@pytest.mark.parametrize("key", RULES)
def test_every_rule_speaks_of_a_setting_that_there_is(key: str) -> None:
    config = load_config(None, ["run.budget=10m"])
    assert not is_given(config, key)
    assert is_given(settled(config, FACTS)[0], key)


def test_auto_gives_a_setting_back_to_the_data(tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "config.yaml"
    path.write_text("sft: {epochs: auto, batch_size: 8}\nmodel: {scratch: {dropout: 0.1}}\n")
    config = load_config(path, ["model.scratch.dropout=auto"])
    assert {"sft.epochs", "model.scratch.dropout"} <= set(open_keys(config))
    assert config.sft.batch_size == 8


def test_null_is_none_and_not_what_follows_from_the_data() -> None:
    config = load_config(None, ["sft.ema=null", "sft.patience=null"])
    assert {"sft.ema", "sft.patience"}.isdisjoint(open_keys(config))
    assert settled(config, FACTS)[0].sft.ema is None


def test_a_budget_is_shared_among_the_trainings() -> None:
    config, _ = settled(load_config(None, ["run.budget=30m"]), FACTS)
    parts = [config.sft.max_seconds, config.oracle.max_seconds, config.align.max_seconds]
    assert all(part is not None for part in parts)
    assert sum(part or 0.0 for part in parts) < 1800
    assert settled(load_config(), FACTS)[0].sft.max_seconds is None
    pretrained, _ = settled(load_config(None, ["run.budget=30m", "model.path=some/model"]), FACTS)
    assert (pretrained.sft.max_seconds, pretrained.sft.ema) == (720.0, None)


@pytest.mark.parametrize(("users", "a_step"), [(300, 8), (3_452, 8), (10_000, 16), (50_335, 64), (10**7, 64)])
def test_alignment_takes_more_users_a_step_where_there_are_many(users: int, a_step: int) -> None:
    config, _ = settled(load_config(), replace(FACTS, users=users))
    assert config.align.batch_size == a_step
    assert config.align.micro_batch_size <= a_step


@pytest.mark.parametrize(
    ("users", "train", "rows", "a_step", "every"),
    [
        (938, 51_599, 1_984, 16, 248),
        (4_333, 55_056, 5_195, 32, 325),
        (50_335, 286_767, 50_335, 64, 500),
        (1, 1, 1, 128, 1),
    ],
)
def test_fine_tuning_takes_more_rows_a_step_where_histories_are_short(
    users: int, train: int, rows: int, a_step: int, every: int
) -> None:
    config, _ = settled(load_config(), replace(FACTS, users=users, train=train, trajectories=rows))
    assert (config.sft.batch_size, config.sft.validate_every) == (a_step, every)
    assert config.sft.micro_batch_size <= a_step


@pytest.mark.parametrize(("train", "models"), [(1, 3), (33_680, 3), (51_599, 2), (286_767, 1), (10**9, 1)])
def test_an_oracle_of_few_examples_is_several_models_and_shares_its_part_of_a_budget_among_them(
    train: int, models: int, tmp_path: Path
) -> None:
    config, _ = settled(load_config(None, ["run.budget=50m"]), replace(FACTS, train=train))
    assert config.oracle.models == models
    assert config.oracle.max_seconds == pytest.approx(600 / models, abs=0.1)
    assert (config.oracle.learning_rate, config.oracle.dropout) == ((1e-3, 0.4) if models > 1 else (2e-3, 0.3))
    folds = ["run.budget=50m", "oracle.folds=2", "align.loss=pairwise"]
    folded, _ = settled(load_config(None, folds), replace(FACTS, train=train))
    assert (folded.oracle.models, folded.oracle.max_seconds) == (1, 200.0)
    assert folded.oracle.learning_rate == load_config().oracle.learning_rate
    for oracle in (config.oracle, folded.oracle):
        assert oracle.trained_models == len([*oracle_models(oracle, tmp_path)])


def test_an_oracle_beside_a_pretrained_model_follows_the_same_rules() -> None:
    plain, _ = settled(load_config(), FACTS)
    config, _ = settled(load_config(None, ["model.path=some/model"]), FACTS)
    assert config.oracle == plain.oracle
    assert config.oracle.models == 3


@pytest.mark.parametrize(("users", "epochs"), [(1, 8), (659, 8), (938, 7), (3_452, 2), (50_335, 1), (10**9, 1)])
def test_alignment_takes_more_passes_where_they_are_short(users: int, epochs: float) -> None:
    config, _ = settled(load_config(), replace(FACTS, users=users))
    assert (config.align.epochs, config.align.beta) == (epochs, 1.0)
    other, _ = settled(load_config(None, ["align.loss=dpo"]), replace(FACTS, users=users))
    assert (other.align.epochs, other.align.beta) == (load_config().align.epochs, load_config().align.beta)


@pytest.mark.parametrize(("users", "patience"), [(300, 10), (5_000, 10), (10_000, 5), (50_335, 2), (10**7, 2)])
def test_the_oracle_waits_for_fewer_passes_where_they_are_long(users: int, patience: int) -> None:
    config, _ = settled(load_config(), replace(FACTS, users=users))
    assert config.oracle.patience == patience
    own = settled(load_config(None, ["oracle={kind: scorer, scorer: own:scorer}"]), replace(FACTS, users=users))[0]
    assert own.oracle.model_fields_set == {"kind", "scorer"}
