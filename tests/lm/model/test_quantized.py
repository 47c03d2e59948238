"""Adapters on a base in four or eight bits (QLoRA): the same base in every stage, or a sentence."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pyarrow.parquet as pq
import pytest
import torch

from rosepo.config import TrainConfig, parse_config
from rosepo.lm.model.loading import load_policy
from rosepo.lm.model.policy import load_recommender, validate_model
from rosepo.lm.model.quantized import check_quantization, quantization_of
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.titles.title_scores import reference_logps
from rosepo.run.paths import RunPaths
from rosepo.training.align import align_task
from rosepo.training.engine import Engine, prepare_process
from rosepo.training.feed.feed import micro_batches
from rosepo.training.rank import fit_in_process, train_rank
from rosepo.training.sft import sft_task
from rosepo.utils.errors import UserError
from tests.training.ranks import two_ranks
from tests.training.tiny_run import lines, losses, tiny_config, weights, write_groups

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
SPLIT = (("float32", 1), ("float32", 2), ("bfloat16", 0), ("bfloat16", 2))
"""How training is split over two workers: precision and ZeRO stage."""
ALIGN = {"learning_rate": 1e-3, "beta": 0.5, "log_every": 1, "micro_batch_size": 2}


@pytest.fixture(scope="module")
def to_float32(tiny_run: RunPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers are as wide as the CPU's kernels for four bits ask: multiples of 32."""
    scratch = {"hidden_size": 64, "layers": 1, "heads": 2, "intermediate_size": 64, "vocab_size": 300, "dropout": 0.0}
    out = tmp_path_factory.mktemp("wide")
    fit_in_process(sft_task(tiny_config(model={"scratch": scratch, "max_length": 128}), tiny_run), out)
    return out


def lora(base: Path, quantize: str) -> dict:
    return {"path": str(base), "max_length": 128, "lora": {"rank": 2, "dropout": 0.0, "quantize": quantize}}


def test_without_bitsandbytes_it_is_refused_before_work(alone, tiny_run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = tiny_config(model=lora(alone, "nf4"))
    words = r"model.lora.quantize=nf4 needs bitsandbytes, which is not installed: pip install bitsandbytes"
    for check in (validate_model, lambda config: sft_task(config, tiny_run)):
        with pytest.raises(UserError, match=words):
            check(config)
    check_quantization("none")


@pytest.mark.parametrize("section", ["sft", "align"])
def test_zero_3_is_refused(section):
    tree = {"model": {"path": "x", "lora": {"quantize": "int8"}}, section: {"zero_stage": 3}}
    with pytest.raises(UserError, match=f"int8: {section}.zero_stage=3 cannot divide .*: use {section}.zero_stage=2"):
        parse_config(tree)
    prepare_process()
    module = torch.nn.Linear(2, 2)
    module.weight = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UserError, match="quantized weights"):
        Engine(module, TrainConfig(zero_stage=3), 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sft": {"zero_stage": 3}}, "sft.zero_stage=3 cannot divide quantized weights: use sft.zero_stage=2"),
        ({"pairs": {"engine": "vllm"}}, "pairs.engine=vllm would answer with another base"),
    ],
)
def test_a_given_adapter_on_a_quantized_base_is_refused_the_same(settings, words, alone, tmp_path, monkeypatch):
    adapted = peft.get_peft_model(load_policy(alone), peft.LoraConfig(task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    (tmp_path / "rosepo.json").write_text(json.dumps({"quantize": "nf4"}))
    monkeypatch.setattr("rosepo.lm.model.policy.check_quantization", lambda quantize: None)
    model = {"model": {"path": str(tmp_path), "max_length": 128}}
    with pytest.raises(UserError, match=f"is an adapter on a base in nf4: {words}"):
        validate_model(parse_config(model | settings))
    facts = validate_model(parse_config(model))
    assert (facts["adapter"], facts["quantize"]) == ("given", "nf4")
    assert 0 < facts["quantized_parameters"] < facts["parameters"]


def test_an_engine_that_loads_the_base_by_itself_is_refused():
    tree = {"model": {"path": "x", "lora": {"quantize": "nf4"}}, "pairs": {"engine": "vllm"}}
    with pytest.raises(UserError, match=r"nf4: pairs.engine=vllm would answer with another base"):
        parse_config(tree)


def train_both(rank: int, root: str, base: str, quantize: str) -> None:
    """Fine-tuning without and with ZeRO, in both precisions, and once with activations computed again."""
    prepare_process()
    for precision, stage in SPLIT:
        fixed = {"micro_batch_size": 2, "epochs": 0.4, "log_every": 1, "activation_checkpointing": stage == 1}
        config = tiny_config(model=lora(Path(base), quantize), zero_stage=stage, precision=precision, **fixed)
        task = sft_task(config, RunPaths(Path(root)))
        out = Path(root) / f"{quantize}-{precision}-{stage}"
        train_rank(task, micro_batches(task.plan, rank, 2), out)


@needs_bitsandbytes
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_training_on_a_quantized_base_is_the_same_in_all_stages_and_on_two_workers(quantize, tiny_run, wide, tmp_path):
    outputs = RunPaths(tmp_path)
    outputs.examples.symlink_to(tiny_run.examples)
    two_ranks(train_both, str(tmp_path), str(wide), quantize)
    one = tmp_path / "one"
    config = tiny_config(model=lora(wide, quantize), zero_stage=0, epochs=0.4, log_every=1)
    fit_in_process(sft_task(config, tiny_run), one)
    for precision, stage in SPLIT:
        found = tmp_path / f"{quantize}-{precision}-{stage}"
        # Rows are put together otherwise; int8 rounds what it multiplies, so that a last bit becomes a step of 1/127.
        exact = 1e-5 if quantize == "nf4" else 1e-3
        assert losses(found) == pytest.approx(losses(one), rel=exact if precision == "float32" else 0.03)
        assert weights(found).keys() == weights(one).keys()
    assert any(value.abs().sum() > 0 for name, value in weights(one).items() if "lora_B" in name)


@needs_bitsandbytes
@pytest.mark.parametrize(("quantize", "precision"), [("nf4", "float32"), ("nf4", "bfloat16"), ("int8", "float32")])
def test_every_stage_sees_the_base_that_the_adapter_was_trained_on(
    quantize, precision, tiny_run, wide, tmp_path, monkeypatch
):
    outputs = RunPaths(tmp_path)
    config = tiny_config(model=lora(wide, quantize), precision=precision, learning_rate=2e-2)
    fit_in_process(sft_task(config, tiny_run), outputs.sft)
    saved = json.loads((outputs.sft / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(wide.resolve())
    assert json.loads((outputs.sft / "rosepo.json").read_text())["quantize"] == quantize
    model = load_recommender(outputs.sft).model
    assert quantization_of(model) == quantize
    kinds = {type(module).__name__ for module in model.modules()}
    assert {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantize] in kinds
    script = (outputs.sft / "README.md").read_text().split("```python\n")[1].split("```")[0]
    scope: dict[str, Any] = {}
    monkeypatch.chdir(outputs.sft)
    exec(script, scope)
    assert quantization_of(scope["model"]) == quantize
    write_groups(outputs)
    table = pq.read_table(outputs.groups / "part-00000.parquet").to_pylist()
    prompts = [np.array(row["prompt_ids"]) for row in table]
    completions = [[np.array(ids) for ids in (row["chosen_ids"], *row["rejected_ids"])] for row in table]
    found = reference_logps(LogpsModel(model), prompts, completions)
    whole = load_policy(outputs.sft)
    assert quantization_of(whole) == quantize
    (outputs.sft / "rosepo.json").rename(tmp_path / "aside")
    other = reference_logps(LogpsModel(load_policy(outputs.sft)), prompts, completions)
    (tmp_path / "aside").rename(outputs.sft / "rosepo.json")
    # Without the record the base would be whole: by far more than arithmetic alone makes (1e-5).
    assert np.abs(np.array(found) - np.array(other)).max() > {"nf4": 5e-3, "int8": 2e-4}[quantize]
    config = tiny_config("align", model=lora(wide, quantize), precision=precision, zero_stage=2, **ALIGN)
    fit_in_process(align_task(config, outputs), outputs.aligned)
    assert lines(outputs.aligned)[1]["margin"] == pytest.approx(0.0, abs=1e-3 if precision == "float32" else 0.2)
    assert quantization_of(load_policy(outputs.aligned)) == quantize
