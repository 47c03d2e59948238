from __future__ import annotations

import yaml

from rosepo.config import TemplateConfig, parse_config
from rosepo.models.card import model_card, usage
from tests.helpers import tiny_builder, tiny_catalogue, tiny_tokenizer


def front_matter(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_names_base_data_template_metrics_and_command() -> None:
    config = parse_config(
        {
            "data": {"dataset": "movietweetings-100k"},
            "model": {"path": "someone/base", "revision": "v2", "lora": {"rank": 8}},
        }
    )
    card = model_card(
        stage="align",
        config=config,
        catalogue=tiny_catalogue(),
        max_new_tokens=9,
        adapter=True,
        figures={"hr@10": 0.21341, "examples": 26_800, "dtype": "bfloat16"},
        command="rosepo align --config mine.yaml --out run",
    )
    head = front_matter(card)
    assert head["base_model"] == "someone/base"
    assert head["library_name"] == "peft"
    assert head["datasets"] == ["movietweetings-100k"]
    assert "lora" in head["tags"]  # type: ignore[operator]
    for part in (
        "rank 8",
        "`v2`",
        "30 items",
        "| hr@10 | 0.2134 |",
        "| examples | 26,800 |",
        "--config mine.yaml",
        "someone/base",
    ):
        assert part in card


def test_a_local_base_stays_out_of_the_front_matter(tmp_path: object) -> None:
    config = parse_config({"model": {"path": str(tmp_path)}})
    card = model_card(stage="sft", config=config, catalogue=tiny_catalogue(), max_new_tokens=9)
    assert "base_model" not in front_matter(card)
    assert "datasets" not in front_matter(card)
    assert str(tmp_path) in card
    assert "rosepo sft --config" in card


def test_the_example_builds_the_same_prompt_as_training() -> None:
    titles = tiny_catalogue().titles
    for template in (
        TemplateConfig(),
        TemplateConfig(prefix="{eos}Liked: {eos}", separator=", ", suffix="{eos}Next: "),
    ):
        script = usage(template, titles[:3], 9, adapter=False)
        body = script[script.index("def ids") : script.index("inputs =")]
        scope: dict[str, object] = {"tokenizer": tiny_tokenizer()}
        exec(body, scope)
        assert scope["prompt"] == tiny_builder(template=template).prompt([0, 1, 2])[0].tolist()
