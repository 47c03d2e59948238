"""Wrong candidates: what `self_hard` rejects where prompts list what can be answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rosepo.config import Config, parse_config
from rosepo.data.random import stream
from rosepo.lm.cards.record import model_record
from rosepo.lm.model.model_folder import load_recommender, save_policy
from rosepo.lm.rows.plain_rows import plain_logps
from rosepo.run.paths import RunPaths
from rosepo.sampling.audit import audit_groups
from rosepo.sampling.pairs import pairs
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.sampling.strategies.self_hard import WrongCandidates
from rosepo.utils.errors import UserError
from tests.helpers import examples_of, tiny_builder, tiny_catalogue, tiny_model, tiny_tokenizer, with_candidates
from tests.sampling.runs import make_run, read

N_ITEMS = 12


@st.composite
def batches(draw: st.DrawFn) -> Examples:
    """Examples with candidates outside their history, the target at a random slot, and prompts."""
    n, size = draw(st.integers(1, 5)), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    orders = np.stack([rng.permutation(N_ITEMS) for _ in range(n)])
    histories = [row[: int(rng.integers(1, 6))] for row in orders]
    lists = orders[:, 6 : 6 + size]
    targets = lists[np.arange(n), rng.integers(size, size=n)]
    prompts = [np.arange(3)] * n
    made = examples_of([f"{row}:9" for row in range(n)], histories, targets, N_ITEMS, prompts)
    return replace(made, candidates=lists)


def scores_of_items(_prompts: Sequence[np.ndarray], items: np.ndarray) -> np.ndarray:
    """Any fixed preference among items, with ties."""
    return -((items * 7 % N_ITEMS) // 2).astype(np.float32)


def drawn(examples: Examples, top: int, count: int) -> np.ndarray:
    return WrongCandidates(scores_of_items, top)(examples, count, stream(examples.keys, 0, "self_hard"))


@given(batches(), st.integers(1, 4), st.integers(1, 6))
def test_wrong_candidates_are_those_of_the_list_and_never_the_target(examples: Examples, top: int, count: int) -> None:
    items = drawn(examples, top, count)
    assert items.shape == (len(examples), count)
    assert examples.candidates is not None
    for row, target in enumerate(examples.targets):
        wrong = set(examples.candidates[row].tolist()) - {target}
        found = [item for item in items[row].tolist() if item >= 0]
        assert len(set(found)) == len(found) == min(count, len(wrong))
        assert set(found) <= wrong


@given(batches())
def test_the_hardest_wrong_candidate_is_the_likeliest_wherever_it_stands(examples: Examples) -> None:
    assert examples.candidates is not None
    lists, targets = examples.candidates.tolist(), examples.targets.tolist()
    expected = [
        min((item for item in row if item != target), key=lambda item: ((item * 7 % N_ITEMS) // 2, item))
        for row, target in zip(lists, targets, strict=True)
    ]
    assert drawn(examples, 1, 1)[:, 0].tolist() == expected
    turned = replace(examples, candidates=examples.candidates[:, ::-1])
    np.testing.assert_array_equal(drawn(turned, 3, 2), drawn(examples, 3, 2))


def test_prompts_and_candidates_are_needed() -> None:
    plain: Any = examples_of(["a"], [np.array([1])], np.array([2]), N_ITEMS)
    with pytest.raises(ValueError, match="prompts and the candidates"):
        drawn(plain, 1, 1)


@pytest.fixture(scope="module")
def listed_run(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run whose examples have five candidates each and whose model's prompts list them."""
    outputs = make_run(tmp_path_factory.mktemp("listed"))
    rng, catalogue = np.random.default_rng(0), tiny_catalogue(30)
    for path in sorted(outputs.examples.glob("part-*.parquet")):
        table = pq.read_table(path).slice(0, 150)
        lists = []
        for history, target in zip(table["history"].to_pylist(), table["target"].to_pylist(), strict=True):
            free = np.setdiff1d(np.arange(30), [*history, target])
            lists.append(rng.permutation([target, *rng.choice(free, 4, replace=False)]).tolist())
        pq.write_table(with_candidates(table, lists), path)
    tokenizer = tiny_tokenizer(30)
    save_policy(outputs.sft, tiny_model(), tokenizer, catalogue, model_record(listing_config(), "sft"))
    return outputs


def listing_config(**pairs: object) -> Config:
    return parse_config(
        {
            "seed": 5,
            "model": {"max_length": 256, "template": {"candidates": True}},
            "prepare": {"candidates": 5},
            "pairs": {"negatives": 2, "reference_cache": "no", "self_hard_top": 1, **pairs},
        }
    )


def test_groups_of_prompts_that_list_candidates(listed_run: RunPaths, in_process: None, tmp_path: Path) -> None:
    figures = pairs(listing_config(strategies={"self_hard": 1.0}), listed_run, tmp_path)
    assert figures["strategies"]["self_hard"]["fallbacks"] == 0
    recommender = load_recommender(listed_run.sft)
    builder = recommender.builder
    examples = {row["example_id"]: row for row in read(listed_run.examples).to_pylist()}
    for row in [*read(tmp_path).to_pylist(), *pq.read_table(tmp_path / "_validation.parquet").to_pylist()][::9]:
        example = examples[row["example_id"]]
        candidates = example["candidates"]
        prompt, _ = builder.prompt(example["history"], candidates=candidates)
        assert row["prompt_ids"] == prompt.tolist()
        titles = [builder.completion(item) for item in candidates]
        with torch.inference_mode():
            logps = plain_logps(recommender.model, [prompt] * len(titles), titles)[0].numpy()
        ranked = [candidates[place] for place in np.argsort(-logps)]
        assert row["rejected_items"] == [item for item in ranked if item != row["chosen_item"]][:2]
        expected = [logps[candidates.index(item)] for item in (row["chosen_item"], *row["rejected_items"])]
        np.testing.assert_allclose(row["ref_logps"], expected, atol=1e-3)
    audited = audit_groups(tmp_path, listed_run.examples, builder)
    assert audited["prompts_cut"] == 0
    with pytest.raises(UserError, match="has another prompt than its history gives"):
        audit_groups(tmp_path, listed_run.examples, tiny_builder())


def test_examples_without_lists_are_refused_before_sampling(run: RunPaths, in_process: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no candidate lists, which .* prompts list"):
        pairs(listing_config(), run, tmp_path)
