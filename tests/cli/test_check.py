"""`rosepo check`: what it refuses before a run begins, and what it says of the model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rosepo.cli.check import _memories, _memory, _sample_builder, _steps
from rosepo.config import TrainConfig, parse_config
from rosepo.lm.rows.target_logps import MAX_LOGITS
from rosepo.training.feed.schedule import Schedule
from rosepo.utils.errors import UserError
from tests.cli.test_app import call
from tests.data.chats import chat_tokenizer
from tests.helpers import tiny_model

FACTS = {
    "parameters": 2**30,
    "quantize": "none",
    "quantized_parameters": 0,
    "adapter": "none",
    "trainable_parameters": 2**30,
    "layers": 0,
    "hidden_size": 64,
    "row_tokens": 100,
}
"""Of a model whose activations take no room."""
ADAPTER = {"adapter": "new", "trainable_parameters": 2**25}


@pytest.mark.parametrize(
    ("train", "facts", "gibibytes"),
    [
        ({"zero_stage": 0}, {}, 16.0),
        ({"zero_stage": 1, "workers": 2}, {}, 12.0),
        ({"zero_stage": 1, "precision": "bfloat16"}, {}, 18.0),
        ({"zero_stage": 0, "precision": "bfloat16"}, {}, 16.0),
        ({"zero_stage": 2, "workers": 2, "offload": "optimizer"}, {}, 6.0),
        ({"zero_stage": 3, "workers": 2, "offload": "optimizer"}, {}, 4.0),
        ({"zero_stage": 3, "workers": 2, "offload": "parameters"}, {}, 2.0),
        ({"zero_stage": 0}, ADAPTER, 4.5),
        ({"zero_stage": 0}, ADAPTER | {"quantize": "nf4", "quantized_parameters": 2**29}, 2.75),
        ({"zero_stage": 0}, ADAPTER | {"quantize": "int8", "quantized_parameters": 2**29}, 3.0),
    ],
)
def test_memory_counts_what_a_process_holds(train: dict[str, Any], facts: dict[str, Any], gibibytes: float) -> None:
    assert _memory(TrainConfig(**train), FACTS | facts, 1600) == f"{gibibytes:.2f} GiB"


SMALL = {**FACTS, "parameters": 0, "trainable_parameters": 0, "layers": 4, "hidden_size": 1024, "vocabulary": 2**15}
"""Of a model that has activations and logits alone."""


@pytest.mark.parametrize(
    ("settings", "tokens", "full"),
    [
        ({}, 400, 4 * 2048),  # full rows of users' trajectories
        ({"row_tokens": 256}, 400, 4 * 512),  # a group may have more tokens: model.max_length
        ({"rows": "group"}, 400, 4 * 512),
        ({"micro_batch_tokens": 300}, 300, 300),
        ({"micro_batch_tokens": 5000}, 400, 5000),
        ({"micro_batch_tokens": 5000, "precision": "bfloat16", "activation_checkpointing": True}, 400, 5000),
    ],
)
def test_memory_is_bounded_by_the_tokens_of_a_micro_batch(settings: dict[str, Any], tokens: int, full: int) -> None:
    config = parse_config({"align": {"micro_batch_size": 4, **settings}})
    short = config.align.precision == "bfloat16"
    a_token = (2 if config.align.activation_checkpointing else 34) * 4 * 1024 * (1 if short else 2)
    logits = min(full * 2**15, MAX_LOGITS) * (6 if short else 8)
    expected = (tokens * a_token, full * a_token + logits)
    assert _memories(config, "align", SMALL) == tuple(f"{size / 2**30:.2f} GiB" for size in expected)


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 4), (0.3 * 10 / 3, 4), (2.5, 10), (0.01, 1), (0.1 + 0.2, 2)])
def test_steps_are_those_of_the_schedule(epochs: float, steps: int) -> None:
    train = TrainConfig(batch_size=32, epochs=epochs)
    assert _steps(train, 100) == steps == Schedule(100, 32, 0, epochs).steps


def write_log(folder: Path, longest: str) -> list[str]:
    """Eight users who each saw five of eight items, one after the other; the last item's title is given."""
    walks = [(user, step, (user + step) % 8) for user in range(8) for step in range(5)]
    lines = ["user_id,item_id,timestamp", *(f"{user},{item},{100 * user + step}" for user, step, item in walks)]
    (folder / "log.csv").write_text("\n".join(lines))
    titles = [f"Film {chr(65 + item)}" for item in range(7)]
    rows = [f"{item},{title}" for item, title in enumerate([*titles, longest])]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *rows]))
    return ["--interactions", str(folder / "log.csv"), "--items", str(folder / "items.csv")]


def check(arguments: list[str], folder: Path, max_length: int) -> tuple[int, str]:
    settings = (
        f"model.max_length={max_length}",
        "prepare.k_core=1",
        "pairs.negatives=1",
        "model.scratch.vocab_size=300",
        "model.scratch.whole_titles=0",
    )
    sets = [word for setting in settings for word in ("--set", setting)]
    result = call("check", *arguments, *sets, "--out", str(folder / "out"))
    return result.returncode, result.stdout + result.stderr


def test_a_title_that_cannot_fit_is_refused_with_the_length_that_it_needs(tmp_path: Path) -> None:
    title = " ".join(f"{number}th" for number in range(60))
    arguments = write_log(tmp_path, title)
    code, told = check(arguments, tmp_path, 32)
    needed = re.search(r"max_length=32 has no room for title '0th 1th.*; raise it to (\d+)", told)
    assert needed, told
    assert (code, "items fit" in told, "Traceback" in told) == (2, False, False)
    code, told = check(arguments, tmp_path, int(needed[1]))
    assert code == 0, told
    (least, full), *_ = re.findall(r"align .*? ([\d.]+) GiB.*? ([\d.]+) GiB", told)
    assert float(least) < float(full), told
    fit = re.search(r"about (\d+) items fit", told)
    assert fit, told
    assert int(fit[1]) >= 1


def test_what_becomes_of_a_chat_template_is_told_or_refused(tmp_path: Path) -> None:
    write_log(tmp_path, "The Last One (2001)")
    for family in ("gemma", "qwen3"):
        tiny_model(vocab_size=512).save_pretrained(tmp_path / family)
        chat_tokenizer(family).save_pretrained(tmp_path / family)

    def told(family: str, **template: str) -> str | None:
        data = {"interactions": str(tmp_path / "log.csv"), "items": str(tmp_path / "items.csv")}
        model = {"path": str(tmp_path / family), "max_length": 200, "template": template}
        return _sample_builder(parse_config({"data": data, "model": model}))[1]

    assert told("gemma") == "used; ids are those of apply_chat_template with each of the 8 titles looked at"
    assert "with 7 of the 8 titles looked at; with others tokens reach over" in (told("qwen3", separator=", ") or "")
    assert told("qwen3", chat="no") == "not used: model.template.chat is no"
    assert (
        told("qwen3", separator="{eos}") == "not used: model.template.separator holds {eos}, which would end a message"
    )
    with pytest.raises(UserError, match=r"System role not supported\): put model\.template\.system into"):
        told("gemma", system="You know films.")
