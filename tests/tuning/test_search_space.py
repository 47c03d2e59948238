"""What a sweep tries."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rosepo.config import Config, load_config
from rosepo.tuning.search_space import best_config, check_space, trial_settings, with_settings
from rosepo.utils.errors import UserError


def _config(trials: int, parameters: Any, seed: int = 0, *more: str) -> Config:
    return load_config(
        None,
        [
            f"sweep={yaml.safe_dump({'trials': trials, 'parameters': parameters})}",
            f"seed={seed}",
            "align.loss=pairwise",
            *more,
        ],
    )


def test_lists_make_a_full_grid_where_trials_are_enough() -> None:
    config = _config(6, {"align.beta": [0.1, 1.0], "align.epsilon_max": [0.0, 0.2, 0.4]})
    settings = trial_settings(config)
    assert len(settings) == 6
    assert {(s["align.beta"], s["align.epsilon_max"]) for s in settings} == {
        (beta, epsilon) for beta in (0.1, 1.0) for epsilon in (0.0, 0.2, 0.4)
    }


@given(seed=st.integers(0, 1000), trials=st.integers(1, 8))
def test_draws_stay_in_their_ranges_and_depend_on_the_seed_alone(seed: int, trials: int) -> None:
    parameters = {"align.beta": {"low": 0.01, "high": 1.0, "log": True}, "align.loss": ["pairwise"]}
    settings = trial_settings(_config(trials, parameters, seed))
    assert settings == trial_settings(_config(trials, parameters, seed))
    assert len(settings) == trials
    assert all(0.01 <= s["align.beta"] <= 1.0 for s in settings)
    assert len({s["align.beta"] for s in settings}) == trials


def test_no_combination_is_tried_twice_when_a_grid_is_cut() -> None:
    settings = trial_settings(_config(5, {"align.beta": [1, 2, 3], "align.epsilon_max": [0.1, 0.2]}))
    assert len({tuple(s.items()) for s in settings}) == 5


def test_a_value_that_align_refuses_is_told_before_any_trial() -> None:
    with pytest.raises(UserError, match=r"align\.epsilon_max"):
        check_space(_config(4, {"align.epsilon_max": [0.2, 0.7]}))
    with pytest.raises(UserError, match=r"valid integer"):
        check_space(_config(2, {"align.batch_size": {"low": 8, "high": 64}}))


def test_the_best_settings_come_back_as_a_configuration() -> None:
    config = _config(4, {"align.beta": [0.1, 1.0]}, 3, "pairs.negatives=2")
    text = best_config(config, {"align.beta": 0.1})
    assert text.startswith("# The best trial")
    tree = yaml.safe_load(text)
    assert tree["align"]["beta"] == 0.1
    assert tree["pairs"]["negatives"] == 2
    assert with_settings(config, {"align.beta": 0.1}).align.beta == 0.1


def test_the_default_search_fits_the_loss() -> None:
    assert "align.epsilon_max" in load_config(None, ["align.loss=pairwise"]).sweep_parameters
    assert "align.target_min" in load_config().sweep_parameters
    check_space(load_config())


@pytest.mark.parametrize(
    ("align", "clamped"),
    [
        ("{loss: pairwise, epsilon: constant}", True),
        ("{loss: pairwise, epsilon: shuffled}", True),
        ("{loss: pairwise, epsilon: constant, epsilon_value: 0.1}", False),
        ("{loss: pairwise, epsilon: zero}", False),
        ("{loss: pairwise, epsilon: spa}", False),
        ("{loss: cdpo}", True),
        ("{loss: robust}", True),
        ("{loss: robust, epsilon_value: 0.1}", False),
        ("{loss: dpo}", False),
        ("{loss: spa}", False),
        ("{loss: simpo}", False),
    ],
)
def test_the_default_search_leaves_out_a_clamp_that_is_not_used(align: str, clamped: bool) -> None:
    config = load_config(None, [f"align={align}"])
    assert ("align.epsilon_max" in config.sweep_parameters) == clamped
    check_space(config)


def test_a_sweep_searches_the_kind_of_smoothing() -> None:
    config = _config(4, {"align.epsilon": ["constant", "spa"], "align.epsilon_value": [None, 0.1]})
    check_space(config)
    kinds = [with_settings(config, s).align for s in trial_settings(config)]
    assert [(kind.epsilon, kind.epsilon_value) for kind in kinds] == [
        ("constant", None), ("constant", 0.1), ("spa", None), ("spa", 0.1)
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"sweep trial .*'zero'.*align\.epsilon_max is used by"):
        check_space(_config(2, {"align.epsilon": ["oracle", "zero"], "align.epsilon_max": [0.2]}))


def test_a_sweep_compares_losses_and_refuses_an_option_that_one_of_them_does_not_use() -> None:
    losses = ["pairwise", "softmax", "dpo", "rpo", "sdpo", "dmpo", "ipo", "simpo", "ada_dpo", "robust", "cdpo", "spa"]
    config = _config(12, {"align.loss": losses})
    check_space(config)
    trials = [with_settings(config, settings).align for settings in trial_settings(config)]
    assert [(trial.loss, trial.sft_weight) for trial in trials] == [(loss, float(loss == "rpo")) for loss in losses]
    with pytest.raises(UserError, match=r"sweep trial .*'dpo'.*align\.simpo_gamma is used by align\.loss=simpo alone"):
        check_space(_config(2, {"align.loss": ["simpo", "dpo"], "align.simpo_gamma": [0.5]}))
