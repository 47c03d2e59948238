"""What surrounds the call of vLLM: refusals before work, seeds, arguments for whole models and adapters, figures.

The call itself needs a GPU and vLLM, and is not covered.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model

from rosepo.config import load_config
from rosepo.sampling.strategies.vllm_engine import check_engine, engine_options, prompt_seed
from rosepo.sampling.tally import Tally
from rosepo.utils.errors import UserError
from tests.helpers import tiny_model

SELF_HARD = "pairs.strategies={self_hard: 1}"


def test_the_engine_is_transformers_unless_another_is_named() -> None:
    assert load_config(None, []).pairs.engine == "transformers"
    assert load_config(None, [SELF_HARD, "pairs.engine=vllm"]).pairs.engine == "vllm"
    assert load_config(None, ["pairs.strategies={rso: 1}", "pairs.engine=vllm"]).pairs.asks_policy
    with pytest.raises(UserError, match=r"pairs.engine: .*'transformers' or 'vllm'"):
        load_config(None, [SELF_HARD, "pairs.engine=vlm"])


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
@pytest.mark.parametrize(
    "others", [["pairs.strategies={popularity: 1}"], ["pairs.strategies={rso: 1}", "pairs.rso_from=uniform"]]
)
def test_an_engine_that_no_strategy_asks_is_refused(engine: str, others: list[str]) -> None:
    with pytest.raises(UserError, match=r"pairs.engine is used where .* has no weight: give it one, or leave"):
        load_config(None, [*others, f"pairs.engine={engine}"])


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_vllm_without_its_package_is_refused_with_what_to_do() -> None:
    pairs = load_config(None, [SELF_HARD, "pairs.engine=vllm"]).pairs
    with pytest.raises(UserError, match=r"needs the package vllm.* or use pairs.engine=transformers"):
        check_engine(pairs, "cuda")
    check_engine(load_config(None, [SELF_HARD]).pairs, "cpu")


def test_vllm_without_a_gpu_is_refused_with_what_to_do() -> None:
    pairs = load_config(None, [SELF_HARD, "pairs.engine=vllm", "pairs.gpu=no"]).pairs
    with pytest.raises(UserError, match=r"on GPUs, and with pairs.gpu=no the stage uses none: set pairs.gpu=yes"):
        check_engine(pairs, "cpu")


def test_seeds_depend_on_the_prompt_and_the_runs_seed_alone() -> None:
    prompt = np.array([1, 7, 9], dtype=np.int32)
    assert prompt_seed(5, prompt) == prompt_seed(5, prompt.astype(np.int64)) == 3802610431710495832
    others = {prompt_seed(6, prompt), prompt_seed(5, prompt[:2]), prompt_seed(5, prompt[::-1]), prompt_seed(5, prompt)}
    assert len(others) == 4
    seeds = [prompt_seed(0, np.array([token])) for token in range(2000)]
    assert len(set(seeds)) == len(seeds)
    assert 0 <= min(seeds) < max(seeds) < 2**62  # vLLM adds the number of the sample to it, in an int64


def test_a_whole_model_is_read_from_its_own_folder(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    options = engine_options(tmp_path, 128)
    assert options["model"] == options["tokenizer"] == str(tmp_path)
    assert options["max_model_len"] == 128
    assert "enable_lora" not in options


def save_adapter(root: Path, rank: int, **patterns: int) -> Path:
    """An adapter folder on a saved tiny model."""
    tiny_model().save_pretrained(root / "base")
    settings = LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], rank_pattern=patterns, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(), settings)
    model.active_peft_config.base_model_name_or_path = str(root / "base")
    model.save_pretrained(root / "adapter")
    return root / "adapter"


@pytest.mark.parametrize(("rank", "patterns", "room"), [(4, {}, 8), (16, {}, 16), (8, {"v_proj": 40}, 64)])
def test_an_adapter_is_served_on_its_base_with_room_for_its_rank(
    tmp_path: Path, rank: int, patterns: dict[str, int], room: int
) -> None:
    folder = save_adapter(tmp_path, rank, **patterns)
    options = engine_options(folder, 128)
    assert options["model"] == str(tmp_path / "base")
    assert options["tokenizer"] == str(folder)
    assert (options["enable_lora"], options["max_lora_rank"], options["revision"]) == (True, room, None)


@pytest.mark.parametrize("change", [{"r": 600}, {"peft_type": "LOHA"}])
def test_an_adapter_that_vllm_does_not_serve_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    folder = save_adapter(tmp_path, 4)
    about = folder / "adapter_config.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | change))
    with pytest.raises(UserError, match=r"vLLM serves LoRA of rank 512 at most: use pairs.engine=transformers"):
        engine_options(folder, 128)


def test_figures_tell_how_many_free_answers_were_no_title() -> None:
    total = Tally()
    for generated, unknown in ((80, 3), (40, 0)):
        shard = Tally()
        shard.totals.update(generated=generated, unknown=unknown)
        total.add(json.loads(json.dumps(shard.to_dict())))
    assert total.figures()["generated"] == {"answers": 120, "no_title": 3}
    assert "generated" not in Tally().figures()
