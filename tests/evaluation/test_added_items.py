"""Evaluations of a catalogue with items that came after training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rosepo.config import load_config, replaced
from rosepo.data.catalogue import Catalogue, ranked_items
from rosepo.evaluation.evaluate import evaluate
from rosepo.evaluation.measured_examples import read_batches
from rosepo.evaluation.rankings import read_rankings
from rosepo.lm.cards.record import model_record
from rosepo.lm.model.model_folder import load_recommender, save_policy
from rosepo.lm.titles.beam_search import Decoder
from rosepo.oracle.sasrec import SASRec, SASRecConfig
from rosepo.pipeline.fingerprints import stage_settings
from rosepo.pipeline.planning import plan_run
from rosepo.pipeline.runner import run_stages
from rosepo.report.compare import compare
from rosepo.run.paths import RunPaths
from rosepo.run.stages import STAGES
from rosepo.utils.errors import UserError
from tests.evaluation.runs import drawn, finished, tiny_config, tiny_run
from tests.helpers import tiny_catalogue, tiny_model, tiny_tokenizer

NAMES = ["b", "c", "d", "f", "g", "h"]
MODELS = ("sft", "aligned")


def new_items(folder: Path, *more: tuple[int, str]) -> Path:
    """Six items of short titles, and one that the run has."""
    rows = [*((900 + place, name) for place, name in enumerate(NAMES)), (104, "Known"), *more]
    ids, titles = zip(*rows, strict=True)
    pq.write_table(pa.table({"item_id": list(ids), "title": list(titles)}), folder / "new.parquet")
    return folder / "new.parquet"


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """A tiny run with an oracle and two models."""
    found = tiny_run(tmp_path / "run")
    torch.manual_seed(0)
    SASRec(SASRecConfig(30, 10, 8)).save(found.oracle, tiny_catalogue(30).item_ids)
    found.evaluation.mkdir()
    return found


def ranked(paths: RunPaths, name: str) -> np.ndarray:
    return read_rankings(paths.evaluation / "rankings" / f"{name}.parquet")[1]


def metrics_of(paths: RunPaths) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((paths.evaluation / "metrics.json").read_text())
    return found


def test_models_rank_new_titles_as_they_score_and_baselines_rank_them_last(
    paths: RunPaths, tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(f"evaluate.add_items={new_items(tmp_path)}")
    figures = evaluate(config, paths, paths.evaluation)
    assert "new.parquet: 6; in the catalogue already: 1" in capsys.readouterr().err
    catalogue = Catalogue.load(ranked_items(paths.examples, paths.evaluation))
    assert (len(catalogue), catalogue.added, catalogue.titles[30:]) == (36, 6, NAMES)
    for name in ("popular", "markov", "oracle"):
        items = ranked(paths, name)
        assert not (items[:, :10] >= 30).any()
        assert name != "oracle" or not (items >= 30).any()
    batches = list(read_batches(paths.evaluation / "_examples.parquet"))
    for name in MODELS:
        recommender = load_recommender(paths.root / name, catalogue=catalogue)
        decoder, start = Decoder(recommender.model, recommender.builder, 20), 0
        for batch in batches:
            prompts = [recommender.builder.prompt(history)[0] for history in batch.histories]
            expected = decoder.top_k(prompts, batch.seen, 20)[0]
            np.testing.assert_array_equal(ranked(paths, name)[start : start + len(prompts)], expected)
            start += len(prompts)
        assert (ranked(paths, name)[:, :10] >= 30).any()
    shares = {name: (ranked(paths, name)[:, :10] >= 30).mean() for name in ("popular", "markov", "oracle", *MODELS)}
    found = figures["added_items"]
    assert {key: found[key] for key in ("read", "known", "added", "renamed")} == {
        "read": 7, "known": 1, "added": 6, "renamed": 0
    }  # fmt: skip
    assert found["top10_share"] == pytest.approx(shares, abs=1e-5)
    assert found["unknown_tokens"] == dict.fromkeys(MODELS, 6)  # in which every title is a token
    assert metrics_of(paths)["added_items"] == found
    exposure = pq.read_table(paths.evaluation / "exposure.parquet")
    assert exposure["item_id"].to_pylist()[30:] == [*range(900, 906)]
    assert sum(exposure["truth"].to_pylist()[30:]) == 0


def test_what_the_baselines_hit_is_the_same_and_models_lose_what_new_titles_take(
    paths: RunPaths, tmp_path: Path, in_process: None
) -> None:
    evaluate(tiny_config("evaluate.beams=60"), paths, paths.evaluation)
    alone, before = metrics_of(paths), {name: ranked(paths, name) for name in MODELS}
    evaluate(tiny_config("evaluate.beams=60", f"evaluate.add_items={new_items(tmp_path)}"), paths, paths.evaluation)
    for name in ("popular", "markov", "oracle"):
        for key in ("hr@1", "hr@10", "ndcg@10", "log_popularity"):
            assert metrics_of(paths)["models"][name][key] == alone["models"][name][key]
    for name in MODELS:
        for row, earlier in zip(ranked(paths, name), before[name], strict=True):
            own = [item for item in row.tolist() if 0 <= item < 30]
            assert own == earlier.tolist()[: len(own)]
        assert metrics_of(paths)["models"][name]["hr@10"]["value"] <= alone["models"][name]["hr@10"]["value"]


def test_likeness_of_new_titles_comes_from_their_own_embeddings(
    paths: RunPaths, tmp_path: Path, in_process: None
) -> None:
    evaluate(tiny_config("pairs.encoder=policy", f"evaluate.add_items={new_items(tmp_path)}"), paths, paths.evaluation)
    figures = metrics_of(paths)["models"]
    assert all(np.isfinite(figures[name]["look_alike"]["value"]) for name in MODELS)


def test_the_report_tells_of_added_titles(paths: RunPaths, tmp_path: Path, in_process: None) -> None:
    config = tiny_config(f"evaluate.add_items={new_items(tmp_path)}")
    figures = evaluate(config, paths, paths.evaluation)
    page = drawn(config, paths)
    share = figures["added_items"]["top10_share"]["sft"]
    for words in ("Added titles", "new.parquet: 6; in the catalogue already: 1", f"SFT {100 * share:.2g} %"):
        assert words in page


def test_lists_of_others_may_hold_new_items(paths: RunPaths, tmp_path: Path, in_process: None) -> None:
    rows = [{"user_id": user, "items": ["905", "c", "101"]} for user in range(24)]
    (tmp_path / "lists.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = (f"evaluate.predictions=[{tmp_path}/lists.jsonl]", f"evaluate.add_items={new_items(tmp_path)}")
    evaluate(tiny_config(*options), paths, paths.evaluation)
    assert ranked(paths, "lists")[0, :2].tolist() == [35, 31]


def test_another_file_of_items_is_another_evaluation(tmp_path: Path, in_process: None) -> None:
    root = tiny_run(tmp_path / "run").root
    finished(root, tiny_config(), "prepare", "sft", "align")
    run_stages(plan_run(tiny_config(), root, ["evaluate"]))
    assert "evaluate.add_items" not in stage_settings(tiny_config(), STAGES["evaluate"])
    config = tiny_config(f"evaluate.add_items={new_items(tmp_path)}")
    with pytest.raises(UserError, match=r"evaluate\.add_items: None → .*new\.parquet"):
        plan_run(config, root, ["evaluate"])
    run_stages(plan_run(config, root, ["evaluate"], overwrite=True))
    first = ranked(RunPaths(root), "sft")
    assert (first >= 30).any()
    assert plan_run(config, root, ["evaluate"])["evaluate"].state == "done"
    new_items(tmp_path, (907, "j"))
    assert plan_run(config, root, ["evaluate"], overwrite=True)["evaluate"].state == "replace"
    run_stages(plan_run(config, root, ["evaluate"], overwrite=True))
    assert (ranked(RunPaths(root), "sft") == 36).any()
    with pytest.raises(UserError, match="made by another configuration"):
        plan_run(tiny_config(), root, ["evaluate"])
    run_stages(plan_run(tiny_config(), root, ["evaluate"], overwrite=True))
    assert not (ranked(RunPaths(root), "sft") >= 30).any()
    assert not (root / "evaluation" / "_items.parquet").exists()


def test_a_run_with_added_titles_is_not_paired_with_one_without(tmp_path: Path, in_process: None) -> None:
    for name in ("plain", "more"):
        root = tiny_run(tmp_path / name).root
        options = (f"evaluate.add_items={new_items(tmp_path)}",) if name == "more" else ()
        finished(root, tiny_config(*options), "prepare", "sft", "align")
        run_stages(plan_run(tiny_config(*options), root, ["evaluate"]))
    compare([tmp_path / "plain", tmp_path / "more"], tmp_path / "page.html")
    assert "ranked different catalogues (36 and 30 titles)" in (tmp_path / "page.html").read_text()


def test_models_of_others_rank_new_titles_too_where_they_can_spell_them(
    paths: RunPaths, tmp_path: Path, in_process: None
) -> None:
    tokenizer = tiny_tokenizer(30, whole=True)
    bare = tiny_config("model.template={prefix: '', separator: '', end: ''}")
    for name, config in (("spelling", tiny_config()), ("whole", bare)):
        model = tiny_model(vocab_size=len(tokenizer), seed=3)
        save_policy(tmp_path / name, model, tokenizer, tiny_catalogue(30), model_record(config, "sft"))
    plain = tmp_path / "plain"
    tiny_model(vocab_size=len(tokenizer), seed=4).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    add = f"evaluate.add_items={new_items(tmp_path)}"
    evaluate(tiny_config(add, f"evaluate.models=[{tmp_path / 'spelling'}, {plain}]"), paths, paths.evaluation)
    assert (ranked(paths, "spelling") >= 30).any()
    assert (ranked(paths, "plain") >= 30).any()
    with pytest.raises(UserError, match=r"titles cannot be added to what .*/whole recommends"):
        evaluate(tiny_config(add, f"evaluate.models=[{tmp_path / 'whole'}]"), paths, paths.evaluation)


def test_settings_that_leave_added_items_no_meaning_are_refused(tmp_path: Path) -> None:
    add = f"evaluate.add_items={tmp_path / 'new.csv'}"
    with pytest.raises(UserError, match=r"new\.csv adds titles, and model\.template\.end is empty.*vocab_size=1024"):
        load_config(None, [add, "model.template={separator: '', end: ''}"])
    whole = {"model.template": {"prefix": "", "separator": "", "end": ""}}
    with pytest.raises(UserError, match=r"model\.template, which follows.*adds titles, and model\.template\.end"):
        replaced(load_config(None, [add]), whole, "model.template, which follows from the data")
    with pytest.raises(UserError, match=r"evaluate\.add_items is not used under model\.template\.candidates=true"):
        load_config(None, [add, "model.template.candidates=true", "prepare.candidates=20"])
    with pytest.raises(UserError, match=r"evaluate\.add_items carries credentials"):
        load_config(None, ["evaluate.add_items=s3://me:secret@bucket/new.csv"])
