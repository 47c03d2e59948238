"""Figures of the candidate protocol: pure functions of answers, lists and targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rosepo.config import ScratchConfig, TemplateConfig
from rosepo.data.prompts import PromptBuilder
from rosepo.evaluation.candidates.free_answers import TitleMatcher, answer_limit, greedy_answers
from rosepo.evaluation.candidates.free_generation import SERIES, answer_series, named_candidate, protocol_table
from rosepo.evaluation.candidates.leakage_probes import learn_probes
from rosepo.lm.model.scratch import train_tokenizer
from rosepo.lm.rows.batch import collate
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.rows.rows import group_row
from tests.helpers import run_table, tiny_catalogue, tiny_model

LONG = "Dr. Strangelove or: How I Learned to Stop Worrying and Love the Bomb"


@pytest.mark.parametrize(
    ("answer", "titles", "place"),
    [
        ("Heat", ["Ran", "Heat"], 1),
        (" the answer is HEAT, I think", ["Ran", "Heat"], 1),
        ("Aliens", ["Alien", "Aliens"], -1),  # both are contained: not valid, although it is a candidate word by word
        ("Alien", ["Alien", "Aliens"], 0),
        ("Aliens", ["Ran", "Aliens"], 1),
        ("Aliens", ["Alien", "Ran"], 0),  # a hit on the wrong film
        ("Heat and Ran", ["Heat", "Ran"], -1),
        ("Hea", ["Heat"], -1),  # the other way round does not count
        ("千と千尋の神隠し", ["千と千尋", "Ran"], 0),
        ("ÅNGSTRÖM", ["ångström", "Ran"], 0),
        (LONG.upper(), ["Heat", LONG], 1),
        (LONG, ["Ran", LONG], -1),  # "Strangelove" has Ran in it
        (LONG[:40], [LONG], -1),
        ("Solaris (2)", ["Solaris", "Solaris (2)"], -1),
        ("", ["Ran"], -1),
    ],
)
def test_the_substring_rule_is_that_of_llaras_code(answer: str, titles: list[str], place: int) -> None:
    assert named_candidate(answer, titles) == place


def test_every_figure_counts_what_its_name_says() -> None:
    titles = ["Alien", "Aliens", "Heat", "Ran", "Solaris"]
    candidates = np.array([[0, 2], [1, 3], [2, 3], [4, 0], [1, 0]])
    targets = np.array([0, 3, 2, 4, 1])
    answers = [("alien", 0), ("Aliens", 1), ("Heat!", -1), ("Ran", 3), ("Aliens", 1)]
    texts, items = [text for text, _ in answers], np.array([item for _, item in answers])
    found = answer_series(texts, items, candidates, targets, titles)
    assert tuple(found) == SERIES
    nan = float("nan")
    np.testing.assert_array_equal(found["hr@1"], [1, 0, 0, 0, 1])
    np.testing.assert_array_equal(found["valid_ratio"], [1, 1, 0, 0, 1])
    np.testing.assert_array_equal(found["hr@1_valid"], [1, 0, nan, nan, 1])
    np.testing.assert_array_equal(found["hr@1_substring"], [1, 0, 1, 0, 0])
    np.testing.assert_array_equal(found["valid_ratio_substring"], [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(found["hr@1_substring_valid"], [1, 0, 1, nan, nan])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 9)), min_size=1, max_size=30))
def test_hits_over_all_answers_are_hits_over_valid_ones_times_their_share(rows: list[tuple[int, int]]) -> None:
    titles = [f"film {chr(97 + item)}" for item in range(10)]
    slots, items = (np.array(column) for column in zip(*rows))
    candidates = np.tile(np.arange(6), (len(rows), 1))
    texts = [titles[item] if item >= 0 else "?" for item in items]
    found = answer_series(texts, items, candidates, slots, titles)
    for rule in ("", "_substring"):
        valid = found[f"hr@1{rule}_valid"]
        among = 0.0 if np.isnan(valid).all() else float(np.nanmean(valid))
        assert found[f"hr@1{rule}"].mean() == pytest.approx(among * found[f"valid_ratio{rule}"].mean())
        assert ((found[f"hr@1{rule}"] == 0) | (found[f"valid_ratio{rule}"] == 1)).all()
    # Titles of which none is part of another: both rules agree.
    np.testing.assert_array_equal(found["hr@1"], found["hr@1_substring"])


def write_lists(folder: Path, rows: list[tuple[str, int, list[int]]]) -> None:
    table = run_table([dict(zip(("split", "target", "candidates"), row)) for row in rows])
    folder.mkdir()
    half = len(table) // 2
    pq.write_table(table.slice(0, half), folder / "part-00000.parquet")
    pq.write_table(table.slice(half), folder / "part-00001.parquet")


def test_probes_learn_from_other_lists_and_know_nothing_of_those_they_are_measured_on(tmp_path: Path) -> None:
    catalogue = tiny_catalogue(10)  # falling popularity
    rng = np.random.default_rng(0)
    rows = []
    for row in range(400):
        others = rng.permutation(10)[:4]
        target = int(others[2])  # in training always in the third slot
        if row % 2:
            others[[0, 2]] = others[[2, 0]]  # in the test lists always in the first
        rows.append(("test" if row % 2 else "train", target, others.tolist()))
    write_lists(tmp_path / "examples", rows)
    probes = learn_probes(tmp_path / "examples", "test", catalogue)
    assert probes.slots.tolist() == [0, 0, 200, 0]
    candidates = np.array([items for split, _, items in rows if split == "test"])
    targets = candidates[:, 0]
    found = probes.series(candidates, targets)
    assert set(found["slot"].tolist()) == {0.0}
    assert set(found["chance"].tolist()) == {0.25}
    np.testing.assert_array_equal(found["popularity"], candidates.argmin(axis=1) == 0)
    assert probes.series(candidates, candidates[:, 2])["slot"].mean() == 1.0


def test_a_slot_that_follows_from_the_target_is_found_by_the_probe_of_items_in_slots(tmp_path: Path) -> None:
    catalogue, rng = tiny_catalogue(10), np.random.default_rng(1)
    rows = []
    for row in range(600):
        items = rng.permutation(10)[:4]
        target = int(items[0])
        listed = items[1:].tolist()
        listed.insert(target % 4, target)  # shuffled by a generator seeded with the target
        rows.append(("train" if row < 400 else "test", target, listed))
    write_lists(tmp_path / "examples", rows)
    probes = learn_probes(tmp_path / "examples", "test", catalogue)
    tested = [row for row in rows if row[0] == "test"]
    candidates, targets = np.array([row[2] for row in tested]), np.array([row[1] for row in tested])
    found = {name: float(values.mean()) for name, values in probes.series(candidates, targets).items()}
    assert found["item_slot"] > 0.6
    assert found["slot"] < 0.45


def test_candidates_that_a_rule_cannot_tell_apart_share_the_hit(tmp_path: Path) -> None:
    write_lists(tmp_path / "examples", [("train", 0, [0, 1]), ("validation", 1, [1, 2])])
    probes = learn_probes(tmp_path / "examples", "test", tiny_catalogue(40))
    assert probes.slots.tolist() == [2, 0]
    count = tiny_catalogue(40).train_count
    equal = np.flatnonzero(count == count[-1])[:3]
    found = probes.series(np.array([equal, equal]), equal[:2])
    np.testing.assert_allclose(found["popularity"], [1 / 3, 1 / 3])
    np.testing.assert_allclose(found["item_slot"], [1 / 3, 1 / 3])  # none of them was a target


def test_parts_without_other_lists_are_passed_over_and_no_other_list_tells_nothing(tmp_path: Path) -> None:
    write_lists(tmp_path / "examples", [("train", 0, [0, 1]), ("test", 1, [1, 2])])  # a part each
    probes = learn_probes(tmp_path / "examples", "test", tiny_catalogue(5))
    assert (probes.slots.tolist(), probes.pair_counts.tolist()) == ([1, 0], [1])
    write_lists(tmp_path / "alone", [("test", 0, [0, 1]), ("test", 1, [2, 1])])
    probes = learn_probes(tmp_path / "alone", "test", tiny_catalogue(5))
    found = probes.series(np.array([[0, 1], [2, 1]]), np.array([0, 1]))
    for name in ("slot", "item_slot"):
        np.testing.assert_array_equal(found[name], [0.5, 0.5])


def test_slots_in_which_equally_many_targets_stood_share_the_hit(tmp_path: Path) -> None:
    rows = [("train", 0, [0, 1, 2]), ("train", 1, [0, 1, 2]), ("test", 2, [0, 2, 1])]
    write_lists(tmp_path / "examples", rows)
    probes = learn_probes(tmp_path / "examples", "test", tiny_catalogue(5))
    assert probes.slots.tolist() == [1, 1, 0]
    found = probes.series(np.array([[0, 2, 1], [0, 1, 2]]), np.array([2, 2]))
    np.testing.assert_array_equal(found["slot"], [0.5, 0.0])


def test_the_table_names_every_rate_and_every_probe() -> None:
    figure = {"value": 0.25, "low": 0.2, "high": 0.31}
    shown = protocol_table(
        {
            "n_examples": 1200,
            "n_users": 700,
            "n_candidates": 20,
            "models": {"sft": dict.fromkeys(SERIES, figure) | {"hr@1_valid": dict.fromkeys(figure, None)}},
            "probes": {"slot": figure, "popularity": figure},
        }
    )
    assert "out of 20 candidates, 1,200 examples of 700 users" in shown
    assert "0.250 [0.200, 0.310]" in shown
    assert "probe: slot" in shown
    assert "ValidRatio" in shown


@pytest.mark.slow
def test_a_model_that_has_learned_answers_freely_with_the_right_candidate() -> None:
    titles = [*(f"Film {chr(65 + number % 26)}{number}" for number in range(40)), "Alien", "Aliens"]
    template = TemplateConfig(candidates=True)
    tokenizer = train_tokenizer(titles, np.full(42, 50), ScratchConfig(vocab_size=500), template)
    builder, rng = PromptBuilder(tokenizer, titles, template, 128), np.random.default_rng(0)

    def examples(n: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """The right one of five is the next item of the ring."""
        histories = [(start + np.arange(3)) % 42 for start in rng.integers(42, size=n)]
        targets = np.array([(history[-1] + 1) % 42 for history in histories])
        free = [np.setdiff1d(np.arange(42), [*history, target]) for history, target in zip(histories, targets)]
        others = [rng.choice(items, 4, replace=False) for items in free]
        return histories, np.array([rng.permutation([t, *o]) for t, o in zip(targets, others)]), targets

    shape = {"max_length": 128, "hidden_size": 48, "initializer_range": 0.05}
    model = LogpsModel(tiny_model(vocab_size=len(tokenizer), **shape)).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(150):
        histories, candidates, targets = examples(16)
        prompts, _ = builder.prompts(histories, candidates)
        rows = zip(prompts, targets, strict=True)
        batch = collate([group_row(prompt, [builder.completion(int(target))]) for prompt, target in rows])
        optimizer.zero_grad()
        (-model(batch)[0].mean()).backward()
        optimizer.step()
    histories, candidates, targets = examples(60)
    prompts, _ = builder.prompts(histories, candidates)
    limit = answer_limit(model.model, builder)
    answers = greedy_answers(model.eval().model, prompts, builder.eos_id, limit)
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in answers]
    match = TitleMatcher(builder, titles)
    items = np.array([match(tokens, text) for tokens, text in zip(answers, texts, strict=True)])
    found = answer_series(texts, items, candidates, targets, titles)
    assert found["valid_ratio"].mean() > 0.8
    assert found["hr@1"].mean() > 0.8
