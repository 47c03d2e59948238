"""Model folders of instruct models: they keep the chat template, and say whether they were trained with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, pipeline

from rosepo.config import parse_config
from rosepo.data.chat import message
from rosepo.lm.cards.record import model_record
from rosepo.lm.model.merge import merge_adapter
from rosepo.lm.model.model_folder import load_builder, load_recommender
from rosepo.lm.model.policy import initial_policy, save_policy, validate_model
from rosepo.utils.errors import UserError
from tests.data.chats import CHATS, chat_tokenizer
from tests.helpers import tiny_catalogue, tiny_model

CATALOGUE = tiny_catalogue()
Train = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Writes what a stage would, of a base of the family: `train(family, template settings, name, lora=…)`."""

    def made(family: str, template: dict[str, Any], name: str = "trained", **model: Any) -> Path:
        base = tmp_path / f"{family}-base"
        tiny_model("qwen3", vocab_size=512).save_pretrained(base)
        chat_tokenizer(family).save_pretrained(base)
        config = parse_config({"model": {"path": str(base), "max_length": 256, "template": template, **model}})
        policy, tokenizer = initial_policy(config.model, CATALOGUE, config.seed)
        save_policy(tmp_path / name, policy, tokenizer, CATALOGUE, model_record(config, "sft"))
        return tmp_path / name

    return made


@pytest.mark.parametrize("family", CHATS)
def test_a_folder_brings_its_chat_along(family: str, train: Train) -> None:
    folder = train(family, {})
    recommender, tokenizer = load_recommender(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == CHATS[family][0]
    builder = recommender.builder
    assert builder.chat is not None
    user = {"role": "user", "content": message(builder.template, CATALOGUE.titles[:3])}
    called = tokenizer.apply_chat_template([user], add_generation_prompt=True, **builder.chat.options)["input_ids"]
    assert builder.prompt([0, 1, 2])[0].tolist() == called
    kept = json.loads((folder / "rosepo.json").read_text())["template"]
    assert (kept["chat"], kept["suffix"], kept["end"]) == ("auto", "Next title:", CHATS[family][-1])
    ends = GenerationConfig.from_pretrained(folder).eos_token_id
    assert ends == ([builder.stop_id, builder.eos_id] if family in ("llama3", "gemma") else builder.eos_id)


def test_transformers_own_pipeline_answers_the_messages_as_the_model_answers_the_prompt(train: Train) -> None:
    folder = train("qwen3", {"system": "You know films."})
    recommender = load_recommender(folder)
    builder, tokenizer = recommender.builder, recommender.tokenizer
    prompt = torch.tensor(builder.prompt([3, 4])[0][None], dtype=torch.int64)
    answer = recommender.model.generate(prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :]
    messages = [
        {"role": "system", "content": "You know films."},
        {"role": "user", "content": message(builder.template, [CATALOGUE.titles[3], CATALOGUE.titles[4]])},
    ]
    for options, same in (({"enable_thinking": False}, True), ({}, False)):
        chat = pipeline("text-generation", model=str(folder), device="cpu")
        told = chat(messages, max_new_tokens=6, tokenizer_encode_kwargs=options, return_full_text=False)
        assert (told[0]["generated_text"] == tokenizer.decode(answer, skip_special_tokens=True)) == same
        del chat


def test_a_folder_of_before_chat_templates_were_used_is_read_without(train: Train) -> None:
    folder = train("qwen3", {"chat": "no"})
    plain = load_builder(folder).prompt([0, 1])[0].tolist()
    kept = json.loads((folder / "rosepo.json").read_text())
    assert kept["template"]["chat"] == "no"
    del kept["template"]["chat"], kept["template"]["system"]
    (folder / "rosepo.json").write_text(json.dumps(kept))
    builder = load_builder(folder)
    assert builder.chat is None
    assert builder.prompt([0, 1])[0].tolist() == plain
    assert "apply_chat_template" not in (folder / "README.md").read_text()
    assert load_builder(train("qwen3", {}, "chatting")).prompt([0, 1])[0].tolist() != plain


def test_a_folder_that_has_lost_its_chat_template_is_refused(train: Train) -> None:
    folder = train("smollm2", {})
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"trained with its chat template, which is no longer there: put chat_template"):
        load_builder(folder)


def test_a_merged_adapter_keeps_its_chat(train: Train, tmp_path: Path) -> None:
    folder = train("llama3", {"system": "You know films."}, lora={"rank": 2})
    assert "of the model that `rosepo merge` makes" in (folder / "README.md").read_text()
    merge_adapter(str(folder), tmp_path / "merged")
    made, merged = load_builder(folder), load_builder(tmp_path / "merged")
    assert merged.chat == made.chat is not None
    assert merged.prompt([5, 6])[0].tolist() == made.prompt([5, 6])[0].tolist()
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "tokenizer.apply_chat_template(messages" in card
    assert "rosepo merge` makes" not in card
    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == [made.stop_id, made.eos_id]


def test_what_a_chat_template_cannot_do_is_found_before_any_weights_are_read(train: Train, tmp_path: Path) -> None:
    train("gemma", {})
    base = shutil.copytree(tmp_path / "gemma-base", tmp_path / "light")
    (base / "model.safetensors").write_bytes(b"")
    template: dict[str, Any] = {"system": "You know films."}
    config = {"model": {"path": str(base), "max_length": 256, "template": template}}
    with pytest.raises(UserError, match=r"chat template of .*light cannot be used \(System role not supported\)"):
        validate_model(parse_config(config))
    template.clear()
    validate_model(parse_config(config))
