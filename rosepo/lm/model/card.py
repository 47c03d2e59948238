"""The model card: what a finished model is and was trained on, how well it does, and how to use it without rosepo."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rosepo.config import TemplateConfig
from rosepo.data.catalogue import Catalogue
from rosepo.lm.model.record import ModelRecord


def model_card(
    record: ModelRecord,
    catalogue: Catalogue,
    *,
    max_new_tokens: int,
    adapter: bool = False,
    quantize: str = "none",
    figures: Mapping[str, Any] | None = None,
) -> str:
    """README.md of a model folder: YAML front matter and Markdown.

    Args:
        record: how it was made.
        catalogue: what it recommends from; its first titles make the example.
        max_new_tokens: tokens of the longest title, EOS included.
        adapter: a PEFT adapter, not a whole model.
        quantize: none, nf4 or int8: how its base is held.
        figures: name → number or text: metrics and counts worth a row each.
    """
    template = record.model.template
    parts = [
        _front_matter(record, adapter),
        f"# Recommender ({record.stage}) by rosepo\n",
        f"A causal language model that reads the titles that one person liked and writes the title of the next item. "
        f"Trained by {record.trained_by}.\n",
        _facts(record, catalogue, adapter, quantize),
        _figures({**(figures or {}), **record.facts}),
        _use(template, catalogue, max_new_tokens, adapter, quantize),
        f"## How it was made\n\n```sh\n{record.command}\n```\n\n"
        f"with this `config.yaml` (what it does not name is at its default):\n\n```yaml\n{record.config}```\n",
    ]
    return "\n".join(parts)


def merged_card(card: str, template: TemplateConfig, catalogue: Catalogue, max_new_tokens: int) -> str:
    """The card of an adapter's folder, for the whole model that the adapter was merged into.

    Args:
        card: what `model_card` made.
        template, catalogue, max_new_tokens: as there.
    """
    _, head, body = card.split("---\n", 2)
    front = yaml.safe_load(head)
    front |= {"library_name": "transformers", "tags": [tag for tag in front["tags"] if tag != "lora"]}
    before, _, after = body.partition("## Use\n")
    _, made, how = after.partition("## How it was made\n")
    use = _use(template, catalogue, max_new_tokens, adapter=False)
    merged = "`rosepo merge` then wrote the adapter into its base.\n"
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n{before}{use}\n{made}{how}\n{merged}"


def _use(
    template: TemplateConfig, catalogue: Catalogue, max_new_tokens: int, adapter: bool, quantize: str = "none"
) -> str:
    return (
        f"## Use\n\nPlain {'PEFT' if adapter else 'Transformers'}, without rosepo, in this folder:\n\n"
        f"```python\n{usage(template, catalogue.titles[:3], max_new_tokens, adapter, quantize)}```\n\n"
        f"{_free(template)}\n"
    )


def _free(template: TemplateConfig) -> str:
    """What to know of generation without a constraint."""
    if template.candidates:
        return (
            "Prompts list the candidates, the right one among them, in random order; the answer is meant to be one of"
            " them, and `rosepo evaluate` says how often it is."
        )
    return (
        "Free generation may write a title that does not exist. `rosepo recommend` searches the titles of"
        " `catalogue.parquet` alone and leaves the history out."
    )


def usage(
    template: TemplateConfig, history: list[str], max_new_tokens: int, adapter: bool, quantize: str = "none"
) -> str:
    """A Python script that completes a prompt in plain Transformers or PEFT, run inside the model folder."""
    auto = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    imports = (
        ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer"]
        if adapter
        else ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    )
    held = _QUANTIZED.get(quantize, [])
    if held:
        imports[-1] = "from transformers import AutoTokenizer, BitsAndBytesConfig"
    lines = [
        "import torch",
        *imports,
        "",
        'folder = "."',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        *held,
        f"model = {auto}.from_pretrained(folder{', quantization_config=held' if held else ''}).eval()",
        "",
        "",
        *_ids_function(template),
        "",
        "",
        f"history = {history!r}  # oldest first",
        *([f"candidates = {history[::-1]!r}  # the answer is one of them"] if template.candidates else []),
        "prompt = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []",
        *_list_lines(template),
        f"prompt += ids({template.prefix!r})",
        "for title in history:",
        f"    prompt += ids(title) + ids({template.separator!r})",
    ]
    if template.suffix:
        lines.append(f"prompt += ids({template.suffix!r})")
    lines += [
        f"inputs = torch.tensor([prompt]{', device=model.device' if held else ''})",
        "answer = model.generate(",
        "    input_ids=inputs,",
        "    attention_mask=torch.ones_like(inputs),",
        f"    max_new_tokens={max_new_tokens},",
        "    do_sample=False,",
        ")",
        "print(tokenizer.decode(answer[0, len(prompt) :], skip_special_tokens=True))",
    ]
    return "\n".join(lines) + "\n"


def _opening(template: TemplateConfig) -> str:
    """What opens the list of candidates; nothing where there is none."""
    return template.candidates_prefix if template.candidates else ""


def _list_lines(template: TemplateConfig) -> list[str]:
    """The candidates of the prompt, where it lists them."""
    if not template.candidates:
        return []
    listed = ["for title in candidates:", f"    prompt += ids(title) + ids({template.separator!r})"]
    return [f"prompt += ids({template.candidates_prefix!r})", *listed] if template.candidates_prefix else listed


_QUANTIZED = {
    "nf4": [
        "# The adapter was trained on its base in four bits; bitsandbytes holds it so.",
        "held = BitsAndBytesConfig(",
        "    load_in_4bit=True,",
        '    bnb_4bit_quant_type="nf4",',
        "    bnb_4bit_use_double_quant=True,",
        "    bnb_4bit_compute_dtype=torch.float32,",
        ")",
    ],
    "int8": [
        "# The adapter was trained on its base in eight bits; bitsandbytes holds it so.",
        "held = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)",
    ],
}
"""`quantization_config` in plain Transformers."""


def _ids_function(template: TemplateConfig) -> list[str]:
    plain = '    return tokenizer(text, add_special_tokens=False)["input_ids"]'
    if not any("{eos}" in part for part in (template.prefix, template.separator, template.suffix, _opening(template))):
        return ["def ids(text):", plain]
    return [
        "def ids(text):",
        '    if "{eos}" in text:',
        '        before, _, after = text.partition("{eos}")',
        "        return (ids(before) if before else []) + [tokenizer.eos_token_id] + (ids(after) if after else [])",
        plain,
    ]


def _front_matter(record: ModelRecord, adapter: bool) -> str:
    tags = ["recommendation", "sequential-recommendation", "rosepo", "ray", "deepspeed"]
    head: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": [*tags, "lora"] if adapter else tags,
    }
    # The hub takes ids of its own here, not somebody's folder.
    base = record.model.path
    if base is not None and not Path(base).expanduser().exists():
        head["base_model"] = base
    if record.data.dataset is not None:
        head["datasets"] = [record.data.dataset]
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n"


def _facts(record: ModelRecord, catalogue: Catalogue, adapter: bool, quantize: str) -> str:
    model, data = record.model, record.data
    if model.path is None:
        base = "none: a small Llama from random weights, with a tokenizer trained on the catalogue's titles"
    else:
        base = f"`{model.path}`" + (f" at revision `{model.revision}`" if model.revision else "")
    weights = f"LoRA adapter of rank {model.lora.rank}" if model.lora else "the adapter" if adapter else "all weights"
    if quantize != "none":
        weights += f", on a base in {quantize}"
    source = data.dataset or f"`{data.interactions}` and `{data.items}`"
    template = model.template
    rows = {
        "Base model": base,
        "Trained": weights,
        "Data": f"{source}; {len(catalogue):,} items, {int(catalogue.train_count.sum()):,} training interactions",
        "Prompt": f"{_list_words(record)}prefix `{template.prefix!r}`, each title followed by `{template.separator!r}`,"
        f" suffix `{template.suffix!r}`; the completion is one title{' and EOS' if template.end else ''}",
        "Longest prompt and completion": f"{model.max_length} tokens, at most {record.max_history} items",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items()), ""])


def _list_words(record: ModelRecord) -> str:
    template = record.model.template
    if not template.candidates:
        return ""
    return f"`{template.candidates_prefix!r}` and {record.candidates} candidates, each followed as titles are; "


def _figures(figures: Mapping[str, Any]) -> str:
    if not figures:
        return "## Metrics\n\nNone were measured when this card was written; `rosepo evaluate` measures them.\n"
    rows = [f"| {name} | {_number(value)} |" for name, value in figures.items()]
    return "\n".join(["## Metrics", "", "| | |", "|---|---|", *rows, ""])


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else _cell(str(value))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
