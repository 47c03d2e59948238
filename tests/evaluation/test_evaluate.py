from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rosepo.data.catalogue import Catalogue
from rosepo.evaluation.evaluate import evaluate
from rosepo.evaluation.measured_examples import read_batches, write_examples
from rosepo.evaluation.rankings import read_rankings
from rosepo.lm.model.model_folder import load_recommender
from rosepo.oracle.sasrec import SASRec, SASRecConfig
from rosepo.run.paths import RunPaths
from rosepo.utils.errors import UserError
from tests.evaluation.runs import drawn, tiny_config, tiny_run

KEYS = {f"{metric}@{k}" for metric in ("hr", "ndcg") for k in (1, 5, 10, 20)}


def _files(out: Path) -> dict[str, list[dict[str, object]]]:
    return {path.stem: pq.read_table(path).to_pylist() for path in sorted((out / "rankings").iterdir())}


@pytest.fixture(scope="module")
def evaluated(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunPaths, Path]:
    """A tiny run with all five models, evaluated by one actor."""
    root = tmp_path_factory.mktemp("run")
    inputs = tiny_run(root)
    catalogue = Catalogue.load(inputs.examples / "_items.parquet")
    torch.manual_seed(0)
    SASRec(SASRecConfig(len(catalogue), 10, 8)).save(inputs.oracle, catalogue.item_ids, tau=1.3)
    out = root / "evaluation"
    out.mkdir()
    evaluate(tiny_config(), inputs, out)
    return inputs, out


def test_metrics_have_the_promised_shape(evaluated: tuple[RunPaths, Path]) -> None:
    metrics = json.loads((evaluated[1] / "metrics.json").read_text())
    assert (metrics["split"], metrics["protocol"]) == ("test", "catalogue")
    assert metrics["n_examples"] == metrics["n_users"] == 24
    assert list(metrics["models"]) == ["popular", "markov", "oracle", "sft", "aligned"]
    for figures in metrics["models"].values():
        assert set(figures) >= KEYS | {"log_popularity", "head_share", "gini", "coverage", "hallucination"}
        for key in KEYS:
            assert figures[key]["low"] <= figures[key]["value"] <= figures[key]["high"]
        assert figures["log_popularity"]["truth"] == metrics["truth"]["log_popularity"]["value"]
    difference = metrics["differences"]["aligned-sft"]["hr@10"]
    values = [metrics["models"][name]["hr@10"]["value"] for name in ("aligned", "sft")]
    assert difference["value"] == pytest.approx(values[0] - values[1])


def test_metrics_follow_from_the_rankings_on_disk(evaluated: tuple[RunPaths, Path]) -> None:
    metrics = json.loads((evaluated[1] / "metrics.json").read_text())
    for name, rows in _files(evaluated[1]).items():
        hits = [row["target"] in row["items"][:10] for row in rows]  # type: ignore[index]
        assert metrics["models"][name]["hr@10"]["value"] == pytest.approx(np.mean(hits))


def test_language_models_rank_by_the_likelihood_of_whole_titles(evaluated: tuple[RunPaths, Path]) -> None:
    inputs, out = evaluated
    recommender = load_recommender(inputs.sft)
    catalogue, builder = recommender.catalogue, recommender.builder
    _, ranked = read_rankings(out / "rankings" / "sft.parquet")
    batch = next(read_batches(out / "_examples.parquet"))
    for row in range(2):
        prompt = builder.prompt(batch.histories[row])[0]
        scores = np.full(len(catalogue), -np.inf)
        for item in set(range(len(catalogue))) - set(batch.histories[row].tolist()):
            completion = builder.completion(item)
            ids = torch.from_numpy(np.concatenate([prompt, completion])[None].astype(np.int64))
            with torch.inference_mode():
                logps = recommender.model(input_ids=ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
            scores[item] = float(logps[range(len(completion)), completion.astype(int)].sum())
        found = [item for item in ranked[row].tolist() if item >= 0]
        expected = np.argsort(-scores, kind="stable")[: len(found)].tolist()
        assert found[0] == expected[0]
        assert len(set(found) & set(expected)) >= 18  # twenty beams, thirty titles: nearly exact
        assert not set(found) & set(batch.histories[row].tolist())


def test_two_actors_give_the_same_rankings_as_one(evaluated: tuple[RunPaths, Path], tmp_path: Path) -> None:
    inputs, out = evaluated
    evaluate(tiny_config("evaluate.actors=2", "evaluate.cpus_per_actor=0.5"), inputs, tmp_path)
    assert _files(tmp_path) == _files(out)
    assert (tmp_path / "metrics.json").read_text() == (out / "metrics.json").read_text()


def test_missing_models_are_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_cluster: None
) -> None:
    inputs = tiny_run(tmp_path, models=False)
    out = tmp_path / "evaluation"
    out.mkdir()
    config = tiny_config("evaluate.split=validation")
    figures = evaluate(config, inputs, out)
    assert figures["left_out"] == ["oracle", "sft", "aligned"]
    assert "left out: oracle, sft, aligned" in capsys.readouterr().err
    assert list(json.loads((out / "metrics.json").read_text())["models"]) == ["popular", "markov"]
    assert "cannot be judged" in drawn(config, inputs)


@pytest.mark.parametrize(
    ("there", "what"),
    [
        ("aligned groups-2 aligned-2 groups-3",
         "round 3 is not aligned: run `rosepo align --round 3`, or evaluate with pairs.rounds=2"),
        ("aligned", "round 2 is not aligned: run `rosepo pairs --round 2` and `rosepo align --round 2`, then the later "
         "ones, or evaluate with pairs.rounds=1"),
        ("groups", "round 1 is not aligned: run `rosepo align`, then the later ones"),
    ],
)  # fmt: skip
def test_a_round_that_is_missing_is_named_with_what_to_run(
    there: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_process: None
) -> None:
    root = tiny_run(tmp_path, models=False).root
    for name in (*there.split(), "evaluation"):
        (root / name).mkdir()
    evaluate(tiny_config("pairs.rounds=3"), RunPaths(root, 3), root / "evaluation")
    assert f"left out: oracle, sft, aligned (of 3 rounds, {what})\n" in capsys.readouterr().err


def test_the_choice_of_examples_depends_on_their_ids_alone(tmp_path: Path) -> None:
    inputs = tiny_run(tmp_path, models=False)
    assert write_examples(inputs.examples, "test", 10, 4, tmp_path / "ten.parquet") == 10
    write_examples(inputs.examples, "test", 5, 3, tmp_path / "five.parquet")
    write_examples(inputs.examples, "test", None, 7, tmp_path / "all.parquet")
    ten, five, every = (
        [one for batch in read_batches(tmp_path / f"{name}.parquet") for one in batch.example_ids]
        for name in ("ten", "five", "all")
    )
    assert set(five) < set(ten) < set(every)
    assert ten == [one for one in every if one in set(ten)]
    assert pq.ParquetFile(tmp_path / "all.parquet").num_row_groups == 4


def test_an_empty_split_and_too_many_actors_are_refused(evaluated: tuple[RunPaths, Path], tmp_path: Path) -> None:
    inputs, _ = evaluated
    with pytest.raises(UserError, match=r"evaluate\.actors=9"):
        evaluate(tiny_config("evaluate.actors=9"), inputs, tmp_path)
    with pytest.raises(UserError, match="no wrong examples"):
        write_examples(inputs.examples, "wrong", None, 4, tmp_path / "none.parquet")
