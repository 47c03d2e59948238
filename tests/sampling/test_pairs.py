"""The pairs stage through Ray on small real models: the table it writes, and that actors change nothing about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rosepo.data.catalogue import Catalogue
from rosepo.lm.model.model_folder import load_recommender
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.rows.plain_rows import plain_logps
from rosepo.lm.titles.title_scores import reference_logps
from rosepo.oracle.crossfit import Oracle
from rosepo.oracle.sasrec import SASRec, SASRecConfig
from rosepo.run.paths import RunPaths
from rosepo.sampling import actors
from rosepo.sampling.pairs import pairs
from rosepo.utils.errors import StageError, UserError, user_error_from
from tests.helpers import run_table, tiny_catalogue
from tests.sampling.runs import N_ITEMS, borrow, configure, read, save_oracle, write_examples


@pytest.fixture(scope="module")
def groups(run: RunPaths, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("groups")
    return out, pairs(configure(), run, out)


def test_the_table_has_one_group_a_training_example_in_their_order(groups: Any, run: RunPaths) -> None:
    table, examples = read(groups[0]), read(run.examples)
    train = [row for row in examples.to_pylist() if row["split"] == "train"]
    assert table["example_id"].to_pylist() == [row["example_id"] for row in train]
    assert table["chosen_item"].to_pylist() == [row["target"] for row in train]
    assert {name: str(table.schema.field(name).type) for name in table.column_names} == {
        "example_id": "string",
        "user_id": "int64",
        "prompt_ids": "list<element: int32>",
        "chosen_item": "int32",
        "chosen_ids": "list<element: int32>",
        "rejected_items": "list<element: int32>",
        "rejected_ids": "list<element: list<element: int32>>",
        "strategy": "list<element: string>",
        "epsilon": "list<element: float>",
        "oracle_scores": "list<element: float>",
        "ref_logps": "list<element: float>",
    }
    others = {path.name for path in groups[0].iterdir() if not path.name.startswith("part-")}
    assert others == {"_validation.parquet"}  # nothing that only a rerun needs


def test_validation_examples_become_groups_of_their_own_file(groups: Any, run: RunPaths) -> None:
    held_out, table = pq.read_table(groups[0] / "_validation.parquet"), read(groups[0])
    assert held_out.schema == table.schema
    examples = {row["example_id"]: row for row in read(run.examples).to_pylist() if row["split"] == "validation"}
    assert 0 < len(held_out) <= 256
    assert len(held_out) == groups[1]["validation_groups"] == min(256, len(examples))
    for row in held_out.to_pylist():
        example = examples[row["example_id"]]
        assert row["chosen_item"] == example["target"]
        assert not {*example["history"], example["target"]} & set(row["rejected_items"])
        assert len(set(row["rejected_items"])) == 2
    assert groups[1]["groups"] == len(table)


def test_rejected_titles_keep_their_promises(groups: Any, run: RunPaths) -> None:
    history = {row["example_id"]: row["history"] for row in read(run.examples).to_pylist()}
    used = set()
    for row in read(groups[0]).to_pylist():
        rejected = row["rejected_items"]
        assert len(set(rejected)) == 2
        assert not set(rejected) & {*history[row["example_id"]], row["chosen_item"]}
        assert all(0 <= item < N_ITEMS for item in rejected)
        assert all(0 <= value < 0.5 for value in row["epsilon"])
        used.update(row["strategy"])
    assert used == {"self_hard", "semantic", "popularity"}


def test_tokens_scores_and_log_probabilities_are_those_of_the_models(groups: Any, run: RunPaths) -> None:
    recommender = load_recommender(run.sft)
    builder, catalogue = recommender.builder, recommender.catalogue
    oracle = Oracle.load(run.oracle, catalogue.item_ids)
    history = {row["example_id"]: row["history"] for row in read(run.examples).to_pylist()}
    for row in read(groups[0]).to_pylist()[::9]:
        seen = history[row["example_id"]]
        items = np.array([row["chosen_item"], *row["rejected_items"]])
        completions = [np.array(ids) for ids in (row["chosen_ids"], *row["rejected_ids"])]
        assert row["prompt_ids"] == builder.prompt(seen)[0].tolist()
        assert [ids.tolist() for ids in completions] == [builder.completion(item).tolist() for item in items]
        scores = oracle.score_items([np.array(seen)], items[None])[0] / 0.7
        np.testing.assert_allclose(row["oracle_scores"], scores, atol=1e-4)
        chance = 1 / (1 + np.exp(scores[0] - scores[1:]))
        np.testing.assert_allclose(row["epsilon"], np.minimum(chance, 0.4999), atol=1e-4)
        prompts = [np.array(row["prompt_ids"])] * 3
        with torch.inference_mode():
            expected = plain_logps(recommender.model, prompts, completions)[0]
        np.testing.assert_allclose(row["ref_logps"], expected.numpy(), atol=1e-3)


def test_figures_agree_with_the_table(groups: Any) -> None:
    table, figures = read(groups[0]).to_pylist(), groups[1]
    assert figures["groups"] == len(table)
    assert figures["pairs"] == 2 * len(table)
    values = [value for row in table for value in row["epsilon"]]
    assert figures["epsilon_mean"] == pytest.approx(np.mean(values), abs=1e-6)
    wins = {name: [] for name in figures["strategies"]}
    for row in table:
        for name, score in zip(row["strategy"], row["oracle_scores"][1:], strict=True):
            wins[name].append(row["oracle_scores"][0] > score)
    for name, entry in figures["strategies"].items():
        assert entry["pairs"] == sum(entry["epsilon_histogram"]) == len(wins[name])
        assert entry["auc"] == pytest.approx(np.mean(wins[name]))
    assert figures["prompt_tokens_max"] == max(len(row["prompt_ids"]) for row in table)


@pytest.mark.parametrize(("n_actors", "part_groups"), [(2, None), pytest.param(4, 500, marks=pytest.mark.slow)])
def test_actors_and_sizes_of_parts_change_no_title(
    n_actors: int, part_groups: int | None, groups: Any, run: RunPaths, tmp_path: Path
) -> None:
    pairs(configure(actors=n_actors, cpus_per_actor=0.5, part_groups=part_groups), run, tmp_path)
    first, second = (sorted(folder.glob("part-*.parquet")) for folder in (groups[0], tmp_path))
    assert len(first) > 2
    assert (len(first) == len(second)) == (part_groups is None)
    check_same_but_for_rounding(read(groups[0]), read(tmp_path))


def test_sizes_of_batches_change_no_title(
    groups: Any, run: RunPaths, in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "BATCH", 37)
    pairs(configure(part_groups=500), run, tmp_path)
    check_same_but_for_rounding(read(groups[0]), read(tmp_path))


def check_same_but_for_rounding(one: pa.Table, other: pa.Table) -> None:
    """Groups in one order, of the same titles and tokens, with numbers that agree to 1e-5."""
    computed = ["epsilon", "oracle_scores", "ref_logps"]
    assert one.drop_columns(computed).equals(other.drop_columns(computed))
    for name in computed:
        values = [table[name].combine_chunks().flatten().to_numpy() for table in (one, other)]
        np.testing.assert_allclose(*values, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("items", "count"), [(12, 6), (N_ITEMS, 15)])
def test_rejected_titles_left_open_are_fewer_where_the_catalogue_leaves_fewer(
    items: int, count: int, in_process: None, tmp_path: Path
) -> None:
    inputs = RunPaths(tmp_path)
    write_examples(inputs.examples, tiny_catalogue(items))
    figures = pairs(configure(negatives=None, strategies={"uniform": 1.0}, score=False), inputs, tmp_path)
    assert figures["negatives"] == count
    assert {len(row) for row in read(tmp_path)["rejected_items"].to_pylist()} == {count}


def test_a_model_that_gives_no_numbers_ends_the_stage_with_one_sentence(
    run: RunPaths, in_process: None, tmp_path: Path
) -> None:
    other = borrow(run, tmp_path / "run", "examples", "sft")
    oracle = SASRec(SASRecConfig(n_items=N_ITEMS, hidden_size=16))
    with torch.no_grad():
        oracle.norm.weight.fill_(float("nan"))
    save_oracle(other, oracle, tiny_catalogue(N_ITEMS).item_ids)
    (tmp_path / "out").mkdir()
    with pytest.raises(StageError, match=r"^the oracle gives scores that are not finite"):
        pairs(configure(strategies={"popularity": 1.0}), other, tmp_path / "out")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"negatives": 25}, "pairs.negatives=25 is more than the catalogue allows: 30 items leave 24"),
        ({"actors": 9}, "needs 9 CPUs"),
        ({"gpu": "yes"}, "pairs.gpu=yes needs 1 GPUs"),
        ({"engine": "vllm", "vllm": "/nowhere/vllm"}, "pairs.vllm=/nowhere/vllm is no command here: give the path"),
        ({"engine": "vllm", "gpus_per_actor": 2, "gpu": "yes", "vllm": "true"}, "pairs.gpu=yes needs 2 GPUs"),
        ({"encoder": "/nowhere"}, "pairs.encoder=/nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_an_actor_starts(
    section: dict[str, Any], message: str, run: RunPaths, ray_cluster: None, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        pairs(configure(**section), run, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_oracle_of_another_catalogue_is_refused(run: RunPaths, in_process: None, tmp_path: Path) -> None:
    other = borrow(run, tmp_path / "run", "examples", "sft")
    save_oracle(other, SASRec(SASRecConfig(n_items=N_ITEMS, hidden_size=16)), np.arange(N_ITEMS))
    with pytest.raises(UserError, match="trained on another catalogue"):
        pairs(configure(), other, tmp_path / "out")


def test_a_model_of_another_catalogue_is_refused(run: RunPaths, in_process: None, tmp_path: Path) -> None:
    other = borrow(run, tmp_path / "run", "oracle", "sft")
    other.examples.mkdir()
    tiny_catalogue(N_ITEMS - 1).save(other.examples / "_items.parquet")
    with pytest.raises(UserError, match="run `rosepo sft` again"):
        pairs(configure(), other, tmp_path / "out")


@pytest.mark.parametrize("kind", [UserError, StageError])
def test_what_an_actor_says_while_it_starts_is_passed_on(kind: type[Exception]) -> None:
    wrapped = RuntimeError(f"The actor died\n  File x\n{kind.__module__}.{kind.__name__}: no such folder")
    found = user_error_from(wrapped)
    assert isinstance(found, kind)
    assert str(found) == "no such folder"
    assert user_error_from(RuntimeError("other")) is None


def test_what_was_seen_before_a_cut_history_is_never_rejected(run: RunPaths, in_process: None, tmp_path: Path) -> None:
    other = borrow(run, tmp_path / "run", "sft", "oracle")
    (other.examples / "_sequences").mkdir(parents=True)
    whole: dict[int, list[int]] = {}
    table = read(run.examples).to_pylist()
    for row in table:
        whole[row["user_id"]] = [*row["history"], row["target"]]
        row["history"] = row["history"][-1:]
    pq.write_table(run_table(table), other.examples / "part-00000.parquet")
    sequences = [{"user_id": user, "items": items} for user, items in whole.items()]
    pq.write_table(run_table(sequences), other.examples / "_sequences" / "part-00000.parquet")
    Catalogue.load(run.examples / "_items.parquet").save(other.examples / "_items.parquet")
    (tmp_path / "out").mkdir()
    pairs(configure(negatives=4), other, tmp_path / "out")
    for row in read(tmp_path / "out").to_pylist():
        position = int(row["example_id"].split(":")[1])
        assert not set(row["rejected_items"]) & set(whole[row["user_id"]][: position + 1])


def test_titles_alone_need_no_model_and_are_those_of_the_scored_table(
    run: RunPaths, in_process: None, tmp_path: Path
) -> None:
    weights = {"popularity": 1.0, "uniform": 1.0}
    for name in ("scored", "alone"):
        (tmp_path / name).mkdir()
    pairs(configure(strategies=weights), run, tmp_path / "scored")
    figures = pairs(
        configure(strategies=weights, score=False), borrow(run, tmp_path / "run", "examples"), tmp_path / "alone"
    )
    scored, alone = read(tmp_path / "scored"), read(tmp_path / "alone")
    assert alone.column_names == ["example_id", "user_id", "chosen_item", "rejected_items", "strategy"]
    assert alone.equals(scored.select(alone.column_names))
    assert figures["pairs"] == 2 * len(alone)
    assert "epsilon_mean" not in figures


def test_what_the_test_split_holds_changes_no_group(
    groups: Any, run: RunPaths, in_process: None, tmp_path: Path
) -> None:
    other = borrow(run, tmp_path / "run", "sft", "oracle")
    other.examples.mkdir()
    Catalogue.load(run.examples / "_items.parquet").save(other.examples / "_items.parquet")
    rng = np.random.default_rng(0)
    for path in sorted(run.examples.glob("part-*.parquet")):
        rows = pq.read_table(path).to_pylist()
        tests = [row for row in rows if row["split"] == "test"]
        for row, target in zip(tests, rng.permutation([row["target"] for row in tests]).tolist()):
            row["target"] = target
        pq.write_table(run_table(rows), other.examples / path.name)
    (tmp_path / "out").mkdir()
    pairs(configure(), other, tmp_path / "out")
    assert read(tmp_path / "out").equals(read(groups[0]))


def test_the_reference_runs_in_the_precision_that_trains(
    groups: Any, run: RunPaths, in_process: None, tmp_path: Path
) -> None:
    """Its log-probabilities are then those that training starts from, and rewards begin at 0."""
    config = configure()
    trained = config.model_copy(update={"align": config.align.model_copy(update={"precision": "bfloat16"})})
    pairs(trained, run, tmp_path)
    model = LogpsModel(load_recommender(run.sft, torch.bfloat16).model)
    off, other = [], []
    for row, exact in list(zip(read(tmp_path).to_pylist(), read(groups[0]).to_pylist(), strict=True))[::9]:
        titles = [np.array(ids) for ids in (row["chosen_ids"], *row["rejected_ids"])]
        expected = reference_logps(model, [np.array(row["prompt_ids"])], [titles])[0]
        off += [np.asarray(row["ref_logps"]) - expected]
        other += [row["ref_logps"][0] - exact["ref_logps"][0]]
    assert abs(np.concatenate(off).mean()) < 0.01
    np.testing.assert_allclose(np.concatenate(off), 0.0, atol=0.1)
    assert any(other)
