"""Beams of a search, and titles of groups, under a model that vLLM serves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rosepo.lm.serving.served_model import ServedModel


class ServedRows:
    """Beams over a server's prefix cache, with the face of `SharedPrompts`.

    Args:
        model: that is served.
        prompts: one int array of token ids an example, none empty.
    """

    def __init__(self, model: ServedModel, prompts: Sequence[np.ndarray]) -> None:
        self._model = model
        self._beams = [np.asarray(prompt) for prompt in prompts]

    def logps(self, beam: np.ndarray, token: np.ndarray) -> np.ndarray:
        """log π(token | beam's tokens) over the full vocabulary, float32 [e]. `beam` (ascending), `token`: int [e]."""
        asked, starts = np.unique(beam, return_index=True)
        found = self._model.next_logps([self._beams[one] for one in asked], np.split(token, starts[1:]))
        return np.concatenate([np.zeros(0, np.float32), *found])

    def advance(self, row: np.ndarray, parent: np.ndarray, token: np.ndarray) -> None:
        """Append one token to each surviving beam.

        Args:
            row: int64 [m], the example of each new beam, which its tokens tell as well.
            parent: int64 [m]: the present beam that it continues.
            token: int [m].
        """
        self._beams = [np.append(self._beams[old], new) for old, new in zip(parent, token, strict=True)]


def served_logps(
    model: ServedModel, prompts: Sequence[np.ndarray], completions: Sequence[Sequence[np.ndarray]]
) -> list[np.ndarray]:
    """`reference_logps` of a model that is served: N arrays float32 [number of completions]."""
    titles = [(prompt, title) for prompt, group in zip(prompts, completions, strict=True) for title in group]
    before = [np.concatenate([prompt, title[:place]]) for prompt, title in titles for place in range(len(title))]
    tokens = [title[place : place + 1] for _, title in titles for place in range(len(title))]
    found = np.concatenate(model.next_logps(before, tokens))
    starts = np.cumsum([0, *(len(title) for _, title in titles)])[:-1]
    sums = np.add.reduceat(found.astype(np.float64), starts).astype(np.float32)
    return np.split(sums, np.cumsum([len(group) for group in completions])[:-1])
