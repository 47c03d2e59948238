"""Groups of users: who belongs to which, and their figures."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.evaluation.user_segments import SMALLEST, group_figures, user_groups
from rosepo.metrics.bootstrap import UserBootstrap


def test_groups_are_told_by_what_a_user_had_chosen_before_the_first_measured_example() -> None:
    n = SMALLEST
    users = np.repeat(np.arange(3 * n), 2)
    first = np.repeat([1, 5, 8], n)
    lengths = np.stack([first, first + 20], axis=1).ravel()
    tastes = np.repeat(np.concatenate([np.full(n, 3.0), np.full(n, 1.0), np.full(n, 2.0)]), 2)
    groups = user_groups(users, lengths, tastes)
    assert list(groups["history_length"]) == ["1 title", "5–8 titles"]
    assert groups["history_length"]["1 title"].nonzero()[0].tolist() == list(range(2 * n))
    assert groups["history_length"]["5–8 titles"].sum() == 4 * n
    assert {name: users[members][0] for name, members in groups["popularity_taste"].items()} == {
        "niche": n,
        "middle": 2 * n,
        "mainstream": 0,
    }


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_every_large_group_of_users_is_there_and_no_small_one(seed: int, longest: int) -> None:
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 300, size=600)
    lengths, tastes = rng.integers(0, longest + 1, size=600), rng.choice([np.nan, 1.0, 2.0, 3.0], size=600)
    groups = user_groups(users, lengths, tastes)
    first = {user: np.flatnonzero(users == user)[0] for user in set(users.tolist())}

    def slow_bin(length: int) -> str:
        low, high = 1, 1
        while length > high:
            low, high = high + 1, 2 * high
        return "0 titles" if not length else "1 title" if high == 1 else f"{low}–{high}" if low < high else f"{high}"

    found: dict[str, set[int]] = {}
    for user, row in first.items():
        found.setdefault(slow_bin(int(lengths[row])), set()).add(user)
    large = {name.removesuffix(" titles"): members for name, members in found.items() if len(members) >= SMALLEST}
    assert {name.removesuffix(" titles"): set(users[members].tolist())
            for name, members in groups["history_length"].items()} == large  # fmt: skip
    taste = {user: tastes[row] for user, row in first.items() if np.isfinite(tastes[row])}
    members = [user for mask in groups["popularity_taste"].values() for user in set(users[mask].tolist())]
    assert len(members) == len(set(members))
    assert set(members) <= set(taste)
    for name, mask in groups["popularity_taste"].items():
        assert len(np.unique(users[mask])) >= SMALLEST
        others = {"niche": ("middle", "mainstream"), "middle": ("mainstream",), "mainstream": ()}[name]
        high = max(taste[user] for user in set(users[mask].tolist()))
        for other in others:
            if other in groups["popularity_taste"]:
                theirs = set(users[groups["popularity_taste"][other]].tolist())
                assert high < min(taste[user] for user in theirs)


def test_a_group_has_the_figures_of_its_examples_alone() -> None:
    rng = np.random.default_rng(0)
    users = np.arange(200)
    keys = ("hr@10", "ndcg@10", "log_popularity", "hallucination")
    series = {name: {key: rng.random(200) for key in keys} for name in ("sft", "aligned")}
    series["truth"] = {"log_popularity": rng.random(200)}
    series["sft"]["hallucination"][:10] = np.nan
    members = users % 2 == 0
    found = group_figures({"some": {"even": members}, "none": {}}, users, series, resamples=100, seed=3)
    assert list(found) == ["some"]
    group = found["some"]["even"]
    assert (group["n_users"], group["n_examples"]) == (100, 100)
    drawn = UserBootstrap(users[members], 100, 3).resample({key: series["sft"][key][members] for key in keys})
    for key in keys:
        figure = group["models"]["sft"][key]
        assert {name: figure[name] for name in ("value", "low", "high")} == pytest.approx(asdict(drawn.mean(key)))
        difference = series["aligned"][key][members].mean() - np.nanmean(series["sft"][key][members])
        assert group["differences"]["aligned-sft"][key]["value"] == pytest.approx(difference)
    assert group["models"]["aligned"]["log_popularity"]["truth"] == pytest.approx(
        series["truth"]["log_popularity"][members].mean()
    )
    assert "truth" not in group["models"]
