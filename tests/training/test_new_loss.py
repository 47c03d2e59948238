"""A loss that nothing in rosepo knows: one function and one entry, and all that follows from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.nn.functional as F
from torch import Tensor

from rosepo.cli.help import stage_help
from rosepo.config import LOSSES, dump_config, load_config
from rosepo.config.base import Option, Positive
from rosepo.config.losses import LossEntry
from rosepo.config.root import shape_of
from rosepo.objectives.rewards import Metrics, log_ratios, pair_margins, reward_metrics
from rosepo.pipeline.fingerprints import stage_settings
from rosepo.run.paths import RunPaths
from rosepo.run.stages import STAGES
from rosepo.training.align import align_in_process
from rosepo.tuning.search_space import check_space
from rosepo.utils.errors import UserError
from tests.training.tiny_run import lines, tiny_config


def hinge(policy_logps: Tensor, ref_logps: Tensor, beta: float, margin: float) -> tuple[Tensor, Metrics]:
    """Mean over the pairs of what a margin falls short of."""
    rewards = beta * log_ratios(policy_logps, ref_logps)
    short = F.relu(margin - pair_margins(rewards))
    return short.mean(dim=1), reward_metrics(rewards) | {"hinge_short": (short > 0).float()}


MARGIN = Option("hinge_margin", Positive, 1.0, "Margin that `hinge` wants between a chosen and a rejected title.")


@pytest.fixture(autouse=True)
def entry(monkeypatch: pytest.MonkeyPatch) -> LossEntry:
    made = LossEntry(
        "hinge loss (ours)",
        f"{__name__}:hinge",
        "margin {hinge_margin:g}",
        options={"margin": MARGIN},
        metrics=("hinge_short",),
    )
    monkeypatch.setitem(LOSSES, "hinge", made)
    return made


def test_it_trains_and_is_told_of(run: RunPaths, tmp_path: Path) -> None:
    options = {"beta": 0.5, "learning_rate": 1e-3, "zero_stage": 0, "epochs": 2, "log_every": 1}
    config = tiny_config("align", loss="hinge", hinge_margin=2, **options)
    align_in_process(config, run, tmp_path)
    found = [line for line in lines(tmp_path) if "loss" in line]
    assert found[0]["loss"] == pytest.approx(2.0, abs=1e-3)  # the policy still is the reference: no margin yet
    assert sum(line["loss"] for line in found[4:]) < sum(line["loss"] for line in found[:4]) - 0.02
    assert found[-1]["margin"] > found[0]["margin"]
    assert found[0]["hinge_short"] == 1.0
    assert "preference optimisation with hinge loss (ours) (margin 2)" in (tmp_path / "README.md").read_text()
    assert shape_of(config, {}) == "margin 2"


def test_its_setting_is_one_as_all_others_are() -> None:
    config = load_config(None, ["align.loss=hinge", "align.hinge_margin=2"])
    assert config.align.option("hinge_margin") == 2.0
    assert load_config(None, ["align.loss=hinge"]).align.option("hinge_margin") == 1.0
    assert "hinge_margin: 2.0" in dump_config(config)
    assert "hinge_margin" not in dump_config(load_config(None, ["align.loss=hinge"]))
    check_space(load_config(None, ["align.loss=hinge", "sweep.parameters={align.hinge_margin: [1, 2]}"]))
    told = " ".join(stage_help("align").split())
    assert f"hinge_margin=1.0 {MARGIN.about}" in told
    assert "hinge hinge loss (ours): hinge_margin" in told


def test_its_setting_makes_what_it_trained_stale_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, other = (
        stage_settings(load_config(None, settings), STAGES["align"])
        for settings in (["align.loss=hinge"], ["align.loss=hinge", "align.hinge_margin=2"], ["align.loss=dpo"])
    )
    assert (one["align.hinge_margin"], two["align.hinge_margin"]) == (1.0, 2.0)
    monkeypatch.delitem(LOSSES, "hinge")
    assert other == stage_settings(load_config(None, ["align.loss=dpo"]), STAGES["align"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("align={loss: hinge, hinge_margn: 2}", r"unknown key 'align.hinge_margn' \(did you mean 'hinge_margin'"),
        ("align={loss: hinge, hinge_margin: 0}", r"align\.hinge_margin: .*greater than 0 \(got 0\)"),
        ("align={loss: dpo, hinge_margin: 2}", r"align\.hinge_margin is used by align\.loss=hinge alone, not by dpo"),
        ("align={loss: hinge, epsilon_max: 0.2}", r"align\.epsilon_max is used by .* not by hinge"),
        ("align.loss=hing", r"align\.loss has no 'hing' \(did you mean 'hinge'"),
    ],
)
def test_its_setting_is_refused_where_it_is_wrong_or_unused(settings: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config(None, [settings])
