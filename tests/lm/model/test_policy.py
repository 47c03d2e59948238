from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from rosepo.config import Config, parse_config
from rosepo.lm.cards.record import model_record
from rosepo.lm.model.dropout import training_dropout
from rosepo.lm.model.loading import load_policy, load_tokenizer
from rosepo.lm.model.policy import initial_policy, load_recommender, save_policy, validate_model
from rosepo.lm.rows.batch import collate
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.rows.plain_rows import plain_logps
from rosepo.lm.rows.rows import trajectory_rows
from rosepo.utils.errors import StageError, UserError
from tests.helpers import tiny_catalogue, tiny_model, tiny_tokenizer

STORIES = Path(os.environ.get("ROSEPO_STORIES", Path(__file__).parents[4] / "shared" / "models" / "stories260K-hf"))
CATALOGUE = tiny_catalogue()
SCRATCH = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 400}


def configure(**model: Any) -> Config:
    return parse_config({"model": {"max_length": 128, **model}})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 20)[None]).logits


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder made without rosepo's saving."""
    folder = tmp_path_factory.mktemp("pretrained")
    tiny_model("qwen3").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder, config = tmp_path_factory.mktemp("trained"), configure(scratch=SCRATCH)
    model, tokenizer = initial_policy(config.model, CATALOGUE, config.seed)
    training_dropout(model, 0.3)
    save_policy(
        folder, model, tokenizer, CATALOGUE, model_record(config, "sft"), figures={"hr@10": 0.21, "steps": 1200}
    )
    return folder, model.eval()


@pytest.fixture(scope="module")
def adapter(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder, config = tmp_path_factory.mktemp("adapter"), configure(path=str(pretrained), lora={"rank": 4})
    model, tokenizer = initial_policy(config.model, CATALOGUE, config.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    save_policy(folder, model, tokenizer, CATALOGUE, model_record(config, "align"))
    return folder, model.eval()


def example_of(folder: Path) -> str:
    """The Python script in the model card."""
    script = (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    assert "rosepo" not in script
    return script


def run_example(folder: Path) -> str:
    """What it prints in a fresh process inside the folder."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    run = subprocess.run(
        [sys.executable, "-c", example_of(folder)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_scratch_model_comes_back_the_same_and_with_its_catalogue(trained: tuple[Path, Any]) -> None:
    folder, model = trained
    recommender = load_recommender(folder)
    assert torch.equal(logits(recommender.model), logits(model))
    assert not recommender.model.training
    assert recommender.catalogue.titles == CATALOGUE.titles
    assert (recommender.builder.max_length, recommender.max_history) == (128, 50)
    assert not list(folder.glob("*.bin")) + list(folder.glob("*.pt"))
    weights = load_file(folder / "model.safetensors")
    assert not any("dropout" in name.lower() for name in weights)
    (row,) = trajectory_rows(recommender.builder, [3, 1, 4], 2)
    with torch.no_grad():
        shared = LogpsModel(recommender.model)(collate([row]))[0]
        prompts = [recommender.builder.prompt(history)[0] for history in ([3], [3, 1])]
        plain = plain_logps(recommender.model, prompts, [recommender.builder.completion(item) for item in (1, 4)])[0]
    torch.testing.assert_close(shared, plain, atol=1e-4, rtol=1e-5)


def test_the_cards_example_runs_in_plain_transformers(trained: tuple[Path, Any]) -> None:
    run_example(trained[0])


def test_the_cards_example_runs_in_plain_peft(adapter: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(adapter[0])
    exec(example_of(adapter[0]), {})


def test_an_adapter_comes_back_on_its_base(adapter: tuple[Path, Any], pretrained: Path) -> None:
    folder, model = adapter
    recommender = load_recommender(folder)
    assert torch.equal(logits(recommender.model), logits(model))
    assert not torch.allclose(logits(model), logits(load_policy(pretrained)))
    assert not any(parameter.requires_grad for parameter in recommender.model.parameters())
    trainable = load_policy(folder, trainable=True)
    assert all("lora_" in name for name, p in trainable.named_parameters() if p.requires_grad)
    assert sum(p.requires_grad for p in trainable.parameters()) > 0
    assert not (folder / "model.safetensors").exists()


def test_an_adapter_given_by_path_is_trained_on_and_takes_no_second_one(adapter: tuple[Path, Any]) -> None:
    model, _ = initial_policy(configure(path=str(adapter[0])).model, CATALOGUE, 0)
    assert any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(UserError, match="adapter already"):
        initial_policy(configure(path=str(adapter[0]), lora={}).model, CATALOGUE, 0)
    assert validate_model(configure(path=str(adapter[0])))["adapter"] == "given"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_consolidated_weights_of_a_wrapped_model_get_plain_names(dtype: torch.dtype, tmp_path: Path) -> None:
    config = configure(scratch=SCRATCH)
    model, tokenizer = initial_policy(config.model, CATALOGUE, config.seed)
    state = {name: value.to(dtype) for name, value in LogpsModel(model).state_dict().items()}
    # Tied weights may come once or twice.
    del state["model.lm_head.weight"]
    save_policy(tmp_path, model, tokenizer, CATALOGUE, model_record(config, "sft"), state_dict=state)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    loaded = load_policy(tmp_path, dtype=dtype)
    assert torch.equal(logits(loaded), logits(LogpsModel(model).to(dtype).eval().model))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_consolidated_weights_of_an_adapter_are_enough_without_the_base(pretrained: Path, tmp_path: Path) -> None:
    config = configure(path=str(pretrained), lora={"rank": 2})
    model, tokenizer = initial_policy(config.model, CATALOGUE, config.seed)
    state = {name: value for name, value in LogpsModel(model).state_dict().items() if "lora_" in name}
    save_policy(tmp_path, model, tokenizer, CATALOGUE, model_record(config, "sft"), state_dict=state)
    assert torch.equal(logits(load_policy(tmp_path)), logits(model.eval()))
    without = {name: value for name, value in state.items() if "lora_B" not in name}
    with pytest.raises(StageError, match="0 B matrices"):
        save_policy(tmp_path, model, tokenizer, CATALOGUE, model_record(config, "sft"), state_dict=without)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda state: state.clear(), "without weights"),
        (lambda state: state.update({"model.norm.weight": torch.zeros(0)}), "came out empty"),
        (lambda state: state.update({"model.norm.weight": torch.full((32,), torch.nan)}), "diverged"),
        (lambda state: state.pop("model.norm.weight"), "do not fit"),
        (lambda state: state.update({"other": torch.zeros(1)}), "not those of"),
    ],
)
def test_broken_weights_are_never_written(harm: Any, words: str, tmp_path: Path) -> None:
    config = configure(scratch=SCRATCH)
    model, tokenizer = initial_policy(config.model, CATALOGUE, config.seed)
    state = dict(model.state_dict())
    harm(state)
    with pytest.raises(StageError, match=words):
        save_policy(tmp_path, model, tokenizer, CATALOGUE, model_record(config, "sft"), state_dict=state)
    assert not list(tmp_path.glob("*.safetensors"))


def test_folders_that_are_no_models_are_named_with_a_remedy(pretrained: Path, tmp_path: Path) -> None:
    def refused(path: Path | str, words: str) -> None:
        with pytest.raises(UserError, match=words):
            load_policy(path)

    refused(tmp_path / "nowhere", "neither a model folder nor reachable on the hub")
    refused("someone/some-model-that-is-not-cached", "neither a model folder nor reachable on the hub")
    refused(tmp_path, "no config.json")
    refused(pretrained / "config.json", "is a file")
    pickled = shutil.copytree(pretrained, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused(pickled, "only pytorch_model.bin")
    partial = shutil.copytree(pretrained, tmp_path / "partial")
    weights = load_file(partial / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    refused(partial, "lacks 1 weights")
    (partial / "model.safetensors").write_bytes(b"rubbish")
    refused(partial, "cannot be loaded")
    foreign = shutil.copytree(pretrained, tmp_path / "foreign")
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps({**config, "model_type": "t5"}))
    refused(foreign, "not a causal language model")
    code = {"auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}, "model_type": "unheard-of"}
    (foreign / "config.json").write_text(json.dumps(code))
    refused(foreign, "never runs")
    with pytest.raises(UserError, match=r"no rosepo\.json"):
        load_recommender(pretrained)
    with pytest.raises(UserError, match="does not exist"):
        load_recommender(tmp_path / "nowhere")


def test_a_tokenizer_that_would_come_back_changed_is_refused(tmp_path: Path) -> None:
    # Transformers loads a Qwen2 folder with Qwen2's own way of splitting text, whatever tokenizer was saved there.
    with pytest.raises(StageError, match=r"reads '.*' differently"):
        save_policy(tmp_path, tiny_model("qwen2"), tiny_tokenizer(), CATALOGUE, model_record(configure(), "sft"))


def test_a_hub_model_in_the_cache_loads_without_a_connection(pretrained: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(pretrained, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    script = (
        "from rosepo.lm.model.policy import load_policy, load_tokenizer;"
        "print(load_policy('someone/tiny').num_parameters(), len(load_tokenizer('someone/tiny')))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(tiny_model("qwen3").num_parameters()), str(len(tiny_tokenizer()))]


def test_a_tokenizer_without_padding_pads_with_eos_and_one_without_eos_is_refused(
    pretrained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(pretrained, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert "no padding token" in capfd.readouterr().err
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="no EOS token"):
        load_tokenizer(folder)


def test_prompts_longer_than_the_model_are_refused_before_its_weights_are_read(pretrained: Path) -> None:
    config = configure(path=str(pretrained), max_length=512)
    for check in (validate_model, lambda config: initial_policy(config.model, CATALOGUE, config.seed)):
        with pytest.raises(UserError, match=r"max_length=512 is above the 256 .* lower it to 256"):
            check(config)


def test_validate_counts_parameters_without_weights(pretrained: Path, tmp_path: Path) -> None:
    facts = validate_model(configure(path=str(pretrained), lora={"rank": 2}))
    model, _ = initial_policy(configure(path=str(pretrained), lora={"rank": 2}).model, CATALOGUE, 0)
    assert facts["parameters"] == tiny_model("qwen3").num_parameters()
    assert facts["trainable_parameters"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (facts["max_positions"], facts["vocabulary"], facts["shared_prefix"]) == (256, len(tiny_tokenizer()), True)
    json.dumps(facts)
    scratch, _ = initial_policy(configure(scratch=SCRATCH).model, CATALOGUE, 0)
    assert validate_model(configure(scratch=SCRATCH))["parameters"] == scratch.num_parameters()
    with pytest.raises(UserError, match="target_modules"):
        validate_model(configure(path=str(pretrained), lora={"target_modules": ["nothing_like_it"]}))


def test_a_model_without_shared_rows_cannot_learn_the_whole_distribution(pretrained: Path, tmp_path: Path) -> None:
    whole = {"pairs": {"strategies": {"oracle": 1}, "oracle_whole": True}, "align": {"loss": "distill"}}
    folder = shutil.copytree(pretrained, tmp_path / "phi")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 400}
    AutoConfig.for_model("phi", **sizes).save_pretrained(folder)
    for path, loss in ((pretrained, "distill"), (folder, "softmax")):
        own = whole | {"align": {"loss": loss}}
        assert validate_model(parse_config({"model": {"path": str(path), "max_length": 256}, **own}))["layers"]
    with pytest.raises(UserError, match=r"pairs\.oracle_whole=true .* models of type phi cannot .*llama"):
        validate_model(parse_config({"model": {"path": str(folder), "max_length": 256}, **whole}))


def test_initial_weights_are_a_function_of_the_seed(pretrained: Path) -> None:
    for model in ({"scratch": SCRATCH}, {"path": str(pretrained), "lora": {"rank": 2}}):
        first, again = (initial_policy(configure(**model).model, CATALOGUE, 0)[0].state_dict() for _ in range(2))
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.skipif(not STORIES.is_dir(), reason="the stories260K folder is not here")
def test_stories260k_works_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(path=str(STORIES), max_length=512)
    model, tokenizer = initial_policy(config.model, CATALOGUE, config.seed)
    assert validate_model(config)["parameters"] == model.num_parameters() == 260_032
    save_policy(tmp_path, model, tokenizer, CATALOGUE, model_record(config, "sft"))
    recommender = load_recommender(tmp_path)
    (row,) = trajectory_rows(recommender.builder, [3, 1, 4], 1)
    prompt = recommender.builder.prompt([3, 1])[0]
    with torch.no_grad():
        shared = LogpsModel(recommender.model)(collate([row]))[0]
        plain = plain_logps(model, [prompt], [recommender.builder.completion(4)])[0]
    torch.testing.assert_close(shared, plain, atol=1e-4, rtol=1e-5)
    monkeypatch.chdir(tmp_path)
    exec(example_of(tmp_path), {})
