"""What the pairs stage says about its groups: counts that shards add up, and the figures made of the sums."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from rosepo.oracle.epsilon import CEILING

BINS = 20
"""Bins of the histogram of epsilon over [0, 1/2]."""


class Tally:
    """Sums over groups; two tallies add up to the tally of both."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self.strategies: dict[str, dict[str, Any]] = {}
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.longest_prompt = 0

    def count_prompts(self, lengths: np.ndarray, dropped: np.ndarray) -> None:
        """Prompt lengths in tokens and history items left out, both int [N]."""
        self.totals.update(
            prompts=len(lengths),
            prompt_tokens=int(lengths.sum()),
            dropped_items=int(dropped.sum()),
            prompts_cut=int((dropped > 0).sum()),
        )
        self.longest_prompt = max(self.longest_prompt, int(lengths.max(initial=0)))

    def count_pairs(
        self, name: str, fallback: np.ndarray, margin: np.ndarray | None = None, epsilon: np.ndarray | None = None
    ) -> None:
        """Pairs of one strategy: where another one was due; of scored ones the oracle's margin (chosen minus rejected)
        and epsilon; all [n]."""
        if not len(fallback):
            return
        counts: dict[str, Any] = {"pairs": len(fallback), "fallback": fallback.sum()}
        if margin is not None and epsilon is not None:
            counts |= {
                "epsilon": epsilon.sum(dtype=np.float64),
                "prefers": (margin > 0).sum() + 0.5 * (margin == 0).sum(),
                "ceiling": (epsilon >= CEILING - 1e-6).sum(),
                "histogram": np.histogram(epsilon, bins=BINS, range=(0.0, 0.5))[0],
            }
        self._add(name, counts)

    def _add(self, name: str, counts: Mapping[str, Any]) -> None:
        entry = self.strategies.setdefault(name, {})
        for key, value in counts.items():
            entry[key] = np.add(entry.get(key, 0), value).tolist()

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count the time that the body takes."""
        start = time.monotonic()
        yield
        self.count_seconds(part, time.monotonic() - start)

    def count_seconds(self, part: str, seconds: float) -> None:
        """Time spent on one part of the work."""
        self.seconds[part] += seconds

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `add` takes it back."""
        return {
            "totals": dict(self.totals),
            "strategies": self.strategies,
            "seconds": self.seconds,
            "longest_prompt": self.longest_prompt,
        }

    def add(self, other: Mapping[str, Any]) -> None:
        """Add what `to_dict` gave."""
        self.totals.update(other["totals"])
        for part, seconds in other["seconds"].items():
            self.count_seconds(part, seconds)
        self.longest_prompt = max(self.longest_prompt, other["longest_prompt"])
        for name, counts in other["strategies"].items():
            self._add(name, counts)

    def figures(self) -> dict[str, Any]:
        """Counts, means and shares.

        `auc` is the share of pairs in which the oracle scores the chosen title above the rejected one (ties half).
        `generated`, where the policy wrote freely, has the number of its answers and of those that are no title.
        """
        prompts = max(self.totals["prompts"], 1)
        pairs = sum(entry["pairs"] for entry in self.strategies.values())
        scored = all("epsilon" in entry for entry in self.strategies.values())
        mean = sum(entry["epsilon"] for entry in self.strategies.values()) / max(pairs, 1) if scored else None
        return {
            "groups": self.totals["groups"],
            "pairs": pairs,
            **({"epsilon_mean": mean} if scored else {}),
            "strategies": {name: _of_strategy(entry) for name, entry in sorted(self.strategies.items())},
            "fallbacks": sum(entry["fallback"] for entry in self.strategies.values()),
            "prompt_tokens": self.totals["prompt_tokens"],
            "prompt_tokens_mean": self.totals["prompt_tokens"] / prompts,
            "prompt_tokens_max": self.longest_prompt,
            "prompts_cut": self.totals["prompts_cut"],
            "dropped_history_items": self.totals["dropped_items"],
            "reference": {name: self.totals[name] for name in ("computed", "from_cache")},
            "seconds": {name: round(value, 2) for name, value in sorted(self.seconds.items())},
        }


def _of_strategy(entry: Mapping[str, Any]) -> dict[str, Any]:
    figures = {"pairs": entry["pairs"], "fallbacks": entry["fallback"]}
    if "epsilon" not in entry:
        return figures
    return figures | {
        "epsilon_mean": entry["epsilon"] / entry["pairs"],
        "epsilon_histogram": entry["histogram"],
        "auc": entry["prefers"] / entry["pairs"],
        "at_ceiling": entry["ceiling"] / entry["pairs"],
    }
