from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rosepo.config import ScratchConfig, TemplateConfig
from rosepo.data.prompts import PromptBuilder
from rosepo.lm.model.scratch import train_tokenizer
from rosepo.utils.errors import UserError

TITLES = ["Heat (1995)", "Ran", "The Third Man", "Amélie", "8½", "Heat"]


def tokenizer(bos: bool = True, eos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose merges cross spaces: the boundary between parts would move if texts were joined first."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([f"{a}\n{b}" for a in TITLES for b in TITLES], trainer)
    special = {"bos_token": "<s>" if bos else None, "eos_token": "</s>" if eos else None}
    return PreTrainedTokenizerFast(tokenizer_object=core, **{k: v for k, v in special.items() if v})


def build(template: TemplateConfig | None = None, max_length: int = 128, **kind: bool) -> PromptBuilder:
    return PromptBuilder(tokenizer(**kind), TITLES, template or TemplateConfig(), max_length)


def test_a_prompt_is_its_parts_joined_in_token_space() -> None:
    builder = build(TemplateConfig(prefix="Liked:\n", separator="\n", suffix="Next: {eos}"))
    prompt, dropped = builder.prompt([2, 0])
    parts = [
        builder.head,
        builder.title_ids(2),
        builder.separator,
        builder.title_ids(0),
        builder.separator,
        builder.tail,
    ]
    assert prompt.dtype == np.int32
    assert dropped == 0
    assert prompt.tolist() == np.concatenate(parts).tolist()
    assert builder.tail[-1] == builder.eos_id
    assert tokenizer().decode(prompt) == "<s>Liked:\nThe Third Man\nHeat (1995)\nNext: </s>"


def test_a_completion_is_the_title_and_one_eos() -> None:
    builder = build()
    for item, title in enumerate(TITLES):
        ids = builder.completion(item)
        assert ids.dtype == np.int32
        assert (ids == builder.eos_id).sum() == 1
        assert tokenizer().decode(ids) == f"{title}</s>"
    assert builder.longest_completion == max(len(builder.completion(item)) for item in range(len(TITLES)))


def test_a_completion_that_nothing_ends_is_the_title_alone() -> None:
    template = TemplateConfig(prefix="", separator="", end="")
    whole = train_tokenizer(TITLES, np.ones(len(TITLES), int), ScratchConfig(vocab_size=400, whole_titles=len(TITLES)))
    builder = PromptBuilder(whole, TITLES, template, 32)
    assert [whole.decode(builder.completion(item)) for item in range(len(TITLES))] == list(TITLES)
    assert (builder.longest_completion, builder.template_tokens) == (1, 1)
    assert whole.decode(builder.prompt([2, 0])[0]) == f"<|bos|>{TITLES[2]}{TITLES[0]}"


def test_a_title_that_begins_another_needs_something_that_ends_it() -> None:
    titles = ["Heat", "Heat (1995)", "Ran"]
    words = train_tokenizer(titles, np.ones(3, int), ScratchConfig(vocab_size=300, split_words=True))
    told = r"template\.end is empty, and the tokens of title 'Heat' begin those of 'Heat \(1995\)'.*whole_titles=3"
    with pytest.raises(UserError, match=told):
        PromptBuilder(words, titles, TemplateConfig(prefix="", separator="", end=""), 64)


def test_without_bos_the_prompt_begins_with_the_prefix() -> None:
    assert tokenizer(bos=False).decode(build(bos=False).prompt([1])[0]).startswith("Titles that")


def test_candidates_stand_before_the_history() -> None:
    builder = build(TemplateConfig(prefix="Liked:\n", candidates=True, candidates_prefix="Of:\n"))
    prompt, _ = builder.prompt([1], candidates=[4, 2])
    assert tokenizer().decode(prompt) == "<s>Of:\n8½\nThe Third Man\nLiked:\nRan\n"


def test_candidates_are_given_where_the_template_lists_them_and_nowhere_else() -> None:
    with pytest.raises(ValueError, match="candidates=None do not go with a template of candidates=True"):
        build(TemplateConfig(candidates=True)).prompt([1])
    with pytest.raises(ValueError, match="do not go with a template of candidates=False"):
        build().prompt([1], candidates=[4, 2])
    with pytest.raises(UserError, match=r"these examples have none: set prepare\.candidates"):
        build(TemplateConfig(candidates=True)).prompts([np.array([1])])


def test_many_prompts_are_those_of_each_history_with_its_own_candidates() -> None:
    histories, lists = [np.array([1]), np.array([0, 3] * 40)], np.array([[4, 2], [2, 5]])
    listing, plain = build(TemplateConfig(candidates=True), max_length=96), build(max_length=96)
    for builder, rows in ((listing, lists), (plain, [None, None])):
        prompts, dropped = builder.prompts(histories, lists)
        one_by_one = [builder.prompt(history, candidates=row) for history, row in zip(histories, rows, strict=True)]
        assert [prompt.tolist() for prompt in prompts] == [prompt.tolist() for prompt, _ in one_by_one]
        assert dropped == [count for _, count in one_by_one]
        assert dropped[1] > 0


def test_long_prompts_lose_their_oldest_items_alone() -> None:
    template = TemplateConfig(prefix="", suffix="?")
    whole, longest = build(template).prompt([2, 0, 3, 1])[0], build(template).longest_completion
    for max_length in range(len(whole) + longest, 16, -1):
        builder = build(template, max_length=max_length)
        prompt, dropped = builder.prompt([2, 0, 3, 1])
        assert len(prompt) + longest <= max_length
        assert prompt.tolist() == build(template).prompt([2, 0, 3, 1][dropped:])[0].tolist()
        if dropped:
            assert len(build(template).prompt([2, 0, 3, 1][dropped - 1 :])[0]) + longest > max_length
    listing = TemplateConfig(prefix="", suffix="?", candidates=True)
    kept = build(listing, max_length=64).prompt([2] * 50, candidates=[0, 1])[0]
    assert tokenizer().decode(kept).startswith("<s>Choose from:\nHeat (1995)\nRan\nThe Third Man\n")


def test_a_prompt_without_room_for_one_item_is_an_error() -> None:
    builder = build(TemplateConfig(candidates=True), max_length=64)
    with pytest.raises(UserError, match=r"max_length=64 has no room for a history item.*with its candidates.*raise it"):
        builder.prompt([0], candidates=[0, 1, 2, 3, 4, 5] * 4)


def test_a_title_that_does_not_fit_beside_itself_is_an_error() -> None:
    template, titles = (
        TemplateConfig(prefix="Liked:\n", suffix="Next: "),
        [*TITLES, "Dr. Strangelove or: How I Learned"],
    )
    whole = PromptBuilder(tokenizer(), titles, template, 512)
    tokens = int(whole.lengths[-1])
    needed = len(whole.prompt([6])[0]) + len(whole.completion(6))
    assert tokens > whole.lengths[:-1].max()
    assert whole.prompt([6])[0].tolist() == PromptBuilder(tokenizer(), titles, template, needed).prompt([6])[0].tolist()
    words = rf"has no room for title 'Dr\. Strange.*it takes {tokens} tokens, .*; raise it to {needed}"
    with pytest.raises(UserError, match=words):
        PromptBuilder(tokenizer(), titles, template, needed - 1)


def test_titles_that_no_model_could_tell_apart_are_errors() -> None:
    template = TemplateConfig()
    with pytest.raises(UserError, match="titles 'Ran' and 'Ran' have the same tokens"):
        PromptBuilder(tokenizer(), ["Ran", "Heat", "Ran"], template, 64)
    with pytest.raises(UserError, match="title '' has no tokens"):
        PromptBuilder(tokenizer(), ["Ran", ""], template, 64)
    with pytest.raises(UserError, match=r"title 'A</s>B' holds the text of the tokenizer's EOS"):
        PromptBuilder(tokenizer(), ["Ran", "A</s>B"], template, 64)
    with pytest.raises(UserError, match="no EOS token"):
        build(eos=False)
    with pytest.raises(UserError, match="catalogue is empty"):
        PromptBuilder(tokenizer(), [], template, 64)
