"""Trained oracles behind numpy arrays: what samplers and the evaluation ask for.

An oracle that is scored on its own training targets is sure of them, drives every epsilon to 0 and the method to plain
DPO. So users are dealt into folds, and each is scored by a model that was trained without that user.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rosepo.config import OracleConfig
from rosepo.oracle.protocol import Users
from rosepo.oracle.sasrec import Ensemble, SASRec, pad_histories
from rosepo.utils.errors import UserError

FOLDS_FILE = "folds.json"


class Oracle:
    """One trained SASRec, or several as one.

    Attributes:
        tau: temperature that makes `sigmoid((score_a - score_b) / tau)` a calibrated preference.
    """

    def __init__(self, model: SASRec | Ensemble, tau: float, device: str | torch.device = "cpu") -> None:
        self.model: SASRec | Ensemble = model.to(device).eval()
        self.tau = tau
        self.device = torch.device(device)

    @classmethod
    def load(cls, folder: str | Path, item_ids: np.ndarray | None = None, device: str | torch.device = "cpu") -> Oracle:
        """Read a folder that `SASRec.save` wrote, and the ensemble's other members in it; see `SASRec.load` for
        `item_ids` and what raises."""
        model, tau = SASRec.load(Path(folder), item_ids)
        others = [member_folder(Path(folder), number) for number in range(1, n_members(Path(folder)))]
        members = [model, *(SASRec.load(other, item_ids)[0] for other in others)]
        return cls(Ensemble(members) if others else model, tau, device)

    @torch.inference_mode()
    def score_all(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Raw scores float32 [B, n_items] of every item after each history of item indexes."""
        padded = pad_histories(histories, self.model.config.max_length).to(self.device)
        scores: np.ndarray = self.model.scores(padded).float().cpu().numpy()
        return scores

    @torch.inference_mode()
    def score_items(self, histories: Sequence[np.ndarray], items: np.ndarray) -> np.ndarray:
        """Raw scores float32 [B, C] (not divided by `tau`) of items int64 [B, C] after each history of item indexes."""
        padded = pad_histories(histories, self.model.config.max_length).to(self.device)
        chosen = torch.from_numpy(np.asarray(items, dtype=np.int64)).to(self.device)
        scores: np.ndarray = self.model.scores_of(padded, chosen).float().cpu().numpy()
        return scores


def fold_of(users: Users, folds: int, seed: int) -> np.ndarray:
    """The fold int64 [n] of each user: a hash of its id and the seed, whatever other users there are."""
    names = np.array([str(user) for user in users], dtype=object)
    if not len(names):
        return np.zeros(0, dtype=np.int64)
    return (pd.util.hash_array(names, hash_key=f"{seed:016x}", categorize=False) % np.uint64(folds)).astype(np.int64)


def fold_folder(folder: Path, fold: int) -> Path:
    """Where the model stands that was trained without the users of a fold."""
    return folder / f"fold-{fold}"


def member_folder(folder: Path, number: int) -> Path:
    """Where a member of an ensemble stands; the first is the folder itself."""
    return folder / f"model-{number}" if number else folder


def n_members(folder: Path) -> int:
    """How many models the oracle of a folder has."""
    return 1 + len(list(folder.glob("model-*")))


@dataclass(frozen=True)
class OracleModel:
    """One SASRec of an oracle.

    Attributes:
        fold: the users that are left out; None for the model of all users.
        member: its number in the ensemble; another one starts from other weights and takes users in another order.
        folder: where it is written to.
    """

    fold: int | None
    member: int
    folder: Path

    def seed(self, seed: int) -> int:
        """The first member's is that of the run, so that it is the model which stands alone otherwise."""
        return seed + 7919 * self.member

    def __str__(self) -> str:
        users = "all users" if self.fold is None else f"without fold {self.fold}"
        return f"{users}, model {self.member + 1}" if self.member else users


def oracle_models(oracle: OracleConfig, out: Path) -> Iterator[OracleModel]:
    """The models that stand in an oracle's folder, in the order in which they are trained."""
    for fold in (None, *(range(oracle.folds) if oracle.folds > 1 else ())):
        folder = out if fold is None else fold_folder(out, fold)
        yield from (OracleModel(fold, number, member_folder(folder, number)) for number in range(oracle.models))


class CrossFitted:
    """SASRec as a `Scorer`: oracles by fold; with a single one, the in-sample variant, one model that knows all users.

    Attributes:
        tau: as in `Oracle`, the same for all folds.
    """

    def __init__(self, oracles: Sequence[Oracle], seed: int) -> None:
        self.oracles, self.seed = list(oracles), seed
        self.tau = self.oracles[0].tau

    @classmethod
    def load(cls, folder: Path, item_ids: np.ndarray | None = None, device: str | torch.device = "cpu") -> CrossFitted:
        """Read the folder that `rosepo oracle` wrote.

        Raises:
            UserError: no oracle there, a fold that is missing, or oracles of another catalogue.
        """
        try:
            about = json.loads((folder / FOLDS_FILE).read_text(encoding="utf-8"))
            folds, seed = int(about["folds"]), int(about["seed"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder} is not an oracle folder ({error}): run `rosepo oracle` first") from error
        folders = [folder] if folds == 1 else [fold_folder(folder, fold) for fold in range(folds)]
        return cls([Oracle.load(path, item_ids, device) for path in folders], seed)

    def score(self, users: Users, histories: Sequence[np.ndarray], items: np.ndarray) -> np.ndarray:
        """See `Scorer.score`; each row by the model that did not train on its user."""
        scores = np.empty(items.shape, dtype=np.float32)
        for oracle, rows, past in self._by_fold(users, histories):
            scores[rows] = oracle.score_items(past, items[rows])
        return scores

    def score_all(self, users: Users, histories: Sequence[np.ndarray]) -> np.ndarray:
        """See `Scorer.score_all`; each row by the model that did not train on its user."""
        scores = np.empty((len(histories), self.oracles[0].model.config.n_items), dtype=np.float32)
        for oracle, rows, past in self._by_fold(users, histories):
            scores[rows] = oracle.score_all(past)
        return scores

    def _by_fold(
        self, users: Users, histories: Sequence[np.ndarray]
    ) -> Iterator[tuple[Oracle, np.ndarray, list[np.ndarray]]]:
        """Each oracle that is asked, with the places of those users that it did not train on and their histories."""
        folds = fold_of(users, len(self.oracles), self.seed)
        for fold in np.unique(folds):
            rows = np.flatnonzero(folds == fold)
            yield self.oracles[fold], rows, [histories[int(row)] for row in rows]
