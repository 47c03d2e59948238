"""The model card: what a finished model is and was trained on, how well it does, and how to use it without rosepo."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rosepo.config import TemplateConfig
from rosepo.data.catalogue import Catalogue
from rosepo.lm.cards.record import ModelRecord
from rosepo.lm.cards.usage import ChatUse, usage, use


def model_card(
    record: ModelRecord,
    catalogue: Catalogue,
    *,
    max_new_tokens: int,
    adapter: bool = False,
    quantize: str = "none",
    figures: Mapping[str, Any] | None = None,
    chat: ChatUse | None = None,
) -> str:
    """README.md of a model folder: YAML front matter and Markdown.

    Args:
        record: how it was made; its template with what a chat template fills in.
        catalogue: what it recommends from; its first titles make the example.
        max_new_tokens: tokens of the longest title, what ends it included.
        adapter: a PEFT adapter, not a whole model.
        quantize: none, nf4 or int8: how its base is held.
        figures: name → number or text: metrics and counts worth a row each.
        chat: None where prompts use no chat template.
    """
    template = record.model.template
    script = usage(template, catalogue.titles[:3], max_new_tokens, adapter, quantize, chat)
    parts = [
        _front_matter(record, adapter),
        f"# Recommender ({record.stage}) by rosepo\n",
        f"A causal language model that reads the titles that one person liked and writes the title of the next item. "
        f"Trained by {record.trained_by}.\n",
        _facts(record, catalogue, adapter, quantize, chat),
        _figures({**(figures or {}), **record.facts}),
        use(script, template, max_new_tokens, adapter, chat),
        f"## How it was made\n\n```sh\n{record.command}\n```\n\n"
        f"with this `config.yaml` (what it does not name is at its default):\n\n```yaml\n{record.config}```\n",
    ]
    return "\n".join(parts)


def merged_card(
    card: str, template: TemplateConfig, catalogue: Catalogue, max_new_tokens: int, chat: ChatUse | None
) -> str:
    """The card of an adapter's folder, for the whole model that the adapter was merged into.

    Args:
        card: what `model_card` made.
        template, catalogue, max_new_tokens, chat: as there.
    """
    _, head, body = card.split("---\n", 2)
    front = yaml.safe_load(head)
    front |= {"library_name": "transformers", "tags": [tag for tag in front["tags"] if tag != "lora"]}
    before, _, after = body.partition("## Use\n")
    _, made, how = after.partition("## How it was made\n")
    script = usage(template, catalogue.titles[:3], max_new_tokens, adapter=False, chat=chat)
    section = use(script, template, max_new_tokens, adapter=False, chat=chat)
    merged = "`rosepo merge` then wrote the adapter into its base.\n"
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n{before}{section}\n{made}{how}\n{merged}"


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


def _facts(record: ModelRecord, catalogue: Catalogue, adapter: bool, quantize: str, chat: ChatUse | None) -> str:
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
        "Prompt": f"{'' if chat is None else _chat_words(template)}{_list_words(record)}prefix `{template.prefix!r}`, "
        f"each title followed by `{template.separator!r}`, suffix `{template.suffix!r}`; the completion is one title"
        f"{_end_words(template, chat)}",
        "Longest prompt and completion": f"{model.max_length} tokens, at most {record.max_history} items",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items()), ""])


def _chat_words(template: TemplateConfig) -> str:
    system = f"a system message `{template.system!r}` and " if template.system else ""
    return f"by the tokenizer's chat template, {system}a message of the user: "


def _end_words(template: TemplateConfig, chat: ChatUse | None) -> str:
    if not template.end:
        return ""
    return " and EOS" if chat is None else f" and `{template.end}`, in the assistant's turn"


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
