from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rosepo.data.catalogue import Catalogue
from rosepo.data.item_columns import ItemLists
from rosepo.evaluation.baselines import top_k
from rosepo.evaluation.systems import oracle_name
from rosepo.metrics.ranking import hit_ratio, ndcg, target_ranks
from rosepo.oracle.crossfit import CrossFitted, Oracle, fold_of
from rosepo.oracle.fit import WARMUP_STEPS
from rosepo.oracle.log import Sequences, read_validation
from rosepo.oracle.make_oracle import train_oracle
from rosepo.oracle.sasrec import SASRec, SASRecConfig
from rosepo.oracle.sasrec_data import IGNORED, NextItemLoss, batch_tensors, epoch_batches, ranks_of
from rosepo.utils.errors import UserError
from tests.evaluation.runs import tiny_config, tiny_run


def _sequences(lists: list[list[int]], n_targets: list[int]) -> Sequences:
    joined = lists_of([np.array(items) for items in lists])
    return Sequences(joined.items, joined.offsets, np.array(n_targets))


def lists_of(arrays: list[np.ndarray]) -> ItemLists:
    return ItemLists.joined([(array, np.array([0, len(array)])) for array in arrays])


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_takes_every_row_once(lengths: list[int], batch_size: int, epoch: int) -> None:
    batches = epoch_batches(np.array(lengths), batch_size, seed=1, epoch=epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert max(len(batch) for batch in batches) <= batch_size


def test_only_the_last_items_of_a_row_are_targets() -> None:
    history, targets = batch_tensors(_sequences([[4, 5, 6], [7, 8], [1]], [1, 1, 0]), np.array([0, 1, 2]), 10)
    assert history.tolist() == [[5, 6], [8, 9], [2, 0]]
    assert targets.tolist() == [[IGNORED, 6], [8, IGNORED], [IGNORED, IGNORED]]


def test_the_loss_is_that_of_one_row_a_target() -> None:
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(n_items=9, max_length=6, hidden_size=8)).eval()
    sequences = _sequences([[4, 5, 6, 1], [7, 8]], [2, 1])
    loss = NextItemLoss(model)(*batch_tensors(sequences, np.array([0, 1]), 6))
    scores = Oracle(model, 1.0).score_all([np.array([4, 5]), np.array([4, 5, 6]), np.array([7])])
    slow = -torch.log_softmax(torch.from_numpy(scores), 1)[range(3), [6, 1, 8]].sum()
    assert torch.allclose(loss, slow, atol=1e-4)


def test_validation_ranks_are_those_of_the_evaluation() -> None:
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(n_items=15, max_length=6, hidden_size=8)).eval()
    rng = np.random.default_rng(0)
    histories = [rng.choice(15, size=rng.integers(1, 6), replace=False) for _ in range(20)]
    targets = np.array([next(item for item in range(15) if item not in history) for history in histories])
    items, _ = top_k(Oracle(model, 1.0).score_all(histories), histories, 15)
    assert ranks_of(model, lists_of(histories), targets).tolist() == target_ranks(items, targets).tolist()


ADVICE = "in sample is sure of what it was trained on: set oracle.folds=2"


def test_two_workers_train_and_leave_an_oracle_with_its_best_weights(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = tiny_run(tmp_path, models=False)
    config = tiny_config("oracle.workers=2", "oracle.max_epochs=4", "oracle.batch_size=8", "align.loss=cdpo")
    out = tmp_path / "made"
    out.mkdir()
    figures = train_oracle(config, inputs, out)
    assert ADVICE in capsys.readouterr().err
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    best = max(lines, key=lambda line: line["ndcg@10"])
    assert figures["ndcg@10"] == pytest.approx(best["ndcg@10"])
    assert figures["validation_examples"] == 24
    assert figures["tau"] > 0
    assert list((out / "tensorboard").iterdir())
    assert not (out / "_train").exists()
    assert Oracle.load(out).tau == pytest.approx(figures["tau"])
    assert CrossFitted.load(out).tau == pytest.approx(figures["tau"])


def test_no_fold_model_learns_from_the_users_that_it_scores(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = tiny_run(tmp_path, models=False)
    config = tiny_config(
        "oracle.folds=3", "oracle.max_epochs=3", "oracle.batch_size=8", "oracle.dropout=0", "align.loss=cdpo"
    )
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    train_oracle(config, inputs, tmp_path / "one")
    # Shuffle the training items of the users of fold 1 alone: the model without them must stay the same.
    files = sorted((inputs.examples / "_trajectories").glob("*.parquet"))
    for path in files:
        rows = pq.read_table(path).to_pylist()
        folds = fold_of([row["user_id"] for row in rows], 3, config.seed)
        assert set(folds.tolist()) == {0, 1, 2}
        for row, fold in zip(rows, folds.tolist()):
            row["items"] = row["items"][::-1] if fold == 1 else row["items"]
        pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(path)), path)
    train_oracle(config, inputs, tmp_path / "two")
    assert ADVICE not in capsys.readouterr().err
    one, two = (CrossFitted.load(tmp_path / name).oracles for name in ("one", "two"))
    same = [torch.equal(a.model.items.weight, b.model.items.weight) for a, b in zip(one, two)]
    assert same == [False, True, False]


def test_an_ensemble_scores_with_the_mean_of_models_from_other_starts(ray_cluster: None, tmp_path: Path) -> None:
    inputs = tiny_run(tmp_path, models=False)
    figures = {}
    for models in (1, 3):
        (tmp_path / str(models)).mkdir()
        config = tiny_config(f"oracle.models={models}", "oracle.folds=2", "oracle.max_epochs=3", "oracle.batch_size=8")
        figures[models] = train_oracle(config, inputs, tmp_path / str(models))
    assert [oracle_name(tmp_path / name) for name in ("1", "3")] == ["SASRec", "mean of 3 SASRecs"]
    catalogue = Catalogue.load(inputs.examples / "_items.parquet")
    validation = read_validation(inputs.examples)
    every = np.arange(len(validation))
    histories, seen, targets = validation.histories.rows(every), validation.seen.rows(every), validation.targets
    for name in ("", "fold-0", "fold-1"):
        folder = tmp_path / "3" / name
        first, *more = (Oracle.load(folder / f"model-{n}" if n else tmp_path / "1" / name) for n in range(3))
        scores = [oracle.score_all(histories) for oracle in (first, *more)]
        assert not np.allclose(scores[1], scores[0], atol=0.1)
        assert not np.allclose(scores[1], scores[2], atol=0.1)
        ensemble = Oracle.load(folder, catalogue.item_ids)
        np.testing.assert_allclose(ensemble.score_all(histories), np.mean(scores, axis=0), atol=1e-5)
        items = np.tile(np.arange(4), (len(histories), 1))
        np.testing.assert_allclose(ensemble.score_items(histories, items), np.mean(scores, axis=0)[:, :4], atol=1e-5)
        assert {oracle.tau for oracle in more} == {figures[3]["tau"]} == {ensemble.tau}
        if not name:
            ranked, _ = top_k(np.mean(scores, axis=0), seen, 10)
            places = target_ranks(ranked, targets)
            assert figures[3]["hr@10"] == pytest.approx(hit_ratio(places, 10).mean())
            assert figures[3]["ndcg@10"] == pytest.approx(ndcg(places, 10).mean())


def test_patience_waits_for_the_end_of_the_warm_up(ray_cluster: None, tmp_path: Path) -> None:
    inputs = tiny_run(tmp_path, models=False)
    out = tmp_path / "made"
    out.mkdir()
    config = tiny_config(
        "oracle.max_epochs=150", "oracle.patience=1", "oracle.batch_size=8", "oracle.learning_rate=1e-9"
    )
    figures = train_oracle(config, inputs, out)
    steps = figures["epochs"] * math.ceil(figures["sequences"] / 8)
    assert WARMUP_STEPS < steps < WARMUP_STEPS + 20


def test_folds_depend_on_the_user_and_the_seed_alone() -> None:
    users = [f"u{number}" for number in range(400)]
    folds = fold_of(users, 4, 7)
    assert fold_of(users[::-1], 4, 7).tolist() == folds.tolist()[::-1]
    assert fold_of([1, 20], 4, 7).tolist() == fold_of(["1", "20"], 4, 7).tolist()
    assert fold_of(users, 4, 8).tolist() != folds.tolist()
    assert np.bincount(folds).min() > 60


def test_each_user_is_scored_by_the_model_of_its_fold() -> None:
    oracles = []
    for seed in range(3):
        torch.manual_seed(seed)
        oracles.append(Oracle(SASRec(SASRecConfig(n_items=9, max_length=6, hidden_size=8)), 1.0))
    users, histories = list(range(30)), [np.array([number % 9]) for number in range(30)]
    items = np.tile(np.arange(4), (30, 1))
    found = CrossFitted(oracles, seed=1).score(users, histories, items)
    # Asked about the whole catalogue it is the same.
    whole = CrossFitted(oracles, seed=1).score_all(users, histories)
    assert whole.shape == (30, 9)
    np.testing.assert_allclose(whole[:, :4], found, atol=1e-5)
    for user, fold in zip(users, fold_of(users, 3, 1).tolist()):
        expected = oracles[fold].score_items([histories[user]], items[user : user + 1])
        np.testing.assert_allclose(found[user], expected[0], atol=1e-5)


def test_more_workers_than_cpus_are_refused(ray_cluster: None, tmp_path: Path) -> None:
    inputs = tiny_run(tmp_path, models=False)
    with pytest.raises(UserError, match=r"oracle\.workers=9"):
        train_oracle(tiny_config("oracle.workers=9"), inputs, tmp_path)


def test_items_seen_outside_the_history_do_not_compete() -> None:
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(n_items=15, max_length=3, hidden_size=8)).eval()
    seen = [np.array([9, 8, 7, 6, 5, 4]), np.array([0, 1])]
    histories, targets = [past[-3:] for past in seen], np.array([3, 2])
    items, _ = top_k(Oracle(model, 1.0).score_all(histories), seen, 15)
    assert (
        ranks_of(model, lists_of(histories), targets, lists_of(seen)).tolist() == target_ranks(items, targets).tolist()
    )


def test_scores_that_are_no_numbers_rank_last() -> None:
    model = SASRec(SASRecConfig(n_items=9, max_length=6, hidden_size=8)).eval()
    torch.nn.init.constant_(model.items.weight, math.nan)
    assert ranks_of(model, lists_of([np.array([1, 2])]), np.array([3])).tolist() == [9]
