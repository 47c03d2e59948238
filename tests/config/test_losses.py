"""What each loss takes, what it refuses, and what a sweep may search of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rosepo.config import LOSSES, dump_config, load_config
from rosepo.config.losses import loss_settings
from rosepo.config.training import SAME_RESULT
from rosepo.tuning.search_space import check_space
from rosepo.utils.errors import UserError

OPTION_VALUES: dict[str, object] = {
    "epsilon": "oracle",
    "epsilon_max": 0.3,
    "epsilon_value": 0.2,
    "spa_quantile": 0.2,
    "target_min": 0.1,
    "target_mix": 0.5,
    "ipo_average": True,
    "simpo_gamma": 1.0,
    "ada_tau_min": 0.2,
    "ada_tau_max": 4.0,
    "ada_rho": -0.5,
}
TAKEN: dict[str, set[str]] = {
    "pairwise": {"epsilon", "epsilon_max"},
    "softmax": {"target_min", "target_mix"},
    "dpo": set(),
    "cdpo": {"epsilon_max", "epsilon_value"},
    "spa": {"epsilon_value", "spa_quantile"},
    "robust": {"epsilon_max", "epsilon_value"},
    "ipo": {"ipo_average"},
    "simpo": {"simpo_gamma"},
    "rpo": set(),
    "sdpo": set(),
    "dmpo": set(),
    "ada_dpo": {"ada_tau_min", "ada_tau_max", "ada_rho"},
    "sft": set(),
    "distill": set(),
}
"""What each loss takes where nothing else is set (`pairwise` takes the others with another `align.epsilon`)."""


COMPANIONS: dict[str, list[str]] = {"distill": ["pairs.strategies={oracle: 1}"]}
"""Settings of other sections that a loss needs."""


@pytest.mark.parametrize("loss", TAKEN)
def test_a_loss_takes_its_own_options_and_refuses_all_others(loss: str) -> None:
    for key, value in OPTION_VALUES.items():
        settings = [*COMPANIONS.get(loss, ()), f"align.loss={loss}", f"align.{key}={value}"]
        if key in TAKEN[loss]:
            align = load_config(None, settings).align
            assert align.model_dump()[key] == value
            assert key in align.model_dump(exclude_unset=True)
        else:
            with pytest.raises(UserError, match=rf"align\.{key} is used by align\.(loss|epsilon)=.*not by"):
                load_config(None, settings)


def test_no_option_of_a_loss_is_left_out_of_the_test_above() -> None:
    assert set(OPTION_VALUES) == set(loss_settings())
    assert set(TAKEN) == set(LOSSES)


def test_fine_tuning_beside_alignment_is_on_by_default_where_it_belongs_to_the_loss(tmp_path: Path) -> None:
    weights = {
        loss: load_config(None, [*COMPANIONS.get(loss, ()), f"align.loss={loss}"]).align.sft_weight for loss in TAKEN
    }
    assert {loss for loss, weight in weights.items() if weight} == {"rpo", "sft"}
    assert weights["rpo"] == weights["sft"] == 1.0
    with pytest.raises(UserError, match=r"rpo with align\.sft_weight=0 is dpo: use align\.loss=dpo"):
        load_config(None, ["align={loss: rpo, sft_weight: 0}"])
    with pytest.raises(UserError, match=r"sft with align\.sft_weight=0 learns nothing"):
        load_config(None, ["align={loss: sft, sft_weight: 0}"])
    assert load_config(None, ["align.sft_weight=0.3"]).align.sft_weight == 0.3
    # A default does not become a setting: another loss, as in a sweep, has its own.
    assert "sft_weight" not in dump_config(load_config(None, ["align.loss=rpo"]))


@pytest.mark.parametrize("key", sorted(SAME_RESULT))
def test_what_changes_no_result_is_not_searched(key: str) -> None:
    with pytest.raises(UserError, match=rf"parameters\.align\.{key} changes no result: leave it out"):
        load_config(None, [f"sweep.parameters={{align.{key}: [1, 2]}}"])


@pytest.mark.parametrize("loss", [name for name, facts in LOSSES.items() if not facts.preference])
def test_a_loss_that_compares_no_titles_takes_no_beta_and_a_sweep_searches_none(loss: str) -> None:
    config = load_config(None, [*COMPANIONS.get(loss, ()), f"align.loss={loss}"])
    assert set(config.sweep_parameters) == {"align.learning_rate"}
    check_space(config)
    with pytest.raises(UserError, match=rf"align\.beta is not used by align\.loss={loss}, which compares no titles"):
        load_config(None, [f"align.loss={loss}", "align.beta=0.5"])
    with pytest.raises(UserError, match=rf"align\.loss={loss} knows no reference"):
        load_config(None, [*COMPANIONS.get(loss, ()), f"align.loss={loss}", "pairs.rounds=2", "pairs.reference=frozen"])


def test_only_titles_that_the_oracle_has_drawn_can_be_distilled() -> None:
    assert load_config(None, ["align.loss=distill", "pairs.strategies={oracle: 2, rso: 0}"]).align.loss == "distill"
    for strategies in ("{oracle: 1, policy: 1}", "{uniform: 1}"):
        with pytest.raises(UserError, match=r"align\.loss=distill .* set pairs\.strategies=\{oracle: 1\}"):
            load_config(None, ["align.loss=distill", f"pairs.strategies={strategies}"])


def test_a_choice_of_reference_is_refused_where_the_loss_has_none() -> None:
    rounds = ["pairs.rounds=2", "pairs.reference=frozen"]
    assert load_config(None, rounds).pairs.reference == "frozen"
    with pytest.raises(UserError, match=r"pairs\.reference=frozen is not used: align\.loss=simpo knows no reference"):
        load_config(None, [*rounds, "align.loss=simpo"])
