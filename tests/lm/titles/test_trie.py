"""The array trie against a trie of dictionaries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.lm.titles.trie import Exclusion, TitleTrie
from rosepo.utils.errors import UserError

EOS = 0
titles = st.lists(st.integers(1, 4), min_size=1, max_size=5)
catalogues = st.lists(titles, min_size=1, max_size=25, unique_by=tuple)


def completions_of(catalogue: list[list[int]]) -> list[np.ndarray]:
    return [np.array([*title, EOS], dtype=np.int32) for title in catalogue]


def items_by_prefix(completions: list[np.ndarray]) -> dict[tuple[int, ...], set[int]]:
    found: dict[tuple[int, ...], set[int]] = {}
    for item, tokens in enumerate(completions):
        for length in range(len(tokens) + 1):
            found.setdefault(tuple(tokens[:length].tolist()), set()).add(item)
    return found


def nodes_by_prefix(trie: TitleTrie) -> dict[tuple[int, ...], int]:
    """Every node reached by expanding the whole trie level by level."""
    prefixes, nodes = [()], np.array([0])
    found = {(): 0}
    while len(nodes):
        parent, child = trie.expand(nodes)
        prefixes = [(*prefixes[at], int(trie.token[node])) for at, node in zip(parent, child, strict=True)]
        assert len(set(prefixes)) == len(prefixes)
        found.update(zip(prefixes, child.tolist(), strict=True))
        nodes = child
    return found


@given(catalogues)
def test_nodes_cover_the_items_that_begin_with_their_tokens(catalogue: list[list[int]]) -> None:
    completions = completions_of(catalogue)
    trie, expected = TitleTrie.build(completions), items_by_prefix(completions)
    found = nodes_by_prefix(trie)
    assert found.keys() == expected.keys()
    assert len(trie.token) == len(expected)
    for prefix, node in found.items():
        assert set(trie.item_at[trie.low[node] : trie.high[node]].tolist()) == expected[prefix]
        assert bool(trie.is_leaf(np.array([node]))[0]) == (prefix[-1:] == (EOS,))


@given(catalogues)
def test_leaves_name_their_items_and_ranks_follow_the_sorted_tokens(catalogue: list[list[int]]) -> None:
    completions = completions_of(catalogue)
    trie = TitleTrie.build(completions)
    in_order = sorted(range(len(completions)), key=lambda item: completions[item].tolist())
    assert trie.item_at.tolist() == in_order
    assert trie.item_at[trie.rank_of].tolist() == list(range(len(completions)))
    found = nodes_by_prefix(trie)
    leaves = np.array([found[tuple(tokens.tolist())] for tokens in completions])
    assert trie.items(leaves).tolist() == list(range(len(completions)))
    assert trie.depth == max(map(len, completions))


@settings(max_examples=60)
@given(catalogues, st.data())
def test_a_node_is_allowed_while_an_item_under_it_is_left(catalogue: list[list[int]], data: st.DataObject) -> None:
    completions = completions_of(catalogue)
    trie, expected = TitleTrie.build(completions), items_by_prefix(completions)
    item = st.integers(0, len(completions) - 1)
    excluded = data.draw(st.lists(st.lists(item, max_size=8), min_size=1, max_size=4))
    exclusion = Exclusion(trie, [np.array(row, dtype=np.int64) for row in excluded])
    for prefix, node in nodes_by_prefix(trie).items():
        rows = np.arange(len(excluded))
        allowed = exclusion.allows(rows, np.full(len(rows), node))
        assert allowed.tolist() == [bool(expected[prefix] - set(row)) for row in excluded]
    # Children of a few nodes at once, as beams are: in the order of the catalogue, as at the root, and in any other.
    parents = np.array(data.draw(st.lists(st.sampled_from([0, *nodes_by_prefix(trie).values()]), max_size=3)))
    prefix_of = {node: prefix for prefix, node in nodes_by_prefix(trie).items()}
    for nodes in (np.zeros(1, dtype=np.int64), parents.astype(np.int64)):
        _, children = trie.expand(nodes)
        rows = np.repeat(np.arange(len(excluded)), len(children))
        allowed = exclusion.allows(rows, np.tile(children, len(excluded)))
        left = [bool(expected[prefix_of[node]] - set(row)) for row in excluded for node in children.tolist()]
        assert allowed.tolist() == left


def test_titles_that_begin_others_have_leaves_of_their_own() -> None:
    trie = TitleTrie.build(completions_of([[1], [1, 2], [1, 2, 3]]))
    parent, child = trie.expand(np.array([1]))
    assert parent.tolist() == [0, 0]
    assert trie.token[child].tolist() == [EOS, 2]


@pytest.mark.parametrize(
    ("completions", "message"),
    [
        ([], "empty"),
        ([[1, 2], []], "item 1 .* without tokens"),
        ([[1, 0], [2, 0], [1, 0]], "items 0 and 2 .* same title tokens"),
        ([[1, 2], [1, 2, 0]], "begins another"),
    ],
)
def test_catalogues_that_cannot_be_told_apart_are_refused(completions: list[list[int]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TitleTrie.build([np.array(tokens, dtype=np.int32) for tokens in completions])


def test_a_catalogue_of_many_titles_is_read_back_whole() -> None:
    digits = np.arange(100_000)[:, None] // 50 ** np.arange(4) % 50 + 1
    completions = list(np.pad(np.random.default_rng(0).permutation(digits), ((0, 0), (0, 1))))
    trie = TitleTrie.build(completions)
    nodes = np.zeros(len(completions), dtype=np.int64)
    for tokens in np.stack(completions).T:
        parent, child = trie.expand(nodes)
        nodes = child[trie.token[child] == tokens[parent]]
    assert trie.items(nodes).tolist() == list(range(100_000))
