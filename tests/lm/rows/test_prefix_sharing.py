"""Trajectory rows of groups against one row a completion, whatever the prompts have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.config import TemplateConfig
from rosepo.data.prompts import PromptBuilder
from rosepo.lm.rows.batch import Batch, collate
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.rows.plain_rows import plain_logps, separate
from rosepo.lm.rows.prefix_sharing import Group, prefix_groups, user_rows
from rosepo.training.feed.encoders import UserEncoder, run_bounds
from rosepo.training.feed.micro_batching import shared_by_tokens
from tests.helpers import FAMILIES, tiny_builder, tiny_model

TEMPLATES = {
    "plain": TemplateConfig(),
    "suffix": TemplateConfig(suffix="Next: "),
    "chat": TemplateConfig(prefix="Liked: ", separator=", ", suffix="{eos}Next: "),
    "bare": TemplateConfig(prefix="", separator="{eos}"),
    "instruct": TemplateConfig(system="Name one."),
}
BUILDERS = {name: tiny_builder(template=template, chat=name == "instruct") for name, template in TEMPLATES.items()}
WALKS = {7: [3, 1, 4, 15, 9, 2], 8: [2, 6], 9: [11, 12, 13, 14]}
"""Items of three users, oldest first; every one behind the first is the chosen title of a group."""


def table_of(builder: PromptBuilder, walks: dict[int, list[int]], negatives: int) -> pa.Table:
    """The groups table of users' walks, as the pairs stage writes it."""
    rng = np.random.default_rng(negatives)
    rows: list[dict[str, Any]] = []
    for user, walk in walks.items():
        for place in range(1, len(walk)):
            others = rng.choice(np.setdiff1d(np.arange(30), walk), negatives, replace=False)
            prompt, _ = builder.prompt(walk[:place])
            titles = [builder.completion(int(item)).tolist() for item in (walk[place], *others)]
            logps = rng.normal(size=1 + negatives)
            rows.append(
                {
                    "example_id": f"{user}:{place}", "user_id": user, "prompt_ids": prompt.tolist(),
                    "chosen_ids": titles[0], "rejected_ids": titles[1:], "strategy": ["uniform"] * negatives,
                    "epsilon": [0.1] * negatives, "oracle_scores": [0.0] * (1 + negatives),
                    "ref_logps": logps.tolist(),
                }
            )  # fmt: skip
    return pa.Table.from_pylist(rows)


def separate_rows(table: pa.Table, arrays: dict[str, np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Prompts and completions of the micro-batch's groups, told by their log-probabilities, one by one."""
    known = {np.float32(row["ref_logps"][0]): row for row in table.to_pylist()}
    found = [known[key] for key in arrays["ref_logps"][:, 0]]
    pairs = [(row["prompt_ids"], ids) for row in found for ids in (row["chosen_ids"], *row["rejected_ids"])]
    return [np.array(prompt) for prompt, _ in pairs], [np.array(ids) for _, ids in pairs]


def assert_same(model: torch.nn.Module, batch: Batch, prompts: list[np.ndarray], completions: list[np.ndarray]) -> None:
    """Log-probabilities, counts and the gradients of a sum with different weights."""
    sums, counts = LogpsModel(model)(batch)
    expected, expected_counts = plain_logps(model, prompts, completions)
    torch.testing.assert_close(sums, expected, atol=1e-4, rtol=1e-5)
    assert counts.tolist() == expected_counts.tolist()
    weights = torch.linspace(1, 2, len(sums))
    grads = torch.autograd.grad((sums * weights).sum(), list(model.parameters()))
    plain_grads = torch.autograd.grad((expected * weights).sum(), list(model.parameters()))
    scale = max(float(grad.abs().max()) for grad in plain_grads)
    for grad, plain in zip(grads, plain_grads, strict=True):
        torch.testing.assert_close(grad, plain, atol=1e-5 * max(1.0, scale), rtol=1e-4)


@pytest.mark.parametrize(
    ("negatives", "template", "pack_tokens"),
    [(1, "suffix", None), (3, "plain", 400), (15, "bare", None), (15, "chat", 900), (3, "instruct", None)],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_trajectory_rows_give_the_log_probs_and_gradients_of_separate_rows(
    family: str, negatives: int, template: str, pack_tokens: int | None
) -> None:
    table = table_of(BUILDERS[template], {user: WALKS[user][:5] for user in WALKS}, negatives)
    (arrays,) = UserEncoder(row_tokens=4096, pack_tokens=pack_tokens)(table, 1)
    assert arrays["units"] == len(table) == len(arrays["ref_logps"])
    assert_same(tiny_model(family), Batch.from_numpy(arrays), *separate_rows(table, arrays))


TOKEN = st.integers(3, 5)


@st.composite
def random_groups(draw: st.DrawFn) -> list[Group]:
    """Groups whose prompts are cut from a few stems and go on at random: few tokens, so that much is alike."""
    size = draw(st.integers(1, 3))
    stems = draw(st.lists(st.lists(TOKEN, min_size=1, max_size=14), min_size=1, max_size=2))
    groups = []
    for _ in range(draw(st.integers(1, 5))):
        stem = draw(st.sampled_from(stems))
        prompt = [*stem[: draw(st.integers(1, len(stem)))], *draw(st.lists(TOKEN, max_size=3))]
        completions = draw(st.lists(st.lists(TOKEN, max_size=4), min_size=1 + size, max_size=1 + size))
        ids = [np.array([*part, 2], dtype=np.int32) for part in completions]
        groups.append(Group(np.array(prompt, dtype=np.int32), ids))
    return groups


@settings(max_examples=120, deadline=None)
@given(random_groups(), st.integers(1, 80), st.none() | st.integers(1, 90))
def test_random_prompts_and_completions_come_back_whole(
    groups: list[Group], row_tokens: int, pack_tokens: int | None
) -> None:
    rows = user_rows(groups, row_tokens)
    order = [place for found in rows for place in found.groups]
    assert sorted(order) == list(range(len(groups)))
    assert all(len(found.row) <= row_tokens or len(found.groups) == 1 for found in rows)
    prompts, completions = separate(collate([found.row for found in rows], pack_tokens=pack_tokens))
    expected = [(groups[place].prompt, ids) for place in order for ids in groups[place].completions]
    assert [ids.tolist() for ids in prompts] == [prompt.tolist() for prompt, _ in expected]
    assert [ids.tolist() for ids in completions] == [ids.tolist() for _, ids in expected]


@settings(max_examples=10, deadline=None)
@given(random_groups(), st.integers(1, 80))
def test_random_prefix_families_have_the_log_probs_of_separate_rows(groups: list[Group], row_tokens: int) -> None:
    rows = user_rows(groups, row_tokens)
    pairs = [
        (groups[place].prompt, ids) for found in rows for place in found.groups for ids in groups[place].completions
    ]
    batch = collate([found.row for found in rows])
    assert_same(tiny_model("gpt2"), batch, [prompt for prompt, _ in pairs], [ids for _, ids in pairs])


def test_a_user_costs_little_more_than_the_longest_prompt() -> None:
    builder, walk = BUILDERS["bare"], list(range(20))
    groups = [
        Group(builder.prompt(walk[:place])[0], [builder.completion(walk[place]), builder.completion(29)])
        for place in range(1, 20)
    ]
    (found,) = user_rows(groups, 4096)
    assert found.groups[0] == len(groups) - 1
    rejected = len(builder.title_ids(29))
    assert len(found.row) == len(groups[-1].prompt) + len(builder.title_ids(19)) + len(groups) * rejected


def test_prompts_that_would_repeat_more_than_they_share_get_rows_of_their_own() -> None:
    shared, rest = np.arange(3, 13, dtype=np.int32), np.arange(20, 26, dtype=np.int32)
    ids = [np.array([30 + n, 31, 2], dtype=np.int32) for n in range(3)]
    long = Group(np.concatenate([shared, rest]), ids)
    # Three completions that repeat 4 tokens cost 12, less than a prompt of 14; 5 and 6 cost no less than 15 and 16.
    assert len(user_rows([long, Group(np.concatenate([shared, rest[::-1]]), ids)], 4096)) == 2
    assert len(user_rows([long, Group(np.concatenate([shared, rest[::-1][:5]]), ids)], 4096)) == 2
    assert len(user_rows([long, Group(np.concatenate([shared, rest[::-1][:4]]), ids)], 4096)) == 1
    assert prefix_groups([shared[:4], shared, rest], [4, 10, 6]) == [[1, 0], [2]]


def test_runs_of_one_user_are_found() -> None:
    assert run_bounds(pa.chunked_array([[5, 5], [5, 6, 6, 7]])) == [0, 3, 5, 6]
    assert run_bounds(pa.chunked_array([["a"]])) == [0, 1]


@settings(deadline=None)
@given(st.lists(st.integers(1, 500), max_size=30), st.integers(1, 6))
def test_micro_batches_of_users_hold_every_row_once_and_like_numbers_of_tokens(lengths: list[int], parts: int) -> None:
    places = shared_by_tokens(lengths, parts)
    assert len(places) == parts
    assert [lengths[place] for part in places for place in part] == sorted(lengths)
    assert sorted(place for part in places for place in part) == list(range(len(lengths)))
    heaviest = max((len(part) * max(lengths[place] for place in part) for part in places if part), default=0)
    in_one = len(lengths) * max(lengths, default=0)
    assert heaviest <= max(max(lengths, default=0), 1.3 * in_one / parts + max(lengths, default=0)) + 64
