"""Servers that are started for a model: what they are told, that they answer, and that they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from rosepo.lm.model.loading import load_policy
from rosepo.lm.serving.served_model import answers
from rosepo.lm.serving.server import Serving, arguments
from rosepo.lm.titles.beam_search import Decoder
from rosepo.utils.errors import StageError, UserError
from tests.helpers import tiny_builder, tiny_model, tiny_tokenizer
from tests.lm.serving.model_server import STAND_IN

ROOT = Path(__file__).parents[3]
HISTORIES = [np.array([3]), np.array([0, 7, 12, 5])]


def wide_model() -> PreTrainedModel:
    """Of heads that vLLM has kernels for, on CPUs too."""
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    return tiny_model(**shape, intermediate_size=64)


def save_adapter(root: Path, rank: int = 4, **patterns: int) -> Path:
    """An adapter folder on a saved model."""
    wide_model().save_pretrained(root / "base")
    settings = LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], rank_pattern=patterns, task_type="CAUSAL_LM",
        init_lora_weights=False)  # fmt: skip
    model = get_peft_model(wide_model(), settings)
    model.active_peft_config.base_model_name_or_path = str(root / "base")
    model.save_pretrained(root / "adapter")
    return root / "adapter"


def told(words: list[str]) -> dict[str, str]:
    """Options with values, of a command line."""
    return {word.removeprefix("--"): words[place + 1] for place, word in enumerate(words[:-1]) if word[:2] == "--"}


@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "adapter"])
def test_a_served_model_finds_the_titles_that_it_finds_in_this_process(
    adapter: bool, vllm: str, tmp_path: Path
) -> None:
    builder = tiny_builder()
    folder = save_adapter(tmp_path) if adapter else tmp_path
    if not adapter:
        wide_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    prompts = [builder.prompt(history)[0] for history in HISTORIES]
    model = load_policy(folder)
    expected = Decoder(model, builder, 20).top_k(prompts, HISTORIES, 10)
    served = Serving(vllm, 0, "float32", 0.9)(str(folder), builder.max_length)
    try:
        found = Decoder(served, builder, 20).top_k(prompts, HISTORIES, 10)
    finally:
        served.close()
    assert found[0].tolist() == expected[0].tolist()
    np.testing.assert_allclose(found[1], expected[1], atol=2e-3)
    with pytest.raises(StageError, match=r"does not answer: .*; it ended with"):
        served.next_logps([np.array([1])], [np.array([2])])


def test_a_server_that_ends_at_once_is_told_with_its_last_error(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(StageError, match=r"^vLLM ended with 1: .*Error.* \(its log: .*rosepo-vllm-"):
        Serving(STAND_IN, 0, "float32", 0.9)(str(tmp_path), 64)


def test_a_whole_model_is_divided_among_the_gpus_of_its_actor(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    words = arguments(Serving("vllm", 4, "bfloat16", 0.5), str(tmp_path), 128, 8000)
    options = told(words)
    assert words[0] == str(tmp_path)
    assert options["tensor-parallel-size"] == "4"
    assert (options["dtype"], options["gpu-memory-utilization"], options["max-model-len"]) == ("bfloat16", "0.5", "128")
    assert options["host"] == "127.0.0.1"
    assert "--enable-lora" not in words


@pytest.mark.parametrize(("rank", "patterns", "room"), [(4, {}, "8"), (16, {}, "16"), (8, {"v_proj": 40}, "64")])
def test_an_adapter_is_served_on_its_base_with_room_for_its_rank(
    tmp_path: Path, rank: int, patterns: dict[str, int], room: str
) -> None:
    folder = save_adapter(tmp_path, rank, **patterns)
    words = arguments(Serving("vllm", 0, "float32", 0.5), str(folder), 128, 8000)
    options = told(words)
    assert words[0] == str(tmp_path / "base")
    assert (options["max-lora-rank"], options["lora-modules"]) == (room, f"policy={folder}")
    assert options["tokenizer"] == str(folder)
    assert {"--enable-lora", "--enforce-eager"} <= set(words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"r": 600}, "LORA of rank 600, and"),
        ({"peft_type": "LOHA"}, "LOHA of rank 4, and"),
        ({"use_dora": True}, "rank 4 with use_dora, and"),
        ({"modules_to_save": ["lm_head"]}, "with modules_to_save, and"),
    ],
)
def test_an_adapter_that_vllm_does_not_serve_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    folder = save_adapter(tmp_path)
    about = folder / "adapter_config.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | change))
    with pytest.raises(UserError, match=f"{words} vLLM serves plain LoRA of rank 512 at most: merge it"):
        arguments(Serving("vllm", 0, "float32", 0.5), str(folder), 128, 8000)


@pytest.mark.skipif(sys.platform != "linux", reason="the system ends children with their parent on Linux alone")
def test_a_server_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    lines = [
        "import sys, time",
        "from rosepo.lm.serving.server import Serving",
        "served = Serving(sys.argv[1], 0, 'float32', 0.9)(sys.argv[2], 64)",
        "print(served.address, flush=True)",
        "time.sleep(600)",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "\n".join(lines), STAND_IN, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        address = parent.stdout.readline().strip()
        assert answers(address)
        parent.kill()
    end = time.monotonic() + 60
    while answers(address):
        assert time.monotonic() < end, "the server goes on alone"
        time.sleep(0.2)
