"""A strategy that nothing in rosepo knows: one maker and one entry, and all that follows from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rosepo.cli.help import stage_help
from rosepo.config import STRATEGIES, dump_config, load_config
from rosepo.config.base import Count, Option
from rosepo.config.strategies import StrategyEntry
from rosepo.data.random import Draws
from rosepo.pipeline.fingerprints import stage_settings
from rosepo.run.paths import RunPaths
from rosepo.run.stages import STAGES
from rosepo.sampling.pairs import pairs
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.sampling.strategies.picking import pick_from_top
from rosepo.sampling.strategies.protocol import Strategy, StrategyInputs
from rosepo.training.feed.encoders import strategy_labels
from rosepo.utils.errors import UserError
from tests.sampling.runs import N_ITEMS, configure, read


class Newest:
    """A random one of the `top` items of the highest index that are neither the target nor seen before it."""

    def __init__(self, top: int) -> None:
        self.top = top

    def __call__(self, examples: Examples, count: int, draws: Draws) -> np.ndarray:
        free = np.ones((len(examples), examples.n_items), dtype=bool)
        free[examples.excluded.rows, examples.excluded.items] = False
        order = np.argsort(np.where(free, -np.arange(examples.n_items), 1), axis=1)
        ranked = np.where(np.take_along_axis(free, order, axis=1), order, -1)
        return pick_from_top(ranked, self.top, count, draws)


def make_newest(inputs: StrategyInputs) -> Strategy:
    return Newest(inputs.option("newest_top"))


TOP = Option("newest_top", Count, 10, "newest draws from this many of the newest titles.")


@pytest.fixture(autouse=True)
def entry(monkeypatch: pytest.MonkeyPatch) -> StrategyEntry:
    made = StrategyEntry(
        described="new titles", maker=f"{__name__}:make_newest", options=(TOP,), top="newest_top", colour="#4d6b00"
    )
    monkeypatch.setitem(STRATEGIES, "newest", made)
    return made


def test_its_titles_are_what_groups_reject(run: RunPaths, in_process: None, tmp_path: Path) -> None:
    config = configure(strategies={"newest": 1, "popularity": 1}, newest_top=2, score=False)
    figures = pairs(config, run, tmp_path)
    history = {row["example_id"]: row["history"] for row in read(run.examples).to_pylist()}
    found = 0
    for row in read(tmp_path).to_pylist():
        taken = {*history[row["example_id"]], row["chosen_item"]}
        first = [item for item in reversed(range(N_ITEMS)) if item not in taken][:4]
        mine = [item for item, name in zip(row["rejected_items"], row["strategy"], strict=True) if name == "newest"]
        assert set(mine) <= set(first)
        found += len(mine)
    assert found == figures["strategies"]["newest"]["pairs"] > 100


def test_it_counts_by_its_own_name_and_limits_the_titles_of_a_group() -> None:
    assert strategy_labels()[-2:] == ("newest", "own")
    config = load_config(None, ["pairs.strategies={newest: 1}"])
    assert config.negatives(1000) == 10
    assert not config.pairs.asks_policy
    assert not config.pairs.asks_oracle
    with pytest.raises(UserError, match=r"pairs\.newest_top=2 holds fewer titles than pairs\.negatives=3 draws"):
        load_config(None, ["pairs={strategies: {newest: 1}, newest_top: 2, negatives: 3}"])


def test_its_setting_is_one_as_all_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    used, other = (load_config(None, [f"pairs.strategies={{{name}: 1}}"]) for name in ("newest", "uniform"))
    assert stage_settings(used, STAGES["pairs"])["pairs.newest_top"] == 10
    assert "newest_top" not in dump_config(used)
    settings = stage_settings(other, STAGES["pairs"])
    told = " ".join(stage_help("pairs").split())
    assert f"newest_top=10 {TOP.about}" in told
    assert "newest new titles: newest_top" in told
    monkeypatch.delitem(STRATEGIES, "newest")
    assert settings == stage_settings(load_config(None, ["pairs.strategies={uniform: 1}"]), STAGES["pairs"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("pairs={strategies: {newest: 1}, newest_tp: 2}", r"unknown key 'pairs.newest_tp' \(did you mean 'newest_top'"),
        ("pairs={strategies: {newest: 1}, newest_top: 0}", r"pairs\.newest_top: .*greater than or equal to 1"),
        ("pairs={newest_top: 2}", r"pairs\.newest_top is used by the strategy newest alone, which has no weight"),
        ("pairs.strategies={newst: 1}", r"pairs\.strategies has no 'newst' \(did you mean 'newest'"),
    ],
)
def test_its_setting_is_refused_where_it_is_wrong_or_unused(settings: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config(None, [settings])
