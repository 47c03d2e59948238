"""Prompts inside the chat templates of instruct models: the ids are those of Transformers' own call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from rosepo.config import TemplateConfig
from rosepo.data.chat import message
from rosepo.data.prompts import PromptBuilder
from rosepo.utils.errors import UserError
from tests.data.chats import CHATML, CHATS, LETTERS, LLAMA3, TITLES, chat_tokenizer

TOKENIZERS = {family: chat_tokenizer(family) for family in CHATS}
NO_SYSTEM = ("gemma", "mistral")


def build(tokenizer: PreTrainedTokenizerFast, titles: Sequence[str] = TITLES, **template: object) -> PromptBuilder:
    return PromptBuilder(tokenizer, titles, TemplateConfig(**template), 512)


def called(
    tokenizer: PreTrainedTokenizerFast, builder: PromptBuilder, titles: Sequence[str], listed: Sequence[str] = ()
) -> list[int]:
    """The ids that Transformers makes of the messages."""
    assert builder.chat is not None
    system = [{"role": "system", "content": builder.template.system}] if builder.template.system else []
    messages = [*system, {"role": "user", "content": message(builder.template, titles, listed)}]
    options = dict(builder.chat.options)
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)["input_ids"]


NAMES = st.text(LETTERS + " ", min_size=1, max_size=20).map(str.strip).filter(lambda name: name and "<" not in name)


@settings(max_examples=40, deadline=None)
@given(st.lists(NAMES, min_size=3, max_size=8, unique=True), st.data())
@pytest.mark.parametrize("family", CHATS)
def test_a_prompt_has_the_ids_of_the_chat_templates_own_call(
    family: str, names: list[str], data: st.DataObject
) -> None:
    tokenizer = TOKENIZERS[family]
    listing = data.draw(st.booleans())
    system = "" if family in NO_SYSTEM else data.draw(st.sampled_from(["", "You know films.", " You know films.\n"]))
    builder = build(tokenizer, names, candidates=listing, system=system)
    items = data.draw(st.lists(st.integers(0, len(names) - 1), max_size=5))
    listed = data.draw(st.permutations(range(len(names)))) if listing else None
    prompt, dropped = builder.prompt(items, listed)
    expected = called(tokenizer, builder, [names[item] for item in items], [names[item] for item in listed or []])
    assert (dropped, prompt.dtype) == (0, np.int32)
    assert prompt.tolist() == expected
    assert builder.read_alike(tokenizer, names) == len(names)


@pytest.mark.parametrize("family", CHATS)
def test_the_messages_of_many_titles_are_those_of_the_prompt(family: str) -> None:
    tokenizer, builder = TOKENIZERS[family], build(TOKENIZERS[family])
    prompt, _ = builder.prompt(range(len(TITLES)))
    assert prompt.tolist() == called(tokenizer, builder, TITLES)
    text = tokenizer.decode(prompt)
    assert text.count("Next title:") == text.count("oldest first:") == 1
    bos = tokenizer.bos_token_id
    assert bos is None or list(prompt[:2]).count(bos) == 1


def test_where_a_title_shares_a_token_with_the_lines_end_its_parts_alone_would_not_do() -> None:
    tokenizer = TOKENIZERS["llama3"]
    builder = build(tokenizer)
    flat, lengths = builder.pieces([0])
    assert tokenizer.convert_ids_to_tokens(flat)[-1] == ")Ċ"
    assert [*builder.title_ids(0), *builder.separator] != flat.tolist()
    assert builder.piece_lengths[0] == lengths[0] == len(builder.title_ids(0))
    assert builder.piece_lengths[1] == len(builder.title_ids(1)) + 1


def test_titles_whose_joints_do_not_hold_are_counted() -> None:
    tokenizer = TOKENIZERS["qwen3"]
    builder = build(tokenizer, separator=", ")
    whole = [builder.prompt([item, item])[0].tolist() == called(tokenizer, builder, [title, title])
             for item, title in enumerate(TITLES)]  # fmt: skip
    assert 0 < builder.read_alike(tokenizer, TITLES) == sum(whole) < len(TITLES)
    with pytest.raises(ValueError, match="without a chat template"):
        build(tokenizer, chat="no").read_alike(tokenizer, TITLES)


@pytest.mark.parametrize("family", CHATS)
def test_a_completion_ends_as_the_assistants_turn_does(family: str) -> None:
    tokenizer, end = TOKENIZERS[family], CHATS[family][-1]
    builder = build(tokenizer)
    assert builder.template.end == end
    assert builder.stop_id == tokenizer.convert_tokens_to_ids(end)
    assert builder.completion(3).tolist() == [*builder.title_ids(3), builder.stop_id]
    given_end = build(tokenizer, end="{eos}")
    assert given_end.completion(3)[-1] == given_end.stop_id == tokenizer.eos_token_id


def test_what_is_filled_in_is_what_a_record_reads_back() -> None:
    for family, tokenizer in TOKENIZERS.items():
        builder = build(tokenizer)
        again = build(tokenizer, **builder.template.model_dump())
        assert (again.template, again.chat) == (builder.template, builder.chat), family
        assert again.stop_id == builder.stop_id
    plain = build(TOKENIZERS["qwen3"], chat="no")
    assert plain.template == TemplateConfig(chat="no")
    assert build(TOKENIZERS["qwen3"], **plain.template.model_dump()).chat is None


@pytest.mark.parametrize(
    "template", [{"chat": "no"}, {"separator": "{eos}"}, {"prefix": "{eos}Liked:\n"}, {"suffix": "Next:{eos}"}]
)
def test_without_a_chat_template_a_prompt_is_what_it_was(template: dict[str, str]) -> None:
    plain = chat_tokenizer("llama3")
    plain.chat_template = None
    builder, without = build(TOKENIZERS["llama3"], **template), build(plain, **template)
    assert builder.chat is None
    assert builder.template.chat == "no"
    assert builder.prompt([0, 4])[0].tolist() == without.prompt([0, 4])[0].tolist()
    assert builder.completion(0).tolist() == without.completion(0).tolist()
    assert builder.stop_id == builder.eos_id
    with pytest.raises(UserError, match=r"model\.template\.system .*none is used, as its tokenizer has none: leave it"):
        build(plain, system="You know films.")


def test_a_message_that_a_template_strips_is_refused_and_one_that_none_strips_is_kept() -> None:
    with pytest.raises(UserError, match=r"changes what a message says.*model\.template\.suffix\), or set .*chat=no"):
        build(TOKENIZERS["llama3"], suffix="")
    with pytest.raises(UserError, match="changes what a message says"):
        build(TOKENIZERS["gemma"], prefix="\nLiked:\n")
    kept = build(TOKENIZERS["smollm2"], suffix="")
    assert kept.prompt([0])[0].tolist() == called(TOKENIZERS["smollm2"], kept, TITLES[:1])


USER = "{{ messages[-1]['content'] }}"
ANSWER = "{% if add_generation_prompt %}assistant:{% endif %}"


@pytest.mark.parametrize(
    ("template", "settings", "told"),
    [
        (CHATS["gemma"][0], {"system": "Be brief."}, r"System role not supported\): put model\.template\.system into"),
        (CHATS["mistral"][0], {"system": "Be brief."}, r"roles must alternate.*put model\.template\.system into"),
        (f"{USER}{ANSWER}", {"system": "Be brief."}, r"leaves out the system message"),
        ("{{ messages[0]['content']['text'] + 1 }}", {}, r"cannot be used \(.*: use another model, or set"),
        ("{{ raise_exception('tools alone') }}", {}, r"cannot be used \(tools alone\): use another model"),
        (f"{USER.replace(' }}', ' | upper }}')}{ANSWER}", {}, "does not write a message once"),
        (f"{USER}{USER}{ANSWER}", {}, "does not write a message once"),
        (USER, {}, "behind it where the answer begins"),
        (USER.replace(" }}", " | replace('oldest', 'newest') }}") + ANSWER, {}, "changes what a message says"),
        (f"{USER}<|im_end|>{ANSWER}<think>\n", {}, "begins to think before the answer"),
        ("{{ strftime_now('%d %B %Y') }}" + USER + ANSWER, {}, "says what day it is"),
    ],
)
def test_a_chat_template_that_cannot_carry_prompts_is_refused(
    template: str, settings: dict[str, str], told: str
) -> None:
    tokenizer = chat_tokenizer("smollm2", template)
    tokenizer.name_or_path = "models/odd"
    with pytest.raises(UserError, match=rf"the chat template of models/odd .*{told}.*model\.template\.chat=no$"):
        build(tokenizer, **settings)
    assert build(tokenizer, chat="no").chat is None


def test_several_templates_without_a_default_are_refused() -> None:
    tokenizer = chat_tokenizer("smollm2")
    tokenizer.chat_template = {"tools": CHATML, "rag": CHATML}
    with pytest.raises(
        UserError, match=r"is not one, but several .*: use another model, or set model\.template\.chat=no"
    ):
        build(tokenizer)
    tokenizer.chat_template = {"tools": LLAMA3, "default": CHATML}
    assert build(tokenizer).template.end == "<|im_end|>"


def test_a_date_that_a_template_lets_be_set_is_always_the_same() -> None:
    builder = build(TOKENIZERS["llama3.2"])
    assert builder.chat is not None
    assert builder.chat.options == {"date_string": "26 Jul 2024"}
    assert "Today Date: 26 Jul 2024<|eot_id|>" in builder.chat.head


def test_a_template_whose_turns_no_special_token_ends_takes_the_templates_own_end() -> None:
    builder = build(
        chat_tokenizer("smollm2", "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}a:")
    )
    assert (builder.template.end, builder.stop_id) == ("{eos}", builder.eos_id)


def test_a_title_that_holds_a_token_of_the_chat_template_is_refused() -> None:
    with pytest.raises(UserError, match=r"title 'A<\|im_start\|>B' holds <\|im_start\|>, a token of the chat template"):
        build(TOKENIZERS["qwen3"], ["Ran", "A<|im_start|>B"])
    with pytest.raises(UserError, match=r"title 'A<\|eot_id\|>B' holds <\|eot_id\|>"):
        build(TOKENIZERS["llama3"], ["Ran", "A<|eot_id|>B"])
    build(TOKENIZERS["qwen3"], ["Ran", "A<|im_start|>B"], chat="no")


def test_what_is_cut_leaves_room_for_the_longest_completion() -> None:
    tokenizer = TOKENIZERS["llama3"]
    for listed in (None, [0, 2]):
        template = TemplateConfig(candidates=listed is not None)
        for max_length in range(90, 140, 7):
            builder = PromptBuilder(tokenizer, TITLES, template, max_length)
            prompt, dropped = builder.prompt([*range(13)] * 3, listed)
            assert len(prompt) + builder.longest_completion <= max_length
            kept = ([*range(13)] * 3)[dropped:]
            again = called(tokenizer, builder, [TITLES[item] for item in kept], [TITLES[item] for item in listed or []])
            assert prompt.tolist() == again
            one_more = builder.piece_lengths[([*range(13)] * 3)[dropped - 1]]
            assert len(prompt) + one_more + builder.longest_completion > max_length
