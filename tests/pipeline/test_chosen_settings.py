"""Settings that follow from what a run's own stages found."""

from __future__ import annotations

from pathlib import Path

import pytest

from rosepo.config import Config, load_config
from rosepo.pipeline.planning import plan_run
from rosepo.run.stages import names_of_run
from rosepo.utils.errors import UserError
from rosepo.utils.files import write_json
from tests.manifests import finish

BEST = {"best": {"settings": {"align.beta": 0.25}}}


def configure(*overrides: str) -> Config:
    return load_config(None, ["data.dataset=movietweetings-100k", *overrides])


def with_figures(folder: Path, figures: dict[str, object]) -> None:
    import json

    path = folder / "_manifest.json"
    write_json(path, json.loads(path.read_text()) | {"figures": figures})


def test_a_run_sweeps_where_it_is_asked_to_and_before_it_aligns() -> None:
    assert "sweep" not in names_of_run(configure())
    assert "sweep" not in names_of_run(configure("sweep.trials=0"))
    names = names_of_run(configure("sweep.trials=3"))
    assert names.index("pairs") < names.index("sweep") < names.index("align")


def test_the_run_that_asked_for_a_sweep_aligns_with_its_best_settings(tmp_path: Path) -> None:
    config = configure("sweep.trials=3")
    finish(tmp_path, config, "prepare", "sft", "oracle", "pairs")
    plan = plan_run(config, tmp_path, names_of_run(config))
    assert plan.waits_for == "sweep"
    finish(tmp_path, config, "sweep")
    with_figures(tmp_path / "sweep", BEST)
    plan = plan_run(config, tmp_path, names_of_run(config))
    assert plan.waits_for is None
    assert (plan.asked.align.beta, plan.config.align.beta) == (0.5, 0.25)
    assert plan["align"].settings["align.beta"] == 0.25
    finish(tmp_path, config, "align", "evaluate")
    assert not plan_run(config, tmp_path, names_of_run(config)).left


def test_an_alignment_alone_goes_by_the_sweep_that_its_configuration_asks_for(tmp_path: Path) -> None:
    config = configure("sweep.trials=3")
    finish(tmp_path, config, "prepare", "sft", "oracle", "pairs")
    assert plan_run(config, tmp_path, ["align"]).config.align.beta == 0.5  # there is none yet
    finish(tmp_path, config, "sweep")
    with_figures(tmp_path / "sweep", BEST)
    assert plan_run(config, tmp_path, ["align"]).config.align.beta == 0.25
    assert plan_run(configure(), tmp_path, ["align"]).config.align.beta == 0.5  # did not ask
    with pytest.raises(UserError, match=r"align reads .*sweep, which was made by another configuration.*max_examples"):
        plan_run(configure("sweep.trials=3", "sweep.max_examples=7"), tmp_path, ["align"])
