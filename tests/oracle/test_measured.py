"""What an oracle's workers say of validation, each of a share, is what one says of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from rosepo.config import OracleConfig
from rosepo.data.item_columns import ItemLists
from rosepo.oracle import calibration, sasrec_data
from rosepo.oracle.crossfit import FOLDS_FILE, CrossFitted, fold_of, oracle_models
from rosepo.oracle.log import Validation
from rosepo.oracle.measured import Measured, read_measured, write_measured
from rosepo.oracle.sasrec import SASRec, SASRecConfig
from rosepo.utils.errors import StageError
from rosepo.utils.files import write_json
from tests.helpers import tiny_catalogue

N, ITEMS, SEED = 41, 12, 3
IDS = tiny_catalogue(ITEMS).item_ids


def lists_of(arrays: list[np.ndarray]) -> ItemLists:
    return ItemLists.joined([(array, np.array([0, len(array)])) for array in arrays])


def validation_of(folds: int) -> Validation:
    """Examples of histories of none to five items, which are what was seen last."""
    rng = np.random.default_rng(0)
    orders = [rng.permutation(ITEMS) for _ in range(N)]
    lengths = rng.integers(0, 8, size=N)
    seen = [order[:length].astype(np.int32) for order, length in zip(orders, lengths)]
    targets = np.array([order[length] for order, length in zip(orders, lengths)])
    users = pa.chunked_array([[f"user {n}" for n in range(N)]])
    return Validation(users, lists_of([items[-5:] for items in seen]), lists_of(seen), targets,
                      fold_of(users.to_pylist(), folds, SEED))  # fmt: skip


def oracle_of(folder: Path, config: OracleConfig) -> None:
    folder.mkdir()
    write_json(folder / FOLDS_FILE, {"folds": config.folds, "seed": SEED})
    for number, model in enumerate(oracle_models(config, folder)):
        torch.manual_seed(number)
        model.folder.mkdir(exist_ok=True)
        SASRec(SASRecConfig(ITEMS, max_length=5, hidden_size=8)).save(model.folder, IDS)


def measured(folder: Path, config: OracleConfig, out: Path, world: int) -> Measured:
    for rank in range(world):
        write_measured(config, folder, IDS, validation_of(config.folds), SEED, out, rank, world, "cpu")
    return read_measured(out, N)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_ROWS", 4)
    monkeypatch.setattr(sasrec_data, "RANKING_BATCH", 4)


@pytest.mark.parametrize(("folds", "models"), [(1, 1), (3, 1), (1, 2), (3, 2)])
def test_any_number_of_workers_finds_the_same(folds: int, models: int, tmp_path: Path) -> None:
    config = OracleConfig(folds=folds, models=models)
    oracle_of(tmp_path / "oracle", config)
    one, *more = (measured(tmp_path / "oracle", config, tmp_path / str(world), world) for world in (1, 2, 3, 20))
    for other in more:
        for name in ("held_out", "everyone", "scores"):
            np.testing.assert_array_equal(getattr(other, name), getattr(one, name))


def test_each_example_is_ranked_by_the_model_without_its_user_among_what_was_not_seen(tmp_path: Path) -> None:
    config, validation = OracleConfig(folds=3, models=2), validation_of(3)
    oracle_of(tmp_path / "oracle", config)
    found = measured(tmp_path / "oracle", config, tmp_path / "out", 2)
    scorer, every = CrossFitted.load(tmp_path / "oracle", IDS), np.arange(N)
    scores = scorer.score_all(validation.users.to_pylist(), validation.histories.rows(every))
    for row, (own, seen) in enumerate(zip(scores, validation.seen.rows(every))):
        left = np.setdiff1d(np.arange(ITEMS), seen)
        order = left[np.argsort(-own[left], kind="stable")].tolist()
        assert found.held_out[row] == order.index(validation.targets[row])
    assert (found.everyone != found.held_out).any()
    np.testing.assert_allclose(found.scores[:, 0], scores[every, validation.targets], atol=1e-5)


def test_what_a_worker_did_not_measure_is_told(tmp_path: Path) -> None:
    config = OracleConfig(folds=1)
    oracle_of(tmp_path / "oracle", config)
    measured(tmp_path / "oracle", config, tmp_path / "out", 2)
    (tmp_path / "out" / "held_out-1.parquet").unlink()
    with pytest.raises(StageError, match=r"^oracle: \d+ of 41 validation examples were measured: run the stage again"):
        read_measured(tmp_path / "out", N)
