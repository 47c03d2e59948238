"""Constrained search against scoring every title of the catalogue one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from rosepo.config import TemplateConfig
from rosepo.data.prompts import PromptBuilder
from rosepo.data.titles import distinct_titles
from rosepo.lm.rows.logps import sharing_obstacle
from rosepo.lm.rows.plain_rows import plain_logps
from rosepo.lm.titles.beam_search import Decoder, best_per_row
from rosepo.lm.titles.cached_prompts import PlainRows
from rosepo.utils.errors import UserError
from tests.helpers import ATTENTIONS, tiny_builder, tiny_model, tiny_tokenizer

N_ITEMS = 30
HISTORIES = [[3], [0, 7, 12, 5], [], [1, 2], [29, 28, 27, 26, 25, 24, 23]]


@pytest.fixture(scope="module")
def builder() -> PromptBuilder:
    return tiny_builder(N_ITEMS)


def prompts_of(builder: PromptBuilder, histories: list[list[int]]) -> list[np.ndarray]:
    return [builder.prompt(history)[0] for history in histories]


def excluded_of(histories: list[list[int]]) -> list[np.ndarray]:
    return [np.array(history, dtype=np.int64) for history in histories]


@torch.inference_mode()
def score_all(model: torch.nn.Module, builder: PromptBuilder, prompt: np.ndarray) -> np.ndarray:
    """log π of every title after one prompt, one full row a title."""
    completions = [builder.completion(item) for item in range(len(builder))]
    return plain_logps(model, [prompt] * len(completions), completions)[0].numpy()


def check_exact(model: torch.nn.Module, builder: PromptBuilder, decoder: Decoder, k: int) -> None:
    prompts = prompts_of(builder, HISTORIES)
    items, scores = decoder.top_k(prompts, excluded_of(HISTORIES), k)
    for row, history in enumerate(HISTORIES):
        truth = score_all(model, builder, prompts[row])
        truth[history] = -np.inf
        best = np.argsort(-truth, kind="stable")[: min(k, len(builder) - len(set(history)))]
        assert items[row, : len(best)].tolist() == best.tolist()
        np.testing.assert_allclose(scores[row, : len(best)], truth[best], atol=1e-4)
        assert (items[row, len(best) :] == -1).all()
        assert np.isneginf(scores[row, len(best) :]).all()


@pytest.mark.parametrize(("family", "attention"), ATTENTIONS)
def test_wide_beams_rank_the_whole_catalogue_exactly(family: str, attention: str, builder: PromptBuilder) -> None:
    model = tiny_model(family)
    model.set_attn_implementation(attention)
    assert sharing_obstacle(model, 100) is None
    check_exact(model, builder, Decoder(model, builder, beams=N_ITEMS), k=N_ITEMS)


@pytest.mark.parametrize("template", [TemplateConfig(), TemplateConfig(prefix="", separator=" / ", suffix="next: ")])
def test_any_template_is_decoded_as_it_is_scored(template: TemplateConfig) -> None:
    builder, model = tiny_builder(N_ITEMS, template), tiny_model()
    check_exact(model, builder, Decoder(model, builder, beams=N_ITEMS), k=5)


def test_titles_of_one_token_that_nothing_ends_are_ranked_exactly_by_any_number_of_beams() -> None:
    builder, model = tiny_builder(N_ITEMS, TemplateConfig(prefix="", separator="", end=""), whole=True), tiny_model()
    check_exact(model, builder, Decoder(model, builder, beams=5), k=5)


def test_a_family_without_masks_of_its_own_is_decoded_row_by_row(builder: PromptBuilder) -> None:
    config = AutoConfig.for_model("bloom", vocab_size=400, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    assert "bloom" in (sharing_obstacle(model, 100) or "")
    check_exact(model, builder, Decoder(model, builder, beams=N_ITEMS), k=N_ITEMS)


def test_a_window_shorter_than_the_prompt_is_decoded_row_by_row(builder: PromptBuilder) -> None:
    model = tiny_model("mistral", sliding_window=24)
    decoder = Decoder(model, builder, beams=N_ITEMS)
    prompts = prompts_of(builder, HISTORIES)
    assert isinstance(decoder._forward(prompts), PlainRows)
    check_exact(model, builder, decoder, k=N_ITEMS)


def test_titles_that_begin_others_long_ones_and_other_scripts_are_found() -> None:
    titles = [
        "Alien",
        "Aliens",
        "Alien 3",
        "A",
        "千と千尋の神隠し",
        "Żółć",
        "x" * 150,
        "x" * 151,
        "Amélie",
        "Alien: Covenant",
    ]
    builder = PromptBuilder(tiny_tokenizer(), titles, TemplateConfig(prefix="", suffix=""), 512)
    model = tiny_model(max_length=512)
    prompts = [builder.prompt([0, 4])[0], builder.prompt([6])[0]]
    excluded = [np.array([0, 4]), np.array([6])]
    items, scores = Decoder(model, builder, beams=10).top_k(prompts, excluded, 10)
    assert sorted(items[0, :8].tolist()) == [1, 2, 3, 5, 6, 7, 8, 9]
    assert sorted(items[1, :9].tolist()) == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    for row in range(2):
        found = items[row][items[row] >= 0]
        np.testing.assert_allclose(scores[row, : len(found)], score_all(model, builder, prompts[row])[found], atol=2e-3)


CATALOGUES = {
    "duplicates": ["Hamlet", "Hamlet", "hamlet", "Hamlet (2)", "HAMLET  ", "Macbeth", "Hamlet 2", "Hamlet (3)"],
    "prefixes": ["Alien", "Aliens", "Alien 3", "A", "Al", "Alien: Covenant", "Aliens 2", "Alien³"],
    "scripts": ["千と千尋の神隠し", "千と千尋", "Żółć", "Ночь", "ليلة", "रात", "Amélie", "Ame\u0301lies", "👽", "👽👽"],
    "long": ["x" * 150, "x" * 151, "x" * 149 + "y", "y", "The " + "very " * 40 + "long title", "The very"],
}


@pytest.mark.parametrize("name", CATALOGUES)
@settings(max_examples=2)
@given(family=st.sampled_from(["llama", "gpt2"]), seed=st.integers(0, 2**16), data=st.data())
def test_beams_are_exact_on_catalogues_of_odd_titles(name: str, family: str, seed: int, data: st.DataObject) -> None:
    """Duplicate, nested, non-Latin and very long titles: every place and score is that of scoring title by title."""
    titles, _ = distinct_titles(CATALOGUES[name], range(len(CATALOGUES[name])), "disambiguate")
    builder = PromptBuilder(tiny_tokenizer(), titles, TemplateConfig(prefix="", suffix=""), 512)
    model = tiny_model(family, max_length=512, seed=seed)
    item = st.integers(0, len(titles) - 1)
    histories = data.draw(st.lists(st.lists(item, max_size=2, unique=True), min_size=1, max_size=3))
    prompts = prompts_of(builder, histories)
    items, scores = Decoder(model, builder, beams=len(titles)).top_k(prompts, excluded_of(histories), len(titles))
    for row, history in enumerate(histories):
        truth = score_all(model, builder, prompts[row])
        left = len(titles) - len(history)
        assert sorted(items[row, :left].tolist()) == sorted(set(range(len(titles))) - set(history))
        np.testing.assert_allclose(scores[row, :left], truth[items[row, :left]], rtol=1e-5, atol=1e-3)
        # Sums of some hundred float32 terms may swap titles that are no further apart than their rounding.
        assert (np.diff(truth[items[row, :left]]) <= 1e-3).all()
        assert (items[row, left:] == -1).all()


def test_answers_do_not_depend_on_the_batch(builder: PromptBuilder) -> None:
    model = tiny_model()
    histories = [list(range(start, start + 1 + start % 5)) for start in range(20)]
    prompts, excluded = prompts_of(builder, histories), excluded_of(histories)
    items, scores = Decoder(model, builder, beams=6).top_k(prompts, excluded, 6)
    for max_tokens in (1, 300):
        small = Decoder(model, builder, beams=6, max_tokens=max_tokens).top_k(prompts[::-1], excluded[::-1], 6)
        np.testing.assert_array_equal(small[0][::-1], items)
        np.testing.assert_allclose(small[1][::-1], scores, atol=1e-5)


@pytest.mark.parametrize("left", [0, 1, 3, 10])
def test_as_many_answers_come_back_as_titles_are_left(left: int, builder: PromptBuilder) -> None:
    prompts = prompts_of(builder, [[1]])
    usable = np.arange(left) * 3
    excluded = np.setdiff1d(np.arange(N_ITEMS), usable)
    items, _ = Decoder(tiny_model(), builder, beams=5).top_k(prompts, [excluded], 5)
    answers = items[0][items[0] >= 0]
    assert len(answers) == min(5, left)
    assert np.isin(answers, usable).all()
    assert len(set(answers.tolist())) == len(answers)


def test_narrow_beams_still_score_their_answers_exactly(builder: PromptBuilder) -> None:
    model = tiny_model(seed=3)
    prompts = prompts_of(builder, HISTORIES)
    items, scores = Decoder(model, builder, beams=3).top_k(prompts, excluded_of(HISTORIES), 3)
    for row, history in enumerate(HISTORIES):
        np.testing.assert_allclose(scores[row], score_all(model, builder, prompts[row])[items[row]], atol=1e-4)
        assert (np.diff(scores[row]) <= 0).all()
        assert not set(items[row].tolist()) & set(history)


def test_equal_scores_come_in_order_of_item_index(builder: PromptBuilder) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()  # every token equally likely: a title's score is its length
    items, scores = Decoder(model, builder, beams=N_ITEMS).top_k(
        prompts_of(builder, [[]]), [np.zeros(0, np.int64)], N_ITEMS
    )
    expected = sorted(range(N_ITEMS), key=lambda item: (len(builder.completion(item)), item))
    assert items[0].tolist() == expected
    assert (np.diff(scores[0]) <= 0).all()


def test_a_bfloat16_model_is_ranked_by_float32_logits(builder: PromptBuilder) -> None:
    model = tiny_model().to(torch.bfloat16)
    _, scores = Decoder(model, builder, beams=N_ITEMS).top_k(prompts_of(builder, [[5, 6]]), [np.array([5, 6])], N_ITEMS)
    scores = scores[0][np.isfinite(scores[0])]
    assert len(np.unique(scores)) == len(scores)


def test_no_examples_give_no_answers(builder: PromptBuilder) -> None:
    items, scores = Decoder(tiny_model(), builder, beams=5).top_k([], [], 5)
    assert items.shape == scores.shape == (0, 5)


@pytest.mark.parametrize("k", [0, 6])
def test_more_answers_than_beams_are_refused(k: int, builder: PromptBuilder) -> None:
    with pytest.raises(UserError, match="number of beams"):
        Decoder(tiny_model(), builder, beams=5).top_k(prompts_of(builder, [[1]]), [np.array([1])], k)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
@example(524288, 4)  # fewer scores that are no number than places
def test_the_best_of_whole_catalogues_are_those_that_a_sort_of_all_gives(seed: int, limit: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1, limit, 40, 700], size=6)
    row = np.repeat(np.arange(6), sizes)
    score = rng.choice([*rng.normal(size=5), -np.inf, np.nan], size=len(row))
    tie = rng.permutation(len(row))
    worse = np.where(np.isnan(score), np.finfo(float).max, np.minimum(-score, 1e300))  # what is no number ends last
    found = best_per_row(row, score, tie, limit)
    expected = [sorted(np.flatnonzero(row == one), key=lambda at: (worse[at], tie[at]))[:limit] for one in range(6)]
    assert found.tolist() == np.concatenate(expected).tolist()
