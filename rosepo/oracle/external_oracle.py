"""Oracles that are not trained here: a scorer of the user's own, named in `oracle.scorer` by its import path.

`module:callable` is called with the `Catalogue` in every process that scores, and returns the scorer:

    def by_popularity(catalogue):
        def scorer(users, histories, items):
            ...  # float [B, C]: a score for each of items[row] after histories[row], higher is better
            return np.log1p(catalogue.train_count[items])
        return scorer

`users` are B user ids, `histories` B int arrays of item indexes, oldest first, `items` int64 [B, C] item indexes; an
index is an item's place in the catalogue (`catalogue.item_ids[index]`, `catalogue.titles[index]`). Scores must not
depend on the batch that they are asked for in. docs/method.md has a scorer that reads a table of scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rosepo.config import OracleConfig
from rosepo.data.catalogue import Catalogue, made_for
from rosepo.oracle.protocol import Users
from rosepo.utils.errors import UserError
from rosepo.utils.imports import find_callable

OwnScorer = Callable[[Users, Sequence[np.ndarray], np.ndarray], np.ndarray]
BLOCK_SCORES = 1 << 20
"""Scores that a scorer is asked for at once when it ranks the whole catalogue."""


class ImportedScorer:
    """A scorer of the user's own as a `Scorer`.

    Args:
        path: `oracle.scorer`, for messages.
        scorer: what its maker returned.
        n_items: of the catalogue.
        tau: as in `Scorer`.
    """

    def __init__(self, path: str, scorer: OwnScorer, n_items: int, tau: float = 1.0) -> None:
        self.path, self.scorer, self.n_items, self.tau = path, scorer, n_items, tau

    @classmethod
    def make(cls, path: str, catalogue: Catalogue, tau: float = 1.0) -> ImportedScorer:
        """Import `module:callable` and call it with the catalogue.

        Raises:
            UserError: see `made_for`.
        """
        scorer = made_for(
            catalogue, path, "oracle.scorer", "scorer: return a callable (users, histories, items) -> scores"
        )
        return cls(path, scorer, len(catalogue), tau)

    def score(self, users: Users, histories: Sequence[np.ndarray], items: np.ndarray) -> np.ndarray:
        """See `Scorer.score`.

        Raises:
            UserError: the scorer raises, or its answer has another shape or is not finite in float32.
        """
        try:
            answer = np.asarray(self.scorer(users, histories, items))
        except Exception as error:
            raise UserError(f"oracle.scorer={self.path} cannot score: {type(error).__name__}: {error}") from error
        if answer.shape != items.shape or answer.dtype.kind not in "fiu":
            raise UserError(
                f"oracle.scorer={self.path} answers items {list(items.shape)} with {answer.dtype} "
                f"{list(answer.shape)}: return one number an item"
            )
        with np.errstate(over="ignore"):
            scores = answer.astype(np.float32)
        if not np.isfinite(scores).all():
            row = int(np.argmin(np.isfinite(scores).all(axis=1)))
            raise UserError(
                f"oracle.scorer={self.path} gives an item of user {users[row]!s} a score that is not finite: mend it"
            )
        return scores

    def score_all(self, users: Users, histories: Sequence[np.ndarray]) -> np.ndarray:
        """See `Scorer.score_all`; the scorer is asked in bounded blocks. Raises as `score`."""
        scores = np.empty((len(histories), self.n_items), dtype=np.float32)
        step = max(1, BLOCK_SCORES // max(1, len(histories)))
        for low in range(0, self.n_items, step):
            block = np.arange(low, min(low + step, self.n_items))
            scores[:, block] = self.score(users, histories, np.tile(block, (len(histories), 1)))
        return scores


def check_external(oracle: OracleConfig) -> None:
    """What can be known of an oracle that is not trained here without asking it for a score.

    Raises:
        UserError: a scorer that cannot be imported.
    """
    if oracle.scorer is not None:
        find_callable(oracle.scorer, "oracle.scorer")
