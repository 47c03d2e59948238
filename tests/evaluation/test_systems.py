"""Rankings in parts: gone on with, taken over, and made of models that are not the run's own."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import weakref
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rosepo.config import TemplateConfig
from rosepo.data.catalogue import Catalogue
from rosepo.data.prompts import PromptBuilder
from rosepo.evaluation import external_models
from rosepo.evaluation.candidates.free_answers import writing
from rosepo.evaluation.evaluate import evaluate
from rosepo.evaluation.measured_examples import plan_parts, read_batches, write_examples
from rosepo.evaluation.rankers import Ranker, RankerSettings, ranking
from rosepo.evaluation.rankings import open_rankings, rankings_table, read_rankings, write_part
from rosepo.evaluation.systems import Ranking
from rosepo.lm.cards.record import model_record
from rosepo.lm.model.model_folder import save_policy
from rosepo.lm.serving.server import Serving
from rosepo.lm.titles.beam_search import Decoder
from rosepo.oracle.sasrec import SASRec, SASRecConfig
from rosepo.pipeline.kept_config import CONFIG_FILE, resolve_config
from rosepo.pipeline.planning import plan_run
from rosepo.pipeline.runner import run_stages
from rosepo.run.paths import RunPaths
from rosepo.utils.errors import UserError
from tests.evaluation.runs import finished, tiny_config, tiny_run
from tests.helpers import tiny_catalogue, tiny_model, tiny_tokenizer
from tests.lm.serving.model_server import STAND_IN

STAGES = ("prepare", "sft", "align")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A tiny run with an SFT model and an aligned one."""
    return tiny_run(tmp_path_factory.mktemp("run"))


def inodes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_ino for path in sorted(folder.rglob("part-*.parquet"))}


def metrics_of(folder: Path) -> dict[str, dict[str, dict[str, object]]]:
    return json.loads((folder / "metrics.json").read_text())  # type: ignore[no-any-return]


def test_a_killed_evaluation_goes_on_from_its_parts_and_ends_with_the_same_metrics(
    tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    for root in (undisturbed, killed):
        tiny_run(root)
        finished(root, tiny_config(), *STAGES)
    run_stages(plan_run(tiny_config(), undisturbed, ["evaluate"]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.evaluation.killed", str(killed), "10"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=300, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not (killed / "evaluation").exists()
    (partial,) = killed.glob(".evaluation.*.partial")
    kept = inodes(partial)
    assert Counter(Path(name).parts[1] for name in kept) == {
        "popular.parquet": 3, "markov.parquet": 3, "sft.parquet": 3, "aligned.parquet": 1
    }  # fmt: skip
    capsys.readouterr()
    run_stages(plan_run(tiny_config(), killed, ["evaluate"]))
    assert "goes on from 10 of 12 parts" in capsys.readouterr().err
    now = inodes(killed / "evaluation")
    assert kept.items() < now.items()
    assert (killed / "metrics.json").read_text() == (undisturbed / "metrics.json").read_text()
    assert not list(killed.glob(".evaluation.*"))


def as_lists(rankings: Path, path: Path, key: str = "example_id") -> Path:
    """Rankings of `tiny_run` as a system of others would give them."""
    ids = tiny_catalogue(30).item_ids.tolist()
    rows = [
        {key: row[key], "items": [ids[item] for item in row["items"]]} for row in pq.read_table(rankings).to_pylist()
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_another_evaluation_takes_over_what_the_last_one_ranked(tmp_path: Path, in_process: None) -> None:
    root = tiny_run(tmp_path).root
    finished(root, tiny_config(), *STAGES)
    run_stages(plan_run(tiny_config(), root, ["evaluate"]))
    before = inodes(root / "evaluation")
    run_stages(plan_run(tiny_config("evaluate.bootstrap=200"), root, ["evaluate"], overwrite=True))
    assert inodes(root / "evaluation") == before
    lists = as_lists(root / "evaluation" / "rankings" / "popular.parquet", tmp_path / "lists.parquet")
    fed = f"evaluate.predictions=[fed={lists}]"
    # Nothing is lost: no --overwrite.
    run_stages(plan_run(tiny_config("evaluate.bootstrap=200", fed), root, ["evaluate"]))
    assert metrics_of(root)["models"]["fed"] == metrics_of(root)["models"]["popular"]
    assert before.items() < inodes(root / "evaluation").items()
    with pytest.raises(UserError, match="made by another configuration"):
        run_stages(plan_run(tiny_config("evaluate.bootstrap=200"), root, ["evaluate"]))
    run_stages(plan_run(tiny_config("evaluate.beams=21"), root, ["evaluate"], overwrite=True))
    assert not before.items() & inodes(root / "evaluation").items()


def test_a_refused_evaluation_leaves_the_run_as_it_was(tmp_path: Path, in_process: None) -> None:
    root = tiny_run(tmp_path).root
    finished(root, tiny_config(), *STAGES)
    run_stages(plan_run(tiny_config(), root, ["evaluate"]))
    unknown = tmp_path / "unknown.jsonl"
    unknown.write_text('{"user_id": 1, "items": ["Nowhere to be found"]}\n')
    before = (root / CONFIG_FILE).read_text()
    with pytest.raises(UserError, match=r"unknown\.jsonl"):
        run_stages(plan_run(tiny_config(f"evaluate.predictions=[other={unknown}]"), root, ["evaluate"]))
    assert (root / CONFIG_FILE).read_text() == before
    assert plan_run(resolve_config(root, None, []), root, ["evaluate"])["evaluate"].state == "done"


def test_parts_of_another_origin_and_broken_ones_are_made_again(paths: RunPaths, tmp_path: Path) -> None:
    examples, folder = tmp_path / "examples.parquet", tmp_path / "rankings" / "x.parquet"
    write_examples(paths.examples, "test", None, 8, examples)
    parts = plan_parts(examples)
    assert [(part.first, part.batches, part.rows) for part in parts] == [(0, 1, 8), (1, 1, 8), (2, 1, 8)]
    assert open_rankings(folder, parts, "now") == parts
    for part, batch in zip(parts, read_batches(examples), strict=True):
        items = np.tile(np.arange(20), (8, 1))
        write_part(folder, part, [rankings_table(batch, items, items)])
    assert open_rankings(folder, parts, "now") == []
    (folder / parts[1].name).write_bytes((folder / parts[1].name).read_bytes()[:-20])
    (folder / ".part-00000.parquet.1234.tmp").touch()
    assert open_rankings(folder, parts, "now") == [parts[1]]
    assert {path.name for path in folder.iterdir()} == {"_origin.json", parts[0].name, parts[2].name}
    assert open_rankings(folder, parts, "other") == parts


def test_many_examples_make_parts_of_many_batches(tmp_path: Path) -> None:
    inputs = tiny_run(tmp_path, models=False, users=200)
    write_examples(inputs.examples, "test", None, 3, tmp_path / "examples.parquet")
    parts = plan_parts(tmp_path / "examples.parquet")
    assert [part.batches for part in parts] == [5] * 13 + [2]  # 67 batches in 16 parts at most
    assert sum(part.rows for part in parts) == 200


def test_a_place_without_an_item_is_kept_on_disk(paths: RunPaths, tmp_path: Path) -> None:
    write_examples(paths.examples, "test", 2, 8, tmp_path / "examples.parquet")
    batch = next(read_batches(tmp_path / "examples.parquet"))
    items = np.full((2, 20), -1)
    items[0, :3] = [4, -2, batch.targets[0]]
    (part,) = plan_parts(tmp_path / "examples.parquet")
    folder = tmp_path / "x.parquet"
    folder.mkdir()
    write_part(folder, part, [rankings_table(batch, items, np.zeros(items.shape))])
    ranks, read = read_rankings(folder)
    assert ranks.tolist() == [2, -1]
    assert read[0, :4].tolist() == [4, -1, batch.targets[0], -1]
    assert (read[1] == -1).all()


def test_the_baselines_rank_what_was_not_seen_by_scores_that_are_worked_out_one_by_one(
    tmp_path: Path, ray_cluster: None
) -> None:
    """Counts of training, transitions from the newest title, SASRec's logits: each by a loop over examples."""
    inputs = tiny_run(tmp_path / "run", models=False)
    catalogue = Catalogue.load(inputs.examples / "_items.parquet")
    torch.manual_seed(0)
    oracle = SASRec(SASRecConfig(len(catalogue), max_length=5, hidden_size=8)).eval()
    oracle.save(inputs.oracle, catalogue.item_ids)
    out = tmp_path / "out"
    out.mkdir()
    write_examples(inputs.examples, "test", None, 7, out / "_examples.parquet")
    ranking = Ranking(tiny_config(), inputs, out, catalogue, plan_parts(out / "_examples.parquet"))
    assert list(ranking.by_actors({}, ["popular", "markov", "oracle"])) == ["popular", "markov", "oracle"]
    assert {path.name for path in out.iterdir()} == {"_examples.parquet", "rankings"}
    trajectories = pq.read_table(inputs.examples / "_trajectories" / "part-00000.parquet")["items"].to_pylist()
    followed = Counter(pair for items in trajectories for pair in pairwise(items))
    ranked = {name: read_rankings(out / "rankings" / f"{name}.parquet")[1] for name in ("popular", "markov", "oracle")}
    counts = catalogue.train_count
    for row, example in enumerate(pq.read_table(out / "_examples.parquet").to_pylist()):
        left = [item for item in range(len(catalogue)) if item not in example["seen"]]
        last = example["history"][-1]
        with torch.inference_mode():
            newest = torch.tensor([example["history"][-5:]])
            logits = oracle.logits(oracle.forward(newest + 1)[:, -1])[0].tolist()
        keys = {
            "popular": {item: (-counts[item], item) for item in left},
            "markov": {item: (-followed[last, item], -counts[item], item) for item in left},
            "oracle": {item: (-logits[item], item) for item in left},
        }
        for name, key in keys.items():
            assert ranked[name][row].tolist() == (sorted(left, key=key.__getitem__)[:20] + [-1] * 20)[:20], name


def test_an_oracle_of_another_catalogue_is_told_by_the_actor_that_cannot_rank_by_it(
    tmp_path: Path, ray_cluster: None
) -> None:
    inputs = tiny_run(tmp_path, models=False)
    SASRec(SASRecConfig(29, max_length=5, hidden_size=8)).save(inputs.oracle, tiny_catalogue(29).item_ids)
    inputs.evaluation.mkdir()
    with pytest.raises(UserError, match=r"^the oracle in .* was trained on another catalogue: run `rosepo oracle`"):
        evaluate(tiny_config(), inputs, inputs.evaluation)
    assert not (inputs.evaluation / "_transitions.arrow").exists()


def test_models_of_others_are_ranked_by_the_same_rules(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of another run reads as it learned to; a plain model reads with this run's template. Both are named from
    where the user is, while Ray's actors are elsewhere."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "prepared"
    inputs = tiny_run(root, models=False)
    finished(root, tiny_config(), "prepare")
    other, plain = tmp_path / "other" / "sft", tmp_path / "plain"
    template = TemplateConfig(prefix="", separator=" / ", suffix=" next: ")
    tokenizer = tiny_tokenizer(30)
    models = {"other_sft": tiny_model(vocab_size=len(tokenizer), seed=4), "plain": tiny_model(vocab_size=600, seed=5)}
    options = ("separator=' / '", "prefix=''", "suffix=' next: '")
    theirs = tiny_config(*(f"model.template.{option}" for option in options))
    save_policy(other, models["other_sft"], tokenizer, tiny_catalogue(30), model_record(theirs, "sft"))
    models["plain"].save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    config = tiny_config("evaluate.models=[other/sft, plain]", "model.max_length=10000")
    run_stages(plan_run(config, root, ["evaluate"]))
    metrics = metrics_of(root)
    assert list(metrics["models"]) == ["popular", "markov", "other_sft", "plain"]
    assert {"other_sft-markov", "plain-popular", "other_sft-plain"} < set(metrics["differences"])
    catalogue = Catalogue.load(inputs.examples / "_items.parquet")
    batch = next(read_batches(root / "evaluation" / "_examples.parquet"))
    for name, used in (("other_sft", template), ("plain", TemplateConfig())):
        builder = PromptBuilder(tokenizer, catalogue.titles, used, 256)
        prompts = [builder.prompt(history)[0] for history in batch.histories]
        expected = Decoder(models[name], builder, 20).top_k(prompts, batch.seen, 20)[0]
        ranked = read_rankings(root / "evaluation" / "rankings" / f"{name}.parquet")[1]
        np.testing.assert_array_equal(ranked[: len(prompts)], expected)
    with pytest.raises(UserError, match="made by another configuration"):
        run_stages(plan_run(config.model_copy(update={"seed": 1}), root, ["evaluate"]))
    again = tiny_config("evaluate.models=[other/sft, plain]", "model.max_length=10000", "model.template.suffix=x")
    with pytest.raises(UserError, match=r"model\.template\.suffix"):
        run_stages(plan_run(again, root, ["evaluate"]))


def test_a_model_of_another_catalogue_and_one_that_is_none_are_refused(tmp_path: Path, in_process: None) -> None:
    inputs = tiny_run(tmp_path / "run", models=False)
    inputs.evaluation.mkdir()
    tokenizer = tiny_tokenizer(29)
    save_policy(tmp_path / "x", tiny_model(), tokenizer, tiny_catalogue(29), model_record(tiny_config(), "sft"))
    with pytest.raises(UserError, match=r"trained on another catalogue \(29 items, the run has 30\)"):
        evaluate(tiny_config(f"evaluate.models=[{tmp_path / 'x'}]"), inputs, inputs.evaluation)
    with pytest.raises(UserError, match=r"^evaluate\.models=/nowhere/m is neither a model folder"):
        evaluate(tiny_config("evaluate.models=[/nowhere/m]"), inputs, inputs.evaluation)


def test_a_list_without_a_title_in_its_first_ten_places_leaves_metrics_that_any_reader_of_json_takes(
    paths: RunPaths, tmp_path: Path, in_process: None
) -> None:
    lists = {"user_id": 3, "items": [*(f"no such {place}" for place in range(12)), "Night (1980)"]}
    (tmp_path / "late.jsonl").write_text(json.dumps(lists))
    evaluate(tiny_config(f"evaluate.predictions=[{tmp_path}/late.jsonl]"), paths, tmp_path)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    metrics = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    figures = metrics["models"]["late"]
    assert (figures["gini"]["value"], figures["coverage"]["value"]) == (None, 0.0)
    assert figures["log_popularity"]["value"] is None


def ranker_settings(paths: RunPaths, out: Path) -> RankerSettings:
    """Of an actor that ranks the examples in `out` by both models of a run."""
    return RankerSettings(
        prompts=tiny_config().model,
        max_history=tiny_config().prepare.max_history,
        beams=tiny_config().evaluate.beams,
        models={name: str(paths.root / name) for name in ("sft", "aligned")},
        examples=out / "examples.parquet",
        catalogue=paths.examples / "_items.parquet",
        transitions=out / "none",
        oracle=paths.oracle,
        out=out,
        device="cpu",
        precision="float32",
        serving=None,
        answering=ranking,
    )


def test_an_actor_lets_go_of_a_model_before_it_loads_the_next(
    paths: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models of seven billion parameters do not fit where one does."""
    load, alive = external_models.load_external, list[int]()
    held: list[weakref.ref[Any]] = []

    def watched(*arguments: Any) -> Any:
        gc.collect()
        alive.append(sum(model() is not None for model in held))
        found = load(*arguments)
        held.append(weakref.ref(found.model))
        return found

    monkeypatch.setattr(external_models, "load_external", watched)
    write_examples(paths.examples, "test", 8, 4, tmp_path / "examples.parquet")
    settings = ranker_settings(paths, tmp_path)
    for answering in (ranking, writing):
        held.clear()
        alive.clear()
        ranker = Ranker(replace(settings, answering=answering))
        for name in ("sft", "aligned", "aligned", "sft"):
            (tmp_path / f"{name}.parquet").mkdir(exist_ok=True)
            ranker(pa.Table.from_pylist([{"system": name, **asdict(plan_parts(settings.examples)[0])}]))
        assert alive == [0, 0, 0]


def test_models_that_are_served_one_after_another_rank_as_they_do_in_the_actor(paths: RunPaths, tmp_path: Path) -> None:
    write_examples(paths.examples, "test", 8, 4, tmp_path / "examples.parquet")
    own = ranker_settings(paths, tmp_path)
    serving = Serving(STAND_IN, 0, "float32", 0.9)
    (tmp_path / "served").mkdir()
    rankers = [Ranker(own), Ranker(replace(own, serving=serving, out=tmp_path / "served"))]
    for name in ("sft", "aligned"):
        for ranker in rankers:
            folder = ranker.settings.out / f"{name}.parquet"
            folder.mkdir()
            ranker(pa.Table.from_pylist([{"system": name, **asdict(plan_parts(own.examples)[0])}]))
        (ranks, items), found = (read_rankings(ranker.settings.out / f"{name}.parquet") for ranker in rankers)
        assert found[0].tolist() == ranks.tolist()
        assert found[1].tolist() == items.tolist()
    rankers[1].end()


def test_lists_of_others_score_as_the_rankings_that_they_are(paths: RunPaths, tmp_path: Path, in_process: None) -> None:
    """A system that is fed its own rankings back, by example and by user, has every figure of the original."""
    out = tmp_path / "first"
    out.mkdir()
    evaluate(tiny_config(), paths, out)
    for name, key in (("fed", "example_id"), ("by user", "user_id")):
        as_lists(out / "rankings" / "sft.parquet", tmp_path / f"{name}.parquet", key)
    again = tmp_path / "again"
    again.mkdir()
    evaluate(tiny_config(f"evaluate.predictions=[{tmp_path}/fed.parquet, '{tmp_path}/by user.parquet']"), paths, again)
    models = metrics_of(again)["models"]
    assert models["fed"] == models["sft"]
    assert models["by_user"] == models["sft"]
    assert metrics_of(again)["external"]["fed"]["missing"] == 0
    with pytest.raises(UserError, match=r"rankings/sft\.parquet.* is a ranking of a run, which holds item indexes"):
        evaluate(tiny_config(f"evaluate.predictions=[fed={out}/rankings/sft.parquet]"), paths, again)
