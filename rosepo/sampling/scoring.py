"""What a group holds beside its titles: tokens, oracle scores, epsilon, and the reference's log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rosepo.data.prompts import PromptBuilder
from rosepo.oracle.epsilon import epsilon
from rosepo.sampling.reference_cache import ReferenceCache
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.sampling.strategies.protocol import Scores
from rosepo.sampling.tally import Tally
from rosepo.utils.errors import StageError

Reference = Callable[[Sequence[np.ndarray], Sequence[Sequence[np.ndarray]]], list[np.ndarray]]


@dataclass(frozen=True)
class Scored:
    """N groups of 1 + K titles, the chosen one first.

    Attributes:
        completions: token ids of every title, each ending in EOS.
        oracle_scores: float32 [N, 1 + K], calibrated.
        epsilon: float32 [N, K] in [0, 1/2).
        ref_logps: float32 [N, 1 + K].
    """

    completions: list[list[np.ndarray]]
    oracle_scores: np.ndarray
    epsilon: np.ndarray
    ref_logps: np.ndarray


@dataclass(frozen=True)
class GroupScorer:
    """Scores groups.

    Attributes:
        builder: the policy's prompts.
        scores: the oracle.
        reference: of N prompts and their completions the reference's log-probabilities, as `reference_logps`.
        cache: of its log-probabilities; None keeps none.
    """

    builder: PromptBuilder
    scores: Scores
    reference: Reference
    cache: ReferenceCache | None

    def __call__(self, examples: Examples, items: np.ndarray, tally: Tally) -> Scored:
        """Groups of `items` int64 [N, 1 + K]; `examples` with their prompts. Time and origin are told to `tally`.

        Raises:
            StageError: scores or log-probabilities that are not finite.
        """
        if examples.prompts is None:
            raise ValueError("groups are scored with their prompts")
        with tally.timed("oracle"):
            scores = self.scores(examples, items)
        with tally.timed("reference"):
            completions = [[self.builder.completion(item) for item in row] for row in items]
            logps, cached = self._reference(examples, completions)
        tally.totals["from_cache" if cached else "computed"] += len(items)
        for values, what in ((scores, "the oracle gives scores"), (logps, "the reference gives log-probabilities")):
            if not np.isfinite(values).all():
                raise StageError(f"{what} that are not finite: train it again")
        return Scored(completions, scores, epsilon(scores), logps)

    def _reference(self, examples: Examples, completions: list[list[np.ndarray]]) -> tuple[np.ndarray, bool]:
        assert examples.prompts is not None
        prompts, content = list(examples.prompts), ""
        if self.cache is not None:
            content = self.cache.key(examples.ids, prompts, completions)
            kept = self.cache.read(content, examples.ids)
            if kept is not None:
                return kept, True
        logps = np.stack(self.reference(prompts, completions))
        if self.cache is not None and np.isfinite(logps).all():
            self.cache.write(content, examples.ids, logps)
        return logps, False
