from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from rosepo.config import TemplateConfig, parse_config
from rosepo.data.prompts import PromptBuilder
from rosepo.lm.cards.card import model_card
from rosepo.lm.cards.record import model_record
from rosepo.lm.cards.usage import chat_use, usage
from tests.data.chats import CHATS, chat_tokenizer
from tests.data.chats import TITLES as CUT
from tests.helpers import tiny_builder, tiny_catalogue, tiny_tokenizer

TITLES = tiny_catalogue().titles


def prompt_of(script: str, tokenizer: Any) -> list[int]:
    """What the script hands to the model."""
    begin = script.index("def ids") if "def ids" in script else script.index("history =")
    scope: dict[str, Any] = {"tokenizer": tokenizer}
    exec(script[begin : script.index("inputs =")], scope)
    return scope["prompt"]


def test_the_example_builds_the_same_prompt_as_training() -> None:
    for template in (
        TemplateConfig(),
        TemplateConfig(prefix="{eos}Liked: {eos}", separator=", ", suffix="{eos}Next: "),
        TemplateConfig(candidates=True, candidates_prefix="One of{eos}", suffix="Next: "),
        TemplateConfig(candidates=True, candidates_prefix=""),
    ):
        script = usage(template, TITLES[:3], 9, adapter=False)
        listed = [2, 1, 0] if template.candidates else None
        assert (
            prompt_of(script, tiny_tokenizer())
            == tiny_builder(template=template).prompt([0, 1, 2], candidates=listed)[0].tolist()
        )


@pytest.mark.parametrize("family", CHATS)
def test_the_messages_of_the_example_make_the_same_prompt_as_training(family: str) -> None:
    tokenizer = chat_tokenizer(family)
    system = {} if family in ("gemma", "mistral") else {"system": "You know 'films'."}
    for template in (TemplateConfig(**system), TemplateConfig(candidates=True, suffix="Which one?")):
        builder = PromptBuilder(tokenizer, TITLES, template, 512)
        script = usage(builder.template, TITLES[:3], 9, False, chat=chat_use(builder, tokenizer, TITLES))
        assert "ids(" not in script
        listed = [2, 1, 0] if template.candidates else None
        assert prompt_of(script, tokenizer) == builder.prompt([0, 1, 2], candidates=listed)[0].tolist()


def chat_card(titles: list[str], separator: str = "\n") -> str:
    tokenizer = chat_tokenizer("qwen3")
    builder = PromptBuilder(tokenizer, titles, TemplateConfig(system="You know films.", separator=separator), 512)
    record = model_record(parse_config({"model": {"path": "some/instruct"}}), "sft")
    record = replace(record, model=record.model.model_copy(update={"template": builder.template}))
    return model_card(record, tiny_catalogue(), max_new_tokens=9, chat=chat_use(builder, tokenizer, titles))


def test_the_card_shows_the_messages_and_who_else_takes_them() -> None:
    card = chat_card(TITLES)
    for part in (
        "by the tokenizer's chat template, a system message `'You know films.'` and a message of the user: prefix",
        "suffix `'Next title:'`; the completion is one title and `<\\|im_end\\|>`, in the assistant's turn |",
        '{"role": "system", "content": \'You know films.\'},',
        "apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False)",
        "The ids of these messages are those that the model was trained on, with each of the 30 titles looked at.",
        "tokenizer_encode_kwargs={'enable_thinking': False})  # Transformers",
        "SamplingParams(temperature=0, max_tokens=9), chat_template_kwargs={'enable_thinking': False})  # vLLM",
    ):
        assert part in card
    assert "apply_chat_template" not in model_card(model_record(parse_config({}), "sft"), tiny_catalogue(),
                                                   max_new_tokens=9)  # fmt: skip


def test_the_card_says_with_how_many_titles_the_ids_are_not_those_of_the_messages() -> None:
    told = re.search(r"with (\d+) of the 13 titles looked at; with others tokens reach over", chat_card(CUT, ", "))
    assert told
    assert 0 < int(told[1]) < len(CUT) == 13
