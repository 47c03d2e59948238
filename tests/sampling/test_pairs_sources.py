"""Where rejected titles and log-probabilities come from: later rounds, strategies of one's own, rso, the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.special import softmax

from rosepo.data.catalogue import Catalogue
from rosepo.data.random import Draws
from rosepo.lm.cards.record import model_record
from rosepo.lm.model.model_folder import load_recommender, save_policy
from rosepo.lm.rows.plain_rows import plain_logps
from rosepo.lm.titles.beam_search import Decoder
from rosepo.lm.titles.title_embeddings import encode_titles, history_similarity
from rosepo.oracle.load import load_scorer
from rosepo.run.paths import RunPaths
from rosepo.sampling.audit import audit_groups
from rosepo.sampling.pairs import pairs
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.utils.errors import UserError
from tests.helpers import tiny_catalogue, tiny_model, tiny_tokenizer, with_candidates
from tests.sampling.runs import N_ITEMS, borrow, configure, read


@pytest.fixture(scope="module")
def aligned(run: RunPaths) -> Path:
    """Another model, as the first round's alignment would leave it."""
    model = tiny_model(max_length=128, seed=1)
    save_policy(
        RunPaths(run.root).aligned,
        model,
        tiny_tokenizer(N_ITEMS),
        tiny_catalogue(N_ITEMS),
        model_record(configure(), "align"),
    )
    return RunPaths(run.root).aligned


@pytest.mark.parametrize(("moved", "reference"), [(False, "sft"), (True, "aligned")])
def test_a_later_round_samples_from_the_aligned_model_and_scores_by_the_reference(
    run: RunPaths, aligned: Path, in_process: None, tmp_path: Path, moved: bool, reference: str
) -> None:
    hardest = {"strategies": {"self_hard": 1.0, "semantic": 1.0}, "self_hard_top": 1, "semantic_top": 1}
    pairs(configure(rounds=2, **hardest), RunPaths(run.root, 2, moved), tmp_path)
    sampler, scorer = load_recommender(aligned), load_recommender(run.root / reference)
    catalogue, builder = sampler.catalogue, sampler.builder
    embeddings = encode_titles("policy", catalogue, aligned)
    history = {row["example_id"]: row["history"] for row in read(run.examples).to_pylist()}
    agree = {"self_hard": [], "semantic": []}
    for row in read(tmp_path).to_pylist()[::3]:
        prompt = np.array(row["prompt_ids"])
        seen = np.array(history[row["example_id"]])
        allowed = np.setdiff1d(np.arange(N_ITEMS), [*seen, row["chosen_item"]])
        with torch.inference_mode():
            titles = [builder.completion(item) for item in allowed]
            answers = plain_logps(sampler.model, [prompt] * len(titles), titles)[0].numpy()
            ids = [np.array(ids) for ids in (row["chosen_ids"], *row["rejected_ids"])]
            expected = plain_logps(scorer.model, [prompt] * len(ids), ids)[0].numpy()
        np.testing.assert_allclose(row["ref_logps"], expected, atol=1e-3)
        alike = embeddings[allowed] @ history_similarity(embeddings, [seen], 0.9)[0]
        best = {"self_hard": allowed[answers.argmax()], "semantic": allowed[alike.argmax()]}
        strategy = row["strategy"][0]
        agree[strategy].append(best[strategy] == row["rejected_items"][0])
    assert min(map(len, agree.values())) > 10
    assert np.mean(agree["self_hard"]) > 0.9  # eight beams miss a title now and then
    assert np.mean(agree["semantic"]) == 1.0


def test_a_later_round_draws_other_titles(run: RunPaths, aligned: Path, in_process: None, tmp_path: Path) -> None:
    config = configure(rounds=2, strategies={"popularity": 1.0}, groups_per_user=1)
    drawn = []
    for round in (1, 2):
        (tmp_path / str(round)).mkdir()
        pairs(config, RunPaths(run.root, round), tmp_path / str(round))
        drawn.append(read(tmp_path / str(round))["rejected_items"].to_pylist())
    assert np.mean([one == other for one, other in zip(*drawn, strict=True)]) < 0.5


def first_ones(catalogue: Catalogue) -> Any:
    """A strategy of one's own: the first items of the catalogue that may be rejected."""

    def strategy(examples: Examples, count: int, draws: Draws) -> np.ndarray:
        allowed = [np.setdiff1d(np.arange(len(catalogue)), excluded) for excluded in examples.excluded.lists()]
        return np.stack([items[:count] for items in allowed])

    return strategy


def test_ones_own_strategy_is_called_by_its_import_path(run: RunPaths, in_process: None, tmp_path: Path) -> None:
    own = "tests.sampling.test_pairs_sources:first_ones"
    pairs(configure(strategies={own: 1.0, "uniform": 1.0}), run, tmp_path)
    seen = {row["example_id"]: [*row["history"], row["target"]] for row in read(run.examples).to_pylist()}
    used = set()
    for row in read(tmp_path).to_pylist():
        free = [item for item in range(N_ITEMS) if item not in seen[row["example_id"]]]
        for item, strategy in zip(row["rejected_items"], row["strategy"]):
            assert strategy != own or item in free[:3]
            used.add(strategy)
    assert used == {own, "uniform"}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no.such:thing", "cannot be imported: ModuleNotFoundError"),
        ("tests.sampling.runs:none", "cannot be imported: AttributeError"),
        ("tests.sampling.runs:N_USERS", "is int and not a callable"),
        ("tests.sampling.runs:read", "cannot be called with a catalogue"),
    ],
)
def test_a_strategy_that_cannot_be_made_is_refused_before_work(
    path: str, words: str, run: RunPaths, in_process: None, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"^pairs.strategies: {path} {words}"):
        pairs(configure(strategies={path: 1.0}), run, tmp_path)


def test_the_oracle_decides_what_rso_accepts(run: RunPaths, in_process: None, tmp_path: Path) -> None:
    means = {}
    for temperature in (0.01, 100.0):
        out = tmp_path / str(temperature)
        out.mkdir()
        section = {"rso_from": "uniform", "rso_proposals": 10, "rso_temperature": temperature}
        pairs(configure(strategies={"rso": 1.0}, **section), run, out)
        scores = np.array(read(out)["oracle_scores"].to_pylist())
        means[temperature] = scores[:, 1:].mean()
    assert means[0.01] > means[100.0] + 0.1


def test_titles_drawn_from_the_oracle_and_the_policy_make_groups(
    run: RunPaths, in_process: None, tmp_path: Path
) -> None:
    for name in ("oracle", "policy", "both"):
        (tmp_path / name).mkdir()
    pairs(configure(strategies={"oracle": 1.0}, oracle_top=5), run, tmp_path / "oracle")
    pairs(configure(strategies={"policy": 1.0}, policy_top=3), run, tmp_path / "policy")
    pairs(configure(strategies={"policy": 1.0, "oracle": 1.0}, oracle_whole=True), run, tmp_path / "both")
    catalogue = Catalogue.load(run.examples / "_items.parquet")
    recommender, oracle = load_recommender(run.sft), load_scorer(run.oracle, catalogue)
    decoder = Decoder(recommender.model, recommender.builder, beams=8)
    source = {row["example_id"]: row for row in read(run.examples).to_pylist()}
    drawn, free = read(tmp_path / "oracle").to_pylist(), read(tmp_path / "policy").to_pylist()
    assert "oracle_rest" not in free[0]
    for row, other in list(zip(drawn, free, strict=True))[::40]:
        example = source[row["example_id"]]
        history, known = np.array(example["history"]), [*example["history"], example["target"]]
        scores = oracle.score_all([row["user_id"]], [history])[0] / oracle.tau
        scores[known] = -np.inf
        best = np.sort(scores)[-5:]
        assert row["oracle_rest"] == pytest.approx(np.log(np.exp(best.astype(np.float64)).sum()), abs=1e-4)
        assert np.isin(row["rejected_items"], np.argsort(scores)[-5:]).all()
        answers, _ = decoder.top_k([recommender.builder.prompt(history)[0]], [np.array(known)], 3)
        assert set(other["rejected_items"]) <= set(answers[0].tolist())
    both = read(tmp_path / "both")
    assert {name for names in both["strategy"].to_pylist() for name in names} == {"policy", "oracle"}
    whole = both["oracle_shares"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(both), -1)
    for row, found in list(zip(both.to_pylist(), whole, strict=True))[::40]:
        example = source[row["example_id"]]
        known = np.array([*example["history"], example["target"]])
        scores = oracle.score_all([row["user_id"]], [known[:-1]])[0].astype(np.float64) / oracle.tau
        scores[known] = -np.inf
        assert np.allclose(found, softmax(scores), rtol=2e-3, atol=1e-7)
    assert audit_groups(tmp_path / "both", run.examples, recommender.builder)["groups"] == len(drawn)


def test_rso_on_the_models_answers_and_candidates_make_groups(run: RunPaths, in_process: None, tmp_path: Path) -> None:
    other = borrow(run, tmp_path / "run", "sft", "oracle")
    other.examples.mkdir()
    Catalogue.load(run.examples / "_items.parquet").save(other.examples / "_items.parquet")
    table = read(run.examples)
    past = zip(table["history"].to_pylist(), table["target"].to_pylist())
    lists = [[target, *[item for item in range(N_ITEMS) if item not in {*seen, target}][:4]] for seen, target in past]
    pq.write_table(with_candidates(table, lists), other.examples / "part-00000.parquet")
    (tmp_path / "out").mkdir()
    pairs(configure(strategies={"rso": 1.0, "candidates": 1.0}), other, tmp_path / "out")
    own = dict(zip(table["example_id"].to_pylist(), lists))
    used = set()
    for row in read(tmp_path / "out").to_pylist():
        for item, strategy in zip(row["rejected_items"], row["strategy"]):
            assert strategy != "candidates" or item in own[row["example_id"]]
            used.add(strategy)
    assert used == {"rso", "candidates"}


def test_candidates_without_lists_are_refused(run: RunPaths, in_process: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set prepare.candidates to at least 2"):
        pairs(configure(strategies={"candidates": 1.0}), run, tmp_path)


def test_a_second_run_reads_the_references_log_probabilities_and_a_changed_model_does_not(
    run: RunPaths, in_process: None, tmp_path: Path
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
    save_policy(other.sft, model, tiny_tokenizer(N_ITEMS), tiny_catalogue(N_ITEMS), model_record(configure(), "sft"))
    (tmp_path / "out-2").mkdir()
    figures = pairs(config, other, tmp_path / "out-2")
    assert figures["reference"] == {"computed": figures["groups"], "from_cache": 0}
