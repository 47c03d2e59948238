"""Preference oracles: whatever can say, of two titles after a history, which one the user would rather choose.

Three kinds stand behind one protocol: SASRec, cross-fitted by user; a scorer of your own; a table of scores that were
computed elsewhere. `load_scorer` reads the folder of the `oracle` stage and returns the right one.

A scorer of your own is named in `oracle.scorer` by the import path of its maker, `module:callable`, which is called
with the `Catalogue` in every process that scores, and returns the scorer:

    def by_popularity(catalogue):
        def scorer(users, histories, items):
            ...  # float [B, C]: a score for each of items[row] after histories[row], higher is better
            return np.log1p(catalogue.train_count[items])
        return scorer

`users` are B user ids, `histories` B int arrays of item indexes, oldest first, `items` int64 [B, C] item indexes; an
index is an item's place in the catalogue (`catalogue.item_ids[index]`, `catalogue.titles[index]`). Scores must not
depend on the batch that they are asked for in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rosepo.oracle.protocol import OwnScorer, Scorer, Users
from rosepo.utils.errors import UserError
from rosepo.utils.files import write_json
from rosepo.utils.imports import find_callable

if TYPE_CHECKING:
    import torch

    from rosepo.config import OracleConfig
    from rosepo.data.catalogue import Catalogue

ABOUT_FILE = "oracle.json"
"""Says which kind of oracle a folder holds; a folder without one is SASRec's."""
BLOCK_SCORES = 1 << 20
"""Scores that a scorer is asked for at once when it ranks the whole catalogue."""


class ImportedScorer:
    """A scorer of the user's own.

    Args:
        path: `oracle.scorer`, for messages.
        scorer: what its maker returned.
        tau: as in `Scorer`.
    """

    def __init__(self, path: str, scorer: OwnScorer, tau: float = 1.0) -> None:
        self.path, self.scorer, self.tau = path, scorer, tau

    @classmethod
    def make(cls, path: str, catalogue: Catalogue, tau: float = 1.0) -> ImportedScorer:
        """Import `module:callable` and call it with the catalogue.

        Raises:
            UserError: no such module or callable, or it does not return a scorer.
        """
        maker = find_callable(path, "oracle.scorer")
        try:
            made = maker(catalogue)
        except Exception as error:
            raise UserError(
                f"oracle.scorer={path} cannot be called with a catalogue: {type(error).__name__}: {error}"
            ) from error
        if not callable(made):
            raise UserError(
                f"oracle.scorer={path} returns {type(made).__name__} and not a scorer: return a callable "
                "(users, histories, items) -> scores"
            )
        return cls(path, made, tau)

    def score(
        self, example_ids: Sequence[str], users: Users, histories: Sequence[np.ndarray], items: np.ndarray
    ) -> np.ndarray:
        """See `Scorer.score`. Raises UserError where the answer has another shape, or is not finite in float32."""
        answer = np.asarray(self.scorer(users, histories, items))
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
                f"oracle.scorer={self.path} gives example_id {example_ids[row]!r} a score that is not finite: mend it"
            )
        return scores


class WholeCatalogue:
    """An own scorer that is asked about every item after each history, in bounded blocks."""

    def __init__(self, scorer: ImportedScorer, n_items: int) -> None:
        self.scorer, self.n_items = scorer, n_items

    def score_all(self, example_ids: Sequence[str], users: Users, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Raw scores float32 [B, n_items]."""
        scores = np.empty((len(histories), self.n_items), dtype=np.float32)
        step = max(1, BLOCK_SCORES // max(1, len(histories)))
        for low in range(0, self.n_items, step):
            block = np.arange(low, min(low + step, self.n_items))
            items = np.tile(block, (len(histories), 1))
            scores[:, block] = self.scorer.score(example_ids, users, histories, items)
        return scores


def whole_catalogue(scorer: Scorer, n_items: int) -> Callable[[Sequence[str], Users, Sequence[np.ndarray]], np.ndarray]:
    """What gives a scorer's raw scores float32 [B, n_items] of every item, from example ids, users and histories.

    Raises:
        UserError: a table of scores, which cannot.
    """
    if isinstance(scorer, ImportedScorer):
        return WholeCatalogue(scorer, n_items).score_all
    from rosepo.oracle.crossfit import CrossFitted

    if not isinstance(scorer, CrossFitted):
        raise UserError("a table of scores (oracle.kind=table) cannot rank the catalogue: use oracle.kind=scorer")
    return scorer.score_all


def check_external(oracle: OracleConfig) -> None:
    """What can be known of an oracle that is not trained here without asking it for a score.

    Raises:
        UserError: a scorer that cannot be imported, or files of scores that are missing or have other columns.
    """
    if oracle.scorer is not None:
        find_callable(oracle.scorer, "oracle.scorer")
    if oracle.scores is not None:
        from rosepo.oracle.score_files import score_files

        score_files(oracle.scores)


def write_kind(folder: Path, kind: str, **about: Any) -> None:
    """Say in `oracle.json` which kind of oracle the folder holds, and what `load_scorer` must know of it."""
    write_json(folder / ABOUT_FILE, {"kind": kind, **about})


def read_kind(folder: Path) -> dict[str, Any]:
    """What `write_kind` wrote; kind `sasrec` where there is none.

    Raises:
        UserError: a file that cannot be read, or names no kind.
    """
    try:
        about = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"kind": "sasrec"}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / ABOUT_FILE} cannot be read ({error}): run `rosepo oracle --overwrite`") from error
    if not isinstance(about, dict) or about.get("kind") not in ("sasrec", "scorer", "table"):
        raise UserError(f"{folder / ABOUT_FILE} names no kind of oracle: run `rosepo oracle --overwrite`")
    return about


def load_scorer(folder: Path, catalogue: Catalogue, device: str | torch.device = "cpu") -> Scorer:
    """The oracle that `rosepo oracle` left in a folder.

    Args:
        catalogue: the items that shall be scored.
        device: of SASRec; the other kinds see to that themselves.

    Raises:
        UserError: no oracle there, one of another catalogue, or a scorer that cannot be made.
    """
    about = read_kind(folder)
    if about["kind"] == "sasrec":
        from rosepo.oracle.crossfit import CrossFitted

        return CrossFitted.load(folder, catalogue.item_ids, device)
    from rosepo.oracle.sasrec import catalogue_digest

    if about.get("catalogue_digest") != catalogue_digest(catalogue.item_ids):
        raise UserError(f"the oracle in {folder} was made for another catalogue: run `rosepo oracle` again")
    if about["kind"] == "scorer":
        return ImportedScorer.make(about["scorer"], catalogue, about["tau"])
    from rosepo.oracle.score_table import ScoreTable

    return ScoreTable.load(folder, catalogue.item_ids, about["tau"])
