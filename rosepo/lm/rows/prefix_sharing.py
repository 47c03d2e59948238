"""Groups of one user whose prompts begin alike: which of them share a trunk, and the trajectory rows that they make.

The longest prompt of a family is the trunk; every group branches off where its own prompt leaves it, behind the rest of
that prompt (the template's suffix). Whatever the tokens are, a completion sees its own prompt and itself: how groups
are put together decides the cost alone. All numpy, for the actors that feed training and for the reference pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rosepo.lm.rows.rows import Branch, Row, build_row


@dataclass(frozen=True)
class Group:
    """What a row needs of one group.

    Attributes:
        prompt: int32 [n].
        completions: int32, each with EOS; the chosen one first.
    """

    prompt: np.ndarray
    completions: Sequence[np.ndarray]


@dataclass(frozen=True)
class UserRow:
    """A row whose completions are those of `groups` (places in the list given), in that order."""

    row: Row
    groups: list[int]


def prefix_groups(prompts: Sequence[np.ndarray], shared: Sequence[int]) -> list[list[int]]:
    """Places of prompts in families, the longest prompt of each first, every place once.

    A prompt joins the first family whose longest prompt begins with its first ``shared[place]`` tokens.
    """
    families: list[tuple[bytes, list[int]]] = []
    for place in sorted(range(len(prompts)), key=lambda place: -len(prompts[place])):
        prompt = np.asarray(prompts[place], dtype=np.int32)
        beginning = prompt[: shared[place]].tobytes()
        for longest, family in families:
            if longest.startswith(beginning):
                family.append(place)
                break
        else:
            families.append((prompt.tobytes(), [place]))
    return [family for _, family in families]


def common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens that two prompts have in common before they part."""
    n = min(len(one), len(other))
    apart = one[:n] != other[:n]
    return int(np.argmax(apart)) if apart.any() else n


def user_rows(groups: Sequence[Group], row_tokens: int) -> list[UserRow]:
    """The rows of one user's groups, at least one group a row, each group in exactly one.

    A group joins a trunk where the rest of its prompt, which each of its completions repeats, costs less than a prompt
    of its own.

    Args:
        groups: in any order.
        row_tokens: tokens of a row at most; a row of one group may have more.
    """
    # With n completions a rest of r tokens costs n * r: it joins where that is less than its prompt.
    shared = [len(group.prompt) - (len(group.prompt) - 1) // len(group.completions) for group in groups]
    families = prefix_groups([group.prompt for group in groups], shared)
    return [_user_row(groups, part) for family in families for part in _cut(groups, family, row_tokens)]


def _cut(groups: Sequence[Group], family: list[int], row_tokens: int) -> Iterator[list[int]]:
    """A family in parts that fit a row."""
    part: list[int] = []
    trunk, tokens = groups[family[0]].prompt[:0], 0
    for place in family:
        own = _own_tokens(groups[place], trunk)
        if part and tokens + own > row_tokens:
            yield part
            part = []
        if not part:
            group = groups[place]
            trunk, tokens = _trunk(group), 0
            own = len(trunk) + sum(len(ids) - 1 for ids in group.completions[1:])
        part.append(place)
        tokens += own
    yield part


def _trunk(group: Group) -> np.ndarray:
    """The prompt, and on it the chosen title."""
    return np.concatenate([group.prompt, group.completions[0][:-1]]).astype(np.int32)


def _own_tokens(group: Group, trunk: np.ndarray) -> int:
    """Tokens that a group adds to the row of a trunk, at most: those of titles that do not continue it."""
    attach = common_prefix(group.prompt, trunk)
    rest = len(group.prompt) - attach
    chosen = group.completions[0][:-1]
    on_trunk = rest == 0 and np.array_equal(trunk[attach : attach + len(chosen)], chosen)
    return sum(rest + len(ids) - 1 for ids in group.completions[int(on_trunk) :])


def _user_row(groups: Sequence[Group], part: list[int]) -> UserRow:
    trunk = _trunk(groups[part[0]])
    branches = []
    for place in part:
        prompt = groups[place].prompt
        attach = common_prefix(prompt, trunk)
        branches += [Branch(attach, prompt[attach:], ids) for ids in groups[place].completions]
    return UserRow(build_row(trunk, branches), part)
