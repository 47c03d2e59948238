"""Random numbers keyed by content: what is drawn for an example depends on its id, never on its place or on a worker.

A draw is a hash of (seed of the round, example id, name of the strategy, number of the draw): splitmix64 (Steele, Lea
and Flood 2014, "Fast splittable pseudorandom number generators") over a 64-bit hash of the id, which is the same on
every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np
import pandas as pd

STEP = np.uint64(0x9E3779B97F4A7C15)
"""By which splitmix64 goes on."""
Draws = Callable[[int], np.ndarray]
"""Number of a draw to uniforms float64 [N] in [0, 1), one an example; other numbers give independent ones."""


def example_keys(example_ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """Each id's 64-bit hash (SipHash with a fixed key, as pandas computes it); uint64 [N]."""
    hashes: np.ndarray = pd.util.hash_array(np.asarray(example_ids, dtype=object), categorize=False)
    return hashes


def uniforms(keys: np.ndarray, seed: int, name: str, draw: int) -> np.ndarray:
    """Uniforms float64 [N] in [0, 1) for `keys` uint64 [N], with 53 random bits."""
    return (_splitmix64(_splitmix64(keys) ^ _salt(f"{seed}/{name}/{draw}")) >> np.uint64(11)) * 2.0**-53


def pair_keys(first: np.ndarray, second: np.ndarray, seed: int, name: str) -> np.ndarray:
    """64 random bits, uint64 [N], for pairs of keys `first` and `second` uint64 [N]."""
    return _splitmix64(_splitmix64(_splitmix64(first) ^ _salt(f"{seed}/{name}")) ^ second)


def round_seed(seed: int, round: int) -> int:
    """The seed of a round's draws: the run's own in the first round, another one in each later round."""
    if round == 1:
        return seed
    return int.from_bytes(blake2b(f"{seed}/round {round}".encode(), digest_size=8).digest(), "little")


def stream(keys: np.ndarray, seed: int, name: str) -> Draws:
    """The draws of one strategy for the examples with these keys."""
    return lambda draw: uniforms(keys, seed, name, draw)


def gumbel_noise(draws: Draws, items: np.ndarray) -> np.ndarray:
    """Standard Gumbel noise float64 [N, m] for items int64 [N, m], ≥ 0, of each example.

    An item's noise depends on the example and the item alone, whatever other items are asked about.
    """
    bases = _splitmix64((draws(0) * 2.0**53).astype(np.uint64))[:, None]
    bits = _splitmix64(bases ^ _splitmix64(items.astype(np.uint64))) >> np.uint64(12)
    return -np.log(-np.log((bits + 0.5) * 2.0**-52))  # of a number strictly between 0 and 1


def mixed(state: np.ndarray) -> np.ndarray:
    """What splitmix64 makes of its state after a step; uint64, wrapping around."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _salt(text: str) -> np.ndarray:
    """A hash of `text`; uint64 [1]."""
    return np.frombuffer(blake2b(text.encode(), digest_size=8).digest(), dtype="<u8")


def _splitmix64(state: np.ndarray) -> np.ndarray:
    """One output of splitmix64 for each state; uint64, wrapping around."""
    return mixed(state + STEP)
