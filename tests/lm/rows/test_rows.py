from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.config import TemplateConfig
from rosepo.data.prompts import PromptBuilder
from rosepo.lm.rows.batch import Batch, collate, dense_mask
from rosepo.lm.rows.collate import collate_numpy, pack_lengths, padded_size
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.rows.plain_rows import plain_logps, separate
from rosepo.lm.rows.rows import Branch, build_row, group_row, trajectory_rows
from tests.helpers import FAMILIES, tiny_builder, tiny_model

TEMPLATES = {
    "plain": TemplateConfig(),
    "suffix": TemplateConfig(suffix="Next: "),
    "chat": TemplateConfig(prefix="Liked: ", separator=", ", suffix="{eos}Next: "),
    "bare": TemplateConfig(prefix=""),
    "whole": TemplateConfig(prefix="", separator="", end=""),
    "instruct": TemplateConfig(system="Name one."),
}


def build(name: str, max_length: int = 256) -> PromptBuilder:
    return tiny_builder(template=TEMPLATES[name], max_length=max_length, whole=name == "whole", chat=name == "instruct")


BUILDERS = {name: build(name) for name in TEMPLATES}


def examples(builder: PromptBuilder, items: np.ndarray, n_targets: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What the examples of a trajectory are one by one."""
    targets = range(len(items) - n_targets, len(items))
    prompts = [builder.prompt(items[:target])[0] for target in targets]
    return prompts, [builder.completion(items[target]) for target in targets]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("family", FAMILIES)
def test_trajectory_rows_equal_separate_rows(family: str, template: str) -> None:
    builder, model = BUILDERS[template], tiny_model(family)
    trajectories = [(np.array([3, 1, 4, 15, 9]), 3), (np.array([2, 6]), 1), (np.arange(8), 7)]
    rows = [row for items, n_targets in trajectories for row in trajectory_rows(builder, items, n_targets)]
    batch = collate(rows)
    assert len(rows) == 3
    assert batch.causal == (len(builder.tail) == 0)
    sums, counts = LogpsModel(model)(batch)
    prompts, completions = [], []
    for items, n_targets in trajectories:
        for part, more in zip((prompts, completions), examples(builder, items, n_targets), strict=True):
            part.extend(more)
    expected, expected_counts = plain_logps(model, prompts, completions)
    torch.testing.assert_close(sums, expected, atol=1e-4, rtol=1e-5)
    assert counts.tolist() == expected_counts.tolist()
    weights = torch.linspace(1, 2, len(sums))
    grads = torch.autograd.grad((sums * weights).sum(), list(model.parameters()))
    plain_grads = torch.autograd.grad((expected * weights).sum(), list(model.parameters()))
    for grad, plain in zip(grads, plain_grads, strict=True):
        torch.testing.assert_close(grad, plain, atol=2e-4, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(TEMPLATES)),
    st.lists(st.integers(0, 29), min_size=2, max_size=20, unique=True),
    st.integers(1, 19),
    st.integers(0, 60),
)
def test_over_long_trajectories_are_cut_like_separate_examples(
    template: str, items: list[int], n_targets: int, spare: int
) -> None:
    roomy = BUILDERS[template]
    longest_piece = int(roomy.pieces(range(30))[1].max())
    needed = len(roomy.head) + len(roomy.tail) + longest_piece + roomy.longest_completion
    builder = build(template, needed + spare)
    n_targets = min(n_targets, len(items) - 1)
    rows = trajectory_rows(builder, np.array(items), n_targets)
    prompts, completions = separate(collate(rows))
    expected_prompts, expected_completions = examples(builder, np.array(items), n_targets)
    assert [ids.tolist() for ids in prompts] == [ids.tolist() for ids in expected_prompts]
    assert [ids.tolist() for ids in completions] == [ids.tolist() for ids in expected_completions]
    assert max(int(row.position_ids.max()) for row in rows) < builder.max_length


@pytest.mark.parametrize("end", ["{eos}", ""])
def test_titles_that_lie_on_the_trunk_make_the_row_that_their_branches_make(end: str) -> None:
    builder = tiny_builder(template=TemplateConfig(prefix="", separator=end, end=end), whole=not end)
    items, n_targets = np.array([3, 1, 4, 15, 9, 2]), 4
    (row,) = trajectory_rows(builder, items, n_targets)
    prompts, completions = examples(builder, items, n_targets)
    trunk = np.concatenate([prompts[-1], completions[-1][:-1]])
    expected = build_row(trunk, [Branch(len(one), trunk[:0], title) for one, title in zip(prompts, completions)])
    for name in ("input_ids", "position_ids", "segment", "attach", "predict_at", "targets", "completion"):
        np.testing.assert_array_equal(getattr(row, name), getattr(expected, name), err_msg=name)
        assert getattr(row, name).dtype == np.int32
    assert row.n_completions == expected.n_completions == n_targets


def test_without_a_suffix_a_trajectory_costs_no_more_tokens_than_its_titles() -> None:
    builder, items = BUILDERS["plain"], np.arange(10)
    (row,) = trajectory_rows(builder, items, 9)
    prompt, _ = builder.prompt(items[:9])
    assert len(row) == len(prompt) + len(builder.title_ids(9))
    assert (row.segment == 0).all()
    assert row.position_ids.tolist() == list(range(len(row)))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_every_token_sees_its_own_sequence_and_nothing_else(data: st.DataObject) -> None:
    token = st.integers(3, 5)
    rows = []
    for _ in range(data.draw(st.integers(1, 3))):
        trunk = np.array(data.draw(st.lists(token, min_size=1, max_size=9)), dtype=np.int32)
        branches = [
            Branch(
                data.draw(st.integers(1, len(trunk))),
                np.array(data.draw(st.lists(token, max_size=2)), dtype=np.int32),
                np.array([*data.draw(st.lists(token, max_size=3)), 2], dtype=np.int32),
            )
            for _ in range(data.draw(st.integers(1, 4)))
        ]
        rows.append((trunk, branches))
    batch = collate([build_row(*row) for row in rows], pack_tokens=data.draw(st.none() | st.integers(1, 60)))
    mask = dense_mask(batch)[:, 0].numpy()
    assert mask.any(axis=2).all()
    completion = 0
    length = batch.input_ids.shape[1]
    for trunk, branches in rows:
        for attach, tail, ids in branches:
            sequence = [*trunk[:attach], *tail, *ids[:-1]]
            own = torch.nonzero(batch.completion == completion).flatten()
            assert batch.targets[own].tolist() == ids.tolist()
            for step, place in enumerate(batch.gather[batch.source[own]].tolist()):
                line, position = divmod(place, length)
                seen = np.flatnonzero(mask[line, position])
                n = attach + len(tail) + step
                assert batch.input_ids[line, seen].tolist() == sequence[:n]
                assert batch.position_ids[line, seen].tolist() == list(range(n))
            completion += 1
    assert completion == batch.n_completions == int(batch.row_offsets[-1])


def test_positions_that_predict_several_completions_are_gathered_once() -> None:
    prompt, eos = np.arange(3, 13), np.array([2])
    batch = collate([group_row(prompt, [np.append(i, eos) for i in ([20, 21], [22], [23, 24])])])
    assert len(torch.unique(batch.source)) == 1 + 2 + 1 + 2
    assert (batch.source.diff() >= 0).all()


def test_a_batch_survives_the_way_through_numpy() -> None:
    rows = [
        group_row(np.arange(3, 9), [np.array([7, 2]), np.array([8, 9, 2])]),
        group_row(np.array([5]), [np.array([2])]),
    ]
    batch = collate(rows, pad_to=32)
    arrays = batch.to_numpy()
    assert all(array.dtype == np.int32 for array in arrays.values())
    again = Batch.from_numpy(arrays)
    for name in Batch.__dataclass_fields__:
        first, second = getattr(batch, name), getattr(again, name)
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
    assert (batch.n_tokens, batch.longest, batch.causal, batch.n_completions) == (6 + 1 + 2 + 1, 8, False, 3)


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=40), st.integers(1, 100))
def test_packed_lines_hold_every_row_once_and_no_more_tokens_than_they_may(lengths: list[int], capacity: int) -> None:
    lines = pack_lengths(lengths, capacity)
    assert sorted(place for line in lines for place in line) == list(range(len(lengths)))
    for line in lines:
        assert line
        assert len(line) == 1 or sum(lengths[place] for place in line) <= max(capacity, *lengths)


def test_packing_leaves_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(4, 40, 32).tolist()
    lines = pack_lengths(lengths, 256)
    fullest = max(sum(lengths[place] for place in line) for line in lines)
    assert sum(lengths) > 0.95 * fullest * len(lines)


def test_sizes_are_few_and_waste_little() -> None:
    sizes = {padded_size(n) for n in range(1, 513)}
    assert len(sizes) <= 24
    assert all(n <= padded_size(n) <= max(n + 15, 1.125 * n + 1) for n in range(1, 4096))
    assert padded_size(1, 8) == 8


def test_impossible_rows_are_refused() -> None:
    none = np.zeros(0, np.int32)
    with pytest.raises(ValueError, match="outside a trunk"):
        build_row(np.arange(3), [Branch(4, none, np.array([2]))])
    with pytest.raises(ValueError, match="no token before"):
        build_row(np.arange(3), [Branch(0, none, np.array([2]))])
    with pytest.raises(ValueError, match="cannot be padded"):
        collate_numpy([group_row(np.arange(9), [np.array([2])])], pad_to=8)
    with pytest.raises(ValueError, match="targets"):
        trajectory_rows(BUILDERS["plain"], np.arange(3), 4)
