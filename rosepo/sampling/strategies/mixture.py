"""K rejected titles an example from a weighted mixture of strategies, which are those of the table or one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass

import numpy as np

from rosepo.config import STRATEGIES
from rosepo.data.catalogue import made_for
from rosepo.data.random import stream, uniforms
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.sampling.strategies.protocol import Strategy, StrategyInputs
from rosepo.sampling.strategies.weighted import uniform
from rosepo.utils.errors import StageError, UserError
from rosepo.utils.imports import find_callable

FALLBACK = "uniform"
"""Strategy behind a title where the one that was due had none left."""


@dataclass(frozen=True, eq=False)
class Rejected:
    """Rejected items of N examples.

    Attributes:
        items: int64 [N, K], distinct in a row.
        names: strategies.
        strategy: int64 [N, K], index in `names` of the strategy that each item came from.
        fallback: bool [N, K], where another strategy was due and had none left.
    """

    items: np.ndarray
    names: tuple[str, ...]
    strategy: np.ndarray
    fallback: np.ndarray


def make_strategies(inputs: StrategyInputs) -> dict[str, Strategy]:
    """Every strategy that the mixture of `inputs.pairs` uses, by its name.

    Raises:
        UserError: see `made_for`.
        ValueError: one asks for what is not there.
    """
    return {
        name: find_callable(STRATEGIES[name].maker, f"pairs.strategies.{name}")(inputs)
        if name in STRATEGIES
        else made_for(inputs.catalogue, name, "pairs.strategies", "strategy")
        for name in inputs.pairs.used
    }


def max_negatives(catalogue: Sized, longest_history: int) -> int:
    """Rejected titles that every example can have: those outside the longest history and the target."""
    return len(catalogue) - longest_history - 1


def check_negatives(wanted: int | None, allowed: int, n_items: int) -> None:
    """Refuse more rejected titles than every example can have; None wants one at least.

    Raises:
        UserError: a catalogue of `n_items` that leaves fewer, `allowed`.
    """
    if (wanted or 1) > allowed:
        raise UserError(
            f"pairs.negatives={wanted or 1} is more than the catalogue allows: {n_items:,} items leave "
            f"{max(0, allowed)} outside the longest history and the target; "
            f"{'lower it' if allowed > 0 else 'none is left to reject: bring more items'}"
        )


def sample_rejected(
    examples: Examples, strategies: Mapping[str, Strategy], weights: Mapping[str, float], count: int, seed: int
) -> Rejected:
    """`count` distinct rejected items an example; each place's strategy is drawn by weight.

    The result for an example depends on the example, the seed and the settings alone, not on the batch.

    Raises:
        StageError: an example has fewer than `count` items outside its history and target.
    """
    names = tuple(sorted(name for name in weights if weights[name] > 0))  # not the order in the file
    bounds = np.cumsum([weights[name] for name in names])
    due = np.stack(
        [
            np.searchsorted(bounds, bounds[-1] * uniforms(examples.keys, seed, "mixture", place), side="right")
            for place in range(count)
        ],
        axis=1,
    )
    items = np.full((len(examples), count), -1, dtype=np.int64)
    proposals = {}
    for index, name in enumerate(names):
        rows = np.flatnonzero((due == index).any(axis=1))
        proposals[index] = np.full((len(examples), count), -1, dtype=np.int64)
        if len(rows):
            part = examples.take(rows)
            found = strategies[name](part, count, stream(part.keys, seed, name))
            check_proposals(part, found, count, name)
            proposals[index][rows] = found
    for place in range(count):
        for index in proposals:
            rows = np.flatnonzero(due[:, place] == index)
            items[rows, place] = _first_new(proposals[index][rows], items[rows])
    fallback = items < 0
    rows = np.flatnonzero(fallback.any(axis=1))
    if len(rows):
        part = examples.take(rows)
        spare = uniform(examples.n_items)(part, count, stream(part.keys, seed, "fallback"))
        for place in range(count):
            at = fallback[rows, place]
            items[rows[at], place] = _first_new(spare[at], items[rows[at]])
    if (items < 0).any():
        raise StageError(
            f"an example has fewer than pairs.negatives={count} items outside its history and target: lower it"
        )
    names = names if FALLBACK in names else (*names, FALLBACK)
    return Rejected(items, names, np.where(fallback, names.index(FALLBACK), due), fallback)


def check_proposals(examples: Examples, found: np.ndarray, count: int, name: str) -> None:
    """What a strategy promises, looked at before anything is made of it.

    Raises:
        StageError: naming the strategy, and the first example that it did wrong by.
    """
    if not isinstance(found, np.ndarray) or found.shape != (len(examples), count) or found.dtype.kind not in "iu":
        shape = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else type(found).__name__
        raise StageError(f"strategy {name} gives {shape}, not integers [{len(examples)}, {count}]: mend it")
    ordered = np.sort(found, axis=1)
    faults = {
        "an item that is not in the catalogue": ((found < -1) | (found >= examples.n_items)).any(axis=1),
        "an item twice": ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1),
    }
    faults["the target, or what was chosen before it"] = examples.excluded.holds(found).any(axis=1)
    for what, wrong in faults.items():
        if wrong.any():
            raise StageError(f"strategy {name} gives example {examples.ids[np.argmax(wrong)]} {what}: mend it")


def _first_new(proposals: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The first of each row's proposals [n, K] that is an item and not among `used` [n, K]; int64 [n], -1 for none."""
    new = (proposals >= 0) & ~(proposals[:, :, None] == used[:, None, :]).any(axis=2)
    first = new.argmax(axis=1)
    rows = np.arange(len(proposals))
    return np.where(new[rows, first], proposals[rows, first], -1)
