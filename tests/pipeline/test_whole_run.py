"""The whole pipeline on a small log: every stage with its real parts, then the rules about doing it again."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rosepo.config import Config, load_config, parse_config
from rosepo.pipeline.planning import plan_run
from rosepo.pipeline.runner import run_stages
from rosepo.run.manifest import read_manifest
from rosepo.run.stages import STAGES
from rosepo.utils.errors import UserError

N_ITEMS, N_USERS = 40, 60


def write_log(folder: Path) -> None:
    """A log in which each item is mostly followed by the next one of its ring, so that there is something to learn."""
    rng = np.random.default_rng(0)
    rows = ["user,item,stars,when"]
    for user in range(N_USERS):
        item = int(rng.integers(N_ITEMS))
        for step in range(9):
            rows.append(f"{user},{item},{5 if step % 4 else 4},{1000 * user + step}")
            item = (item + (1 if rng.random() < 0.9 else 2)) % N_ITEMS
    (folder / "log.csv").write_text("\n".join(rows) + "\n")
    titles = [f"{number},The {number * 7 % N_ITEMS}th Café, part {number},drama|comedy" for number in range(N_ITEMS)]
    quoted = [
        f'{number},"{rest.rsplit(",", 1)[0]}",{rest.rsplit(",", 1)[1]}'
        for number, _, rest in (t.partition(",") for t in titles)
    ]
    (folder / "items.csv").write_text("\n".join(["item,name,genres", *quoted]) + "\n")


def configure(folder: Path, **more: dict[str, object]) -> Config:
    tree: dict[str, dict[str, object]] = {
        "data": {
            "interactions": str(folder / "log.csv"),
            "items": str(folder / "items.csv"),
            "columns": {
                "user_id": "user",
                "item_id": "item",
                "rating": "stars",
                "timestamp": "when",
                "title": "name",
                "categories": "genres",
            },
        },
        "prepare": {"min_rating": 4, "k_core": 2},
        "model": {
            "scratch": {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32, "vocab_size": 400},
            "max_length": 128,
        },
        "sft": {"epochs": 2, "learning_rate": 3e-3},
        "oracle": {"max_epochs": 2, "hidden_size": 16},
        "pairs": {"negatives": 2, "encoder": "tfidf"},
        "align": {"workers": 2, "zero_stage": 2, "epochs": 0.2},
        "evaluate": {"bootstrap": 100},
        "sweep": {"trials": 2, "parameters": {"align.beta": [0.1, 1.0]}, "max_groups": 32, "max_examples": 20},
    }
    for section, values in more.items():
        tree[section] = {**tree.get(section, {}), **values}
    return parse_config(tree)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_log(folder)
    with contextlib.chdir(folder):  # --out as users write it, while Ray's workers are elsewhere
        run_stages(plan_run(configure(folder), Path("out"), list(STAGES)))
    return folder


def test_a_run_leaves_every_output_with_its_manifest(finished: Path) -> None:
    out = finished / "out"
    for stage in STAGES.values():
        manifest = read_manifest(out / stage.folder)
        assert manifest is not None, stage.name
        assert manifest["stage"] == stage.name
        assert manifest["seconds"] > 0
        assert manifest["peak_memory"] > 50 * 2**20
    assert set(json.loads((out / "manifest.json").read_text())["stages"]) == set(STAGES)
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    assert (out / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")
    assert (out / "report.md").read_text().startswith("# rosepo report")


def test_tables_open_as_plain_parquet_folders(finished: Path) -> None:
    examples = pq.read_table(finished / "out" / "examples")
    assert {"example_id", "user_id", "split", "history", "target"} <= set(examples.column_names)
    groups = pq.read_table(finished / "out" / "groups")
    assert {len(row) for row in groups["rejected_ids"].to_pylist()} == {2}
    assert {len(row) for row in groups["ref_logps"].to_pylist()} == {3}
    assert all(0.0 <= e < 0.5 for row in groups["epsilon"].to_pylist() for e in row)


def test_metrics_hold_every_model_with_ordered_intervals(finished: Path) -> None:
    metrics = json.loads((finished / "out" / "metrics.json").read_text())
    assert (metrics["split"], metrics["protocol"]) == ("test", "catalogue")
    assert metrics["n_examples"] == metrics["n_users"] == N_USERS
    assert set(metrics["models"]) == {"popular", "markov", "oracle", "sft", "aligned"}
    for figures in metrics["models"].values():
        for name in ("hr@1", "hr@5", "hr@10", "hr@20", "ndcg@1", "ndcg@5", "ndcg@10", "ndcg@20"):
            assert 0.0 <= figures[name]["low"] <= figures[name]["value"] <= figures[name]["high"] <= 1.0


def test_models_load_in_plain_transformers(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("sft", "aligned"):
        model = AutoModelForCausalLM.from_pretrained(finished / "out" / name)
        tokenizer = AutoTokenizer.from_pretrained(finished / "out" / name)
        text = "The 7th Café, part 1"
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
        assert model.config.vocab_size >= len(tokenizer)
        assert (finished / "out" / name / "model.safetensors").is_file()


def test_the_best_trial_is_a_configuration_that_align_takes(finished: Path) -> None:
    best = load_config(finished / "out" / "sweep" / "best.yaml")
    assert best.align.beta in (0.1, 1.0)
    trials = json.loads((finished / "out" / "sweep" / "trials.json").read_text())["trials"]
    assert [trial["settings"]["align.beta"] for trial in trials] == [0.1, 1.0]
    assert all("error" not in trial for trial in trials)
    plan = plan_run(best, finished / "out", list(STAGES), overwrite=True)
    assert {step.stage.name for step in plan.left} <= {"align", "evaluate"}


def test_nothing_is_done_twice(finished: Path) -> None:
    config = configure(finished)
    plan = plan_run(config, finished / "out", list(STAGES))
    assert not plan.left
    before = {path: path.stat().st_mtime_ns for path in (finished / "out").rglob("*.safetensors")}
    run_stages(plan)
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "out").rglob("*.safetensors")}


def test_numbers_of_workers_and_actors_make_nothing_stale(finished: Path) -> None:
    config = configure(finished, align={"workers": 1}, pairs={"actors": 2}, evaluate={"actors": 2})
    assert not plan_run(config, finished / "out", list(STAGES)).left


def test_another_configuration_is_refused_with_what_differs(finished: Path) -> None:
    config = configure(finished, pairs={"negatives": 3})
    with pytest.raises(UserError, match=r"pairs\.negatives: 2 → 3.*--overwrite"):
        plan_run(config, finished / "out", list(STAGES), overwrite=False)
    plan = plan_run(config, finished / "out", list(STAGES), overwrite=True)
    states = {step.stage.name: step.state for step in plan.stages}
    assert [states[name] for name in ("prepare", "sft", "oracle")] == ["done", "done", "done"]
    assert {states[name] for name in ("pairs", "align", "sweep", "evaluate")} == {"replace"}


def test_a_stage_refuses_inputs_of_another_configuration(finished: Path) -> None:
    config = configure(finished, sft={"epochs": 3})
    with pytest.raises(UserError, match=r"sft\.epochs: 2\.0 → 3\.0"):
        plan_run(config, finished / "out", ["align"], overwrite=True)


def test_a_changed_log_makes_everything_stale(finished: Path, tmp_path: Path) -> None:
    write_log(tmp_path)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    (tmp_path / "log.csv").write_text("\n".join(lines[:-1]) + "\n")
    original = (finished / "log.csv").read_text()
    try:
        (finished / "log.csv").write_text((tmp_path / "log.csv").read_text())
        with pytest.raises(UserError, match="--overwrite"):
            plan_run(configure(finished), finished / "out", list(STAGES), overwrite=False)
    finally:
        (finished / "log.csv").write_text(original)
