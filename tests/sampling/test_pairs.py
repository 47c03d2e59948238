"""The pairs stage through Ray on small real models: the table it writes, and that actors change nothing about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rosepo.artifacts import Outputs, write_json
from rosepo.config import Config, parse_config
from rosepo.data.catalogue import Catalogue
from rosepo.errors import StageError, UserError
from rosepo.models.encoder import encode_titles, history_similarity
from rosepo.models.folder import load_recommender, save_policy
from rosepo.models.oracle import Oracle
from rosepo.models.sasrec import SASRec, SASRecConfig
from rosepo.sampling.draws import Draws
from rosepo.sampling.examples import Examples
from rosepo.sampling.pairs import _own_error, pairs
from rosepo.training.logps import plain_logps
from tests.helpers import tiny_catalogue, tiny_model, tiny_tokenizer

N_USERS, N_ITEMS = 320, 30


def configure(**section: Any) -> Config:
    cache = {} if section.get("score") is False else {"reference_cache": "no"}
    candidates = {"prepare": {"candidates": 5}} if "candidates" in section.get("strategies", {}) else {}
    tree = {"seed": 5, "model": {"max_length": 128}, "pairs": {"negatives": 2, **cache, **section}, **candidates}
    return parse_config(tree)


def write_examples(folder: Path, catalogue: Catalogue) -> None:
    """Users with three to eight items, leave one out; two files."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(N_USERS):
        items = catalogue.item_ids[random.permutation(len(catalogue))[: 3 + user % 6]].tolist()
        for position in range(1, len(items)):
            split = {len(items) - 1: "test", len(items) - 2: "validation"}.get(position, "train")
            rows.append({"example_id": f"{user}:{position}", "user_id": user, "split": split, "position": position,
                         "history": items[:position], "target": items[position]})  # fmt: skip
    table = pa.Table.from_pylist(rows)
    folder.mkdir()
    for number in range(2):
        half = len(table) // 2
        pq.write_table(table.slice(number * half, half + number), folder / f"part-{number:05d}.parquet")
    catalogue.save(folder / "_items.parquet")


def save_oracle(run: Outputs, model: SASRec, item_ids: np.ndarray) -> None:
    """One model for all users."""
    model.save(run.oracle, item_ids, tau=0.7)
    write_json(run.oracle / "folds.json", {"folds": 1, "seed": 0})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    """A run's folder with examples, an untrained policy and an untrained oracle."""
    outputs, catalogue = Outputs(tmp_path_factory.mktemp("run")), tiny_catalogue(N_ITEMS)
    write_examples(outputs.examples, catalogue)
    save_policy(outputs.sft, tiny_model(max_length=128), tiny_tokenizer(N_ITEMS), catalogue, configure(), stage="sft")
    torch.manual_seed(0)
    save_oracle(outputs, SASRec(SASRecConfig(n_items=N_ITEMS, hidden_size=16)), catalogue.item_ids)
    return outputs


def borrow(run: Outputs, root: Path, *names: str) -> Outputs:
    """A run's folder with some outputs of another one."""
    root.mkdir()
    for name in names:
        (root / name).symlink_to(getattr(run, name))
    return Outputs(root)


def read(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))])


@pytest.fixture(scope="module")
def groups(run: Outputs, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("groups")
    return out, pairs(configure(), run, out)


def test_the_table_has_one_group_a_training_example_in_their_order(groups: Any, run: Outputs) -> None:
    table, examples = read(groups[0]), read(run.examples)
    train = [row for row in examples.to_pylist() if row["split"] == "train"]
    assert table["example_id"].to_pylist() == [row["example_id"] for row in train]
    assert table["chosen_item"].to_pylist() == [row["target"] for row in train]
    assert {name: str(table.schema.field(name).type) for name in table.column_names} == {
        "example_id": "string",
        "user_id": "int64",
        "prompt_ids": "list<element: int32>",
        "chosen_item": "int64",
        "chosen_ids": "list<element: int32>",
        "rejected_items": "list<element: int64>",
        "rejected_ids": "list<element: list<element: int32>>",
        "strategy": "list<element: string>",
        "epsilon": "list<element: float>",
        "oracle_scores": "list<element: float>",
        "ref_logps": "list<element: float>",
        "title_spans": "list<element: int32>",
    }
    assert all(path.name.startswith("part-") for path in groups[0].iterdir())  # nothing that only a rerun needs


def test_rejected_titles_keep_their_promises(groups: Any, run: Outputs) -> None:
    history = {row["example_id"]: row["history"] for row in read(run.examples).to_pylist()}
    catalogue = tiny_catalogue(N_ITEMS)
    used = set()
    for row in read(groups[0]).to_pylist():
        rejected = row["rejected_items"]
        assert len(set(rejected)) == 2
        assert not set(rejected) & {*history[row["example_id"]], row["chosen_item"]}
        catalogue.index(rejected)
        assert all(0 <= value < 0.5 for value in row["epsilon"])
        used.update(row["strategy"])
    assert used == {"self_hard", "semantic", "popularity"}


def test_tokens_scores_and_log_probabilities_are_those_of_the_models(groups: Any, run: Outputs) -> None:
    recommender = load_recommender(run.sft)
    builder, catalogue = recommender.builder, recommender.catalogue
    oracle = Oracle.load(run.oracle, catalogue.item_ids)
    history = {row["example_id"]: row["history"] for row in read(run.examples).to_pylist()}
    for row in read(groups[0]).to_pylist()[::9]:
        seen = catalogue.index(history[row["example_id"]])
        items = catalogue.index([row["chosen_item"], *row["rejected_items"]])
        completions = [np.array(ids) for ids in (row["chosen_ids"], *row["rejected_ids"])]
        assert row["prompt_ids"] == builder.prompt(seen)[0].tolist()
        assert [ids.tolist() for ids in completions] == [builder.completion(item).tolist() for item in items]
        scores = oracle.score_items([seen], items[None])[0] / 0.7
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


@pytest.mark.parametrize(("actors", "part_groups"), [(2, None), (4, 300)])
def test_actors_and_sizes_of_parts_change_no_byte_of_a_group(
    actors: int, part_groups: int | None, groups: Any, run: Outputs, tmp_path: Path
) -> None:
    pairs(configure(actors=actors, cpus_per_actor=0.5, part_groups=part_groups), run, tmp_path)
    first, second = (sorted(folder.glob("part-*.parquet")) for folder in (groups[0], tmp_path))
    if part_groups is None:
        assert len(first) > 2
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    else:
        assert len(first) > len(second)
    one, other = (read(folder).sort_by("example_id").combine_chunks() for folder in (groups[0], tmp_path))
    assert one.equals(other)
    for name in ("epsilon", "oracle_scores", "ref_logps"):
        bits = [table[name].combine_chunks().flatten().to_numpy().tobytes() for table in (one, other)]
        assert bits[0] == bits[1]


def test_a_model_that_gives_no_numbers_ends_the_stage_with_one_sentence(
    run: Outputs, in_process: None, tmp_path: Path
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
        ({"engine": "vllm", "gpu": "no"}, "pairs.engine=vllm generates on GPUs, and with pairs.gpu=no"),
        ({"encoder": "/nowhere"}, "pairs.encoder=/nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_an_actor_starts(
    section: dict[str, Any], message: str, run: Outputs, ray_cluster: None, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        pairs(configure(**section), run, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_oracle_of_another_catalogue_is_refused(run: Outputs, in_process: None, tmp_path: Path) -> None:
    other = borrow(run, tmp_path / "run", "examples", "sft")
    save_oracle(other, SASRec(SASRecConfig(n_items=N_ITEMS, hidden_size=16)), np.arange(N_ITEMS))
    with pytest.raises(UserError, match="trained on another catalogue"):
        pairs(configure(), other, tmp_path / "out")


def test_a_model_of_another_catalogue_is_refused(run: Outputs, in_process: None, tmp_path: Path) -> None:
    other = borrow(run, tmp_path / "run", "oracle", "sft")
    other.examples.mkdir()
    tiny_catalogue(N_ITEMS - 1).save(other.examples / "_items.parquet")
    with pytest.raises(UserError, match="run `rosepo sft` again"):
        pairs(configure(), other, tmp_path / "out")


@pytest.fixture(scope="module")
def aligned(run: Outputs) -> Path:
    """Another model, as the first round's alignment would leave it."""
    model = tiny_model(max_length=128, seed=1)
    save_policy(
        Outputs(run.root).aligned, model, tiny_tokenizer(N_ITEMS), tiny_catalogue(N_ITEMS), configure(), stage="align"
    )
    return Outputs(run.root).aligned


@pytest.mark.parametrize(("moved", "reference"), [(False, "sft"), (True, "aligned")])
def test_a_later_round_samples_from_the_aligned_model_and_scores_by_the_reference(
    run: Outputs, aligned: Path, in_process: None, tmp_path: Path, moved: bool, reference: str
) -> None:
    hardest = {"strategies": {"self_hard": 1.0, "semantic": 1.0}, "self_hard_top": 1, "semantic_top": 1}
    pairs(configure(rounds=2, **hardest), Outputs(run.root, 2, moved), tmp_path)
    sampler, scorer = load_recommender(aligned), load_recommender(run.root / reference)
    catalogue, builder = sampler.catalogue, sampler.builder
    embeddings = encode_titles("policy", catalogue, aligned)
    history = {row["example_id"]: row["history"] for row in read(run.examples).to_pylist()}
    agree = {"self_hard": [], "semantic": []}
    for row in read(tmp_path).to_pylist()[::3]:
        prompt = np.array(row["prompt_ids"])
        seen = catalogue.index(history[row["example_id"]])
        allowed = np.setdiff1d(np.arange(N_ITEMS), [*seen, *catalogue.index([row["chosen_item"]])])
        with torch.inference_mode():
            titles = [builder.completion(item) for item in allowed]
            answers = plain_logps(sampler.model, [prompt] * len(titles), titles)[0].numpy()
            ids = [np.array(ids) for ids in (row["chosen_ids"], *row["rejected_ids"])]
            expected = plain_logps(scorer.model, [prompt] * len(ids), ids)[0].numpy()
        np.testing.assert_allclose(row["ref_logps"], expected, atol=1e-3)
        alike = embeddings[allowed] @ history_similarity(embeddings, [seen], 0.9)[0]
        best = {"self_hard": allowed[answers.argmax()], "semantic": allowed[alike.argmax()]}
        strategy = row["strategy"][0]
        agree[strategy].append(catalogue.item_ids[best[strategy]] == row["rejected_items"][0])
    assert min(map(len, agree.values())) > 10
    assert np.mean(agree["self_hard"]) > 0.9  # eight beams miss a title now and then
    assert np.mean(agree["semantic"]) == 1.0


def test_a_later_round_draws_other_titles(run: Outputs, aligned: Path, in_process: None, tmp_path: Path) -> None:
    config = configure(rounds=2, strategies={"popularity": 1.0}, groups_per_user=1)
    drawn = []
    for round in (1, 2):
        (tmp_path / str(round)).mkdir()
        pairs(config, Outputs(run.root, round), tmp_path / str(round))
        drawn.append(read(tmp_path / str(round))["rejected_items"].to_pylist())
    assert np.mean([one == other for one, other in zip(*drawn, strict=True)]) < 0.5


@pytest.mark.parametrize("kind", [UserError, StageError])
def test_what_an_actor_says_while_it_starts_is_passed_on(kind: type[Exception]) -> None:
    wrapped = RuntimeError(f"The actor died\n  File x\nrosepo.errors.{kind.__name__}: no such folder")
    found = _own_error(wrapped)
    assert isinstance(found, kind)
    assert str(found) == "no such folder"
    assert _own_error(RuntimeError("other")) is None


def first_ones(catalogue: Catalogue) -> Any:
    """A strategy of one's own: the first items of the catalogue that may be rejected."""

    def strategy(examples: Examples, count: int, draws: Draws) -> np.ndarray:
        allowed = [np.setdiff1d(np.arange(len(catalogue)), excluded) for excluded in examples.excluded.lists()]
        return np.stack([items[:count] for items in allowed])

    return strategy


def test_ones_own_strategy_is_called_by_its_import_path(run: Outputs, in_process: None, tmp_path: Path) -> None:
    own = "tests.sampling.test_pairs:first_ones"
    pairs(configure(strategies={own: 1.0, "uniform": 1.0}), run, tmp_path)
    catalogue = Catalogue.load(run.examples / "_items.parquet")
    seen = {row["example_id"]: [*row["history"], row["target"]] for row in read(run.examples).to_pylist()}
    used = set()
    for row in read(tmp_path).to_pylist():
        free = [item for item in catalogue.item_ids.tolist() if item not in seen[row["example_id"]]]
        for item, strategy in zip(row["rejected_items"], row["strategy"]):
            assert strategy != own or item in free[:3]
            used.add(strategy)
    assert used == {own, "uniform"}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no.such:thing", "cannot be imported: ModuleNotFoundError"),
        ("tests.sampling.test_pairs:none", "cannot be imported: AttributeError"),
        ("tests.sampling.test_pairs:N_USERS", "is int and not a callable"),
        ("tests.sampling.test_pairs:read", "cannot be called with a catalogue"),
    ],
)
def test_a_strategy_that_cannot_be_made_is_refused_before_work(
    path: str, words: str, run: Outputs, in_process: None, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"^pairs.strategies: {path} {words}"):
        pairs(configure(strategies={path: 1.0}), run, tmp_path)


def test_what_was_seen_before_a_cut_history_is_never_rejected(run: Outputs, in_process: None, tmp_path: Path) -> None:
    other = borrow(run, tmp_path / "run", "sft", "oracle")
    (other.examples / "_sequences").mkdir(parents=True)
    whole: dict[int, list[int]] = {}
    table = read(run.examples).to_pylist()
    for row in table:
        whole[row["user_id"]] = [*row["history"], row["target"]]
        row["history"] = row["history"][-1:]
    pq.write_table(pa.Table.from_pylist(table), other.examples / "part-00000.parquet")
    sequences = {"user_id": list(whole), "items": list(whole.values())}
    pq.write_table(pa.table(sequences), other.examples / "_sequences" / "part-00000.parquet")
    Catalogue.load(run.examples / "_items.parquet").save(other.examples / "_items.parquet")
    (tmp_path / "out").mkdir()
    pairs(configure(negatives=4), other, tmp_path / "out")
    for row in read(tmp_path / "out").to_pylist():
        position = int(row["example_id"].split(":")[1])
        assert not set(row["rejected_items"]) & set(whole[row["user_id"]][: position + 1])


def test_a_second_run_reads_the_references_log_probabilities_and_a_changed_model_does_not(
    run: Outputs, in_process: None, tmp_path: Path
) -> None:
    config = configure(strategies={"uniform": 1.0}, reference_cache=str(tmp_path / "cache"))
    tables = []
    for number, origin in enumerate(["computed", "from_cache"]):
        out = tmp_path / f"out-{number}"
        out.mkdir()
        figures = pairs(config, run, out)
        assert figures["reference"][origin] == figures["groups"]
        tables.append(read(out))
    assert tables[0].equals(tables[1])
    other = borrow(run, tmp_path / "run", "examples", "oracle")
    model = tiny_model(max_length=128, seed=1)
    save_policy(other.sft, model, tiny_tokenizer(N_ITEMS), tiny_catalogue(N_ITEMS), configure(), stage="sft")
    (tmp_path / "out-2").mkdir()
    figures = pairs(config, other, tmp_path / "out-2")
    assert figures["reference"] == {"computed": figures["groups"], "from_cache": 0}


def test_titles_alone_need_no_model_and_are_those_of_the_scored_table(
    run: Outputs, in_process: None, tmp_path: Path
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


def test_the_oracle_decides_what_rso_accepts(run: Outputs, in_process: None, tmp_path: Path) -> None:
    means = {}
    for temperature in (0.01, 100.0):
        out = tmp_path / str(temperature)
        out.mkdir()
        section = {"rso_from": "uniform", "rso_proposals": 10, "rso_temperature": temperature}
        pairs(configure(strategies={"rso": 1.0}, **section), run, out)
        scores = np.array(read(out)["oracle_scores"].to_pylist())
        means[temperature] = scores[:, 1:].mean()
    assert means[0.01] > means[100.0] + 0.1


def test_rso_on_the_models_answers_and_candidates_make_groups(run: Outputs, in_process: None, tmp_path: Path) -> None:
    other = borrow(run, tmp_path / "run", "sft", "oracle")
    other.examples.mkdir()
    Catalogue.load(run.examples / "_items.parquet").save(other.examples / "_items.parquet")
    table = read(run.examples)
    ids = tiny_catalogue(N_ITEMS).item_ids.tolist()
    past = zip(table["history"].to_pylist(), table["target"].to_pylist())
    lists = [[target, *[item for item in ids if item not in {*seen, target}][:4]] for seen, target in past]
    pq.write_table(table.append_column("candidates", pa.array(lists)), other.examples / "part-00000.parquet")
    (tmp_path / "out").mkdir()
    pairs(configure(strategies={"rso": 1.0, "candidates": 1.0}), other, tmp_path / "out")
    own = dict(zip(table["example_id"].to_pylist(), lists))
    used = set()
    for row in read(tmp_path / "out").to_pylist():
        for item, strategy in zip(row["rejected_items"], row["strategy"]):
            assert strategy != "candidates" or item in own[row["example_id"]]
            used.add(strategy)
    assert used == {"rso", "candidates"}


def test_candidates_without_lists_are_refused(run: Outputs, in_process: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set prepare.candidates to at least 2"):
        pairs(configure(strategies={"candidates": 1.0}), run, tmp_path)


def test_what_the_test_split_holds_changes_no_group(
    groups: Any, run: Outputs, in_process: None, tmp_path: Path
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
        pq.write_table(pa.Table.from_pylist(rows), other.examples / path.name)
    (tmp_path / "out").mkdir()
    pairs(configure(), other, tmp_path / "out")
    assert read(tmp_path / "out").equals(read(groups[0]))
