"""What would stop a run, found from its settings alone."""

from __future__ import annotations

import pytest

from rosepo.config import load_config
from rosepo.config.auto import LogFacts
from rosepo.pipeline.chosen_settings import settled
from rosepo.pipeline.preflight import check_named
from rosepo.utils.errors import UserError

FACTS = LogFacts(users=938, items=1008, train=49_000, validation=938, trajectories=1_900)


@pytest.mark.parametrize(
    ("stage", "settings", "idle"),
    [
        ("sft", ["sft.workers=40", "model.path=some/model"], 8),
        ("sft", ["sft.workers=3", "sft.batch_size=2"], 1),
        ("align", ["align.workers=16", "model.path=some/model"], 8),
        ("align", ["align.workers=2", "align.batch_size=1"], 1),
        ("oracle", ["oracle.workers=100", "oracle.models=1"], 36),
    ],
)
def test_workers_that_would_never_have_a_row_are_refused(stage: str, settings: list[str], idle: int) -> None:
    with pytest.raises(UserError, match=rf"{stage}.workers=.*{stage}.batch_size.* {idle} would never have one"):
        check_named(load_config(None, settings), [stage])
    other = next(name for name in ("sft", "align", "oracle") if name != stage)
    check_named(load_config(None, settings), [other])


@pytest.mark.parametrize("stage", ["sft", "align", "oracle"])
@pytest.mark.parametrize("workers", [1, 2, 100])
def test_a_step_that_follows_from_the_data_has_a_row_for_every_worker(stage: str, workers: int) -> None:
    config = load_config(None, [f"{stage}.workers={workers}"])
    if stage == "oracle":
        config = load_config(None, [f"{stage}.workers={workers}", "oracle.models=2"])
    check_named(config, [stage])
    chosen, _ = settled(config, FACTS)
    check_named(chosen, [stage])
    assert getattr(chosen, stage).batch_size >= workers
