"""Titles that a model was not trained on: spelled, scored and found as its own are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.config import ScratchConfig, TemplateConfig
from rosepo.config.root import Config
from rosepo.data.catalogue import Catalogue
from rosepo.data.prompts import PromptBuilder
from rosepo.lm.cards.record import model_record
from rosepo.lm.model.added_titles import check_added, strange_titles
from rosepo.lm.model.model_folder import Recommender, load_builder, load_recommender, save_policy
from rosepo.lm.model.scratch import SPECIAL_TOKENS, train_tokenizer
from rosepo.lm.titles.beam_search import Decoder
from rosepo.utils.errors import UserError
from tests.evaluation.runs import tiny_config
from tests.helpers import tiny_catalogue, tiny_model, tiny_tokenizer

NEW = ["Alien", "Aliens", "Night", "Лето: 東京 (2031)", "Blue River Return Last (1981) II"]
HISTORIES = [np.array([3, 7, 1]), np.array([12]), np.array([31, 4, 33]), np.array([], dtype=np.int64)]
"""Titles 30 and above are new."""


def with_titles(catalogue: Catalogue, titles: list[str]) -> Catalogue:
    n = len(titles)
    return Catalogue(
        np.append(catalogue.item_ids, 900 + np.arange(n)),
        [*catalogue.titles, *titles],
        [*catalogue.categories, *[()] * n],
        np.append(catalogue.train_count, np.zeros(n, np.int64)),
        added=n,
    )


def saved(folder: Path, config: Config, *, whole: bool = False) -> Path:
    tokenizer = tiny_tokenizer(30, whole=whole)
    model = tiny_model(vocab_size=len(tokenizer))
    save_policy(folder, model, tokenizer, tiny_catalogue(30), model_record(config, "sft"))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights that was saved with thirty titles."""
    return saved(tmp_path_factory.mktemp("models") / "sft", tiny_config())


def forward_logps(recommender: Recommender, prompt: np.ndarray) -> np.ndarray:
    """log π of every title of the catalogue by a forward pass of its own."""
    found = []
    for item in range(len(recommender.catalogue)):
        completion = recommender.builder.completion(item).astype(np.int64)
        ids = torch.from_numpy(np.concatenate([prompt, completion])[None].astype(np.int64))
        with torch.inference_mode():
            logps = recommender.model(input_ids=ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        found.append(float(logps[range(len(completion)), completion].sum()))
    return np.array(found)


def test_new_titles_score_what_a_forward_pass_gives_and_the_others_as_before(folder: Path) -> None:
    own = load_recommender(folder)
    more = load_recommender(folder, catalogue=with_titles(own.catalogue, NEW))
    prompts = [more.builder.prompt(history)[0] for history in HISTORIES]
    before = [own.builder.prompt(history)[0] for history in HISTORIES if not (history >= 30).any()]
    for prompt, same in zip([prompts[0], prompts[1], prompts[3]], before, strict=True):
        np.testing.assert_array_equal(prompt, same)
    excluded = [*HISTORIES]
    items, scores = Decoder(more.model, more.builder, 40).top_k(prompts, excluded, 35)
    olds, old_scores = Decoder(own.model, own.builder, 40).top_k(
        prompts, [history[history < 30] for history in excluded], 30
    )
    for row, (prompt, history) in enumerate(zip(prompts, HISTORIES, strict=True)):
        expected = forward_logps(more, prompt)
        expected[history] = -np.inf
        found = items[row][items[row] >= 0]
        assert found.tolist() == np.argsort(-expected, kind="stable")[: len(found)].tolist()
        assert set(found.tolist()) == set(range(35)) - set(history.tolist())
        np.testing.assert_allclose(scores[row, : len(found)], expected[found], atol=1e-4)
        left = found < 30
        assert found[left].tolist() == olds[row][olds[row] >= 0].tolist()
        np.testing.assert_allclose(scores[row, : len(found)][left], old_scores[row, : left.sum()], atol=1e-5)


def test_a_new_title_stands_in_a_prompt_as_its_tokens(folder: Path) -> None:
    builder = load_builder(folder, with_titles(tiny_catalogue(30), NEW))
    tokens = tiny_tokenizer(30)(NEW[3], add_special_tokens=False)["input_ids"]
    prompt = builder.prompt(np.array([5, 33]))[0]
    expected = [*builder.head, *builder.title_ids(5), *builder.separator, *tokens, *builder.separator, *builder.tail]
    assert prompt.tolist() == expected


def test_a_model_that_ends_no_title_is_refused_with_what_to_do(tmp_path: Path) -> None:
    bare = ("model.template={prefix: '', separator: '', end: ''}",)
    folder = saved(tmp_path / "whole", tiny_config(*bare), whole=True)
    catalogue = with_titles(tiny_catalogue(30), NEW)
    for load in (load_recommender, load_builder):
        with pytest.raises(UserError, match=r"whole recommends: model\.template\.end is empty.*whole_titles=0"):
            load(folder, catalogue=catalogue)  # type: ignore[operator]
    assert len(load_recommender(folder).catalogue) == 30


@pytest.mark.parametrize(
    ("title", "words"),
    [("The <|eos|> End", "EOS token, which ends a title"), ("word " * 200, "no room for title")],
)
def test_a_title_that_cannot_be_written_is_refused(folder: Path, title: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_added(folder, with_titles(tiny_catalogue(30), [title]))


WHOLE = train_tokenizer(
    tiny_catalogue(30).titles, tiny_catalogue(30).train_count, ScratchConfig(vocab_size=320, whole_titles=30)
)


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1, max_size=30).filter(lambda text: not any(token in text for token in SPECIAL_TOKENS)))
@pytest.mark.parametrize("whole", [False, True])
def test_any_title_is_spelled_with_tokens_that_there_are(whole: bool, title: str) -> None:
    tokenizer = WHOLE if whole else tiny_tokenizer(30)
    ids = tokenizer(title, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == title
    assert tokenizer.unk_token_id is None
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_titles_of_tokens_that_no_title_taught_are_counted(folder: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(30, vocab_size=300)  # pieces; of 400 tokens each title has one for itself
    own = tokenizer(tiny_catalogue(30).titles, add_special_tokens=False)["input_ids"]
    taught = {token for ids in own for token in ids}
    titles = ["Ж", *{tokenizer.decode(ids[:-1]).strip() for ids in own if len(ids) > 2}]
    more = with_titles(tiny_catalogue(30), titles)
    builder = PromptBuilder(tokenizer, more.titles, TemplateConfig(), 256)
    expected = [set(tokenizer(title, add_special_tokens=False)["input_ids"]) <= taught for title in titles]
    assert strange_titles(builder, len(titles)) == expected.count(False)
    assert {*expected} == {False, True}
    assert strange_titles(builder, 0) == 0
    whole = saved(tmp_path / "whole", tiny_config(), whole=True)
    assert check_added(whole, with_titles(tiny_catalogue(30), NEW)) == len(NEW)
    pretrained = tmp_path / "pretrained"
    config = tiny_config(f"model.path={folder}")
    tokenizer = tiny_tokenizer(30)
    save_policy(pretrained, tiny_model(), tokenizer, tiny_catalogue(30), model_record(config, "sft"))
    assert check_added(pretrained, with_titles(tiny_catalogue(30), ["Ж"])) == 0


def test_a_longer_title_leaves_less_room_for_histories(folder: Path) -> None:
    """A prompt must hold any completion; only those that were nearly full lose an item."""
    own = load_builder(folder)
    more = load_builder(folder, with_titles(tiny_catalogue(30), ["Night " * 30]))
    longer = more.longest_completion - own.longest_completion
    assert longer > 0
    full = np.tile(np.arange(30), 20)
    kept = len(full) - more.dropped(full)
    assert kept < len(full) - own.dropped(full)
    assert kept > 0
