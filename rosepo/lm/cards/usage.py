"""The part of a model card that says how to use a model without rosepo: a script, and what to know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rosepo.config import TemplateConfig
from rosepo.data.prompts import PromptBuilder

LOOKED_AT = 20_000
"""Titles whose prompts are compared with those of the chat template, at most."""


@dataclass(frozen=True)
class ChatUse:
    """What a card says of a chat template.

    Attributes:
        options: what `apply_chat_template` is given beside the messages.
        alike, looked_at: of how many titles a prompt has the ids of the chat template's own call, and of how many.
    """

    options: Mapping[str, Any]
    alike: int
    looked_at: int

    @property
    def told(self) -> str:
        """For how many titles the ids are the same."""
        if self.alike == self.looked_at:
            return f"with each of the {self.looked_at:,} titles looked at"
        return f"with {self.alike:,} of the {self.looked_at:,} titles looked at; with others tokens reach over joints"


def chat_use(builder: PromptBuilder, tokenizer: PreTrainedTokenizerBase, titles: Sequence[str]) -> ChatUse | None:
    """The same of a model's prompts; None where they use no chat template."""
    if builder.chat is None:
        return None
    titles = titles[:LOOKED_AT]
    return ChatUse(builder.chat.options, builder.read_alike(tokenizer, titles), len(titles))


def use(script: str, template: TemplateConfig, max_new_tokens: int, adapter: bool, chat: ChatUse | None) -> str:
    """The section of the card, Markdown.

    Args:
        script: that `usage` gave for the same arguments.
    """
    return (
        f"## Use\n\nPlain {'PEFT' if adapter else 'Transformers'}, without rosepo, in this folder:\n\n"
        f"```python\n{script}```\n\n{'' if chat is None else _calls(chat, max_new_tokens, adapter)}{_free(template)}\n"
    )


def _calls(chat: ChatUse, max_new_tokens: int, adapter: bool) -> str:
    """The same messages in other programs."""
    merged = " (of the model that `rosepo merge` makes)" if adapter else ""
    given = f", chat_template_kwargs={dict(chat.options)!r}" if chat.options else ""
    piped = f", tokenizer_encode_kwargs={dict(chat.options)!r}" if chat.options else ""
    return (
        f"The ids of these messages are those that the model was trained on, {chat.told}. Other programs take the "
        f"messages too{merged}:\n\n```python\n"
        f'pipeline("text-generation", model=folder)(messages, max_new_tokens={max_new_tokens}{piped})  # Transformers\n'
        f"LLM(folder).chat(messages, SamplingParams(temperature=0, max_tokens={max_new_tokens}){given})  # vLLM\n"
        "```\n\n"
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
    template: TemplateConfig,
    history: list[str],
    max_new_tokens: int,
    adapter: bool,
    quantize: str = "none",
    chat: ChatUse | None = None,
) -> str:
    """A Python script that completes a prompt in plain Transformers or PEFT, run inside the model folder.

    Args:
        template: of the prompts, with what a chat template fills in.
        history: titles, oldest first.
        max_new_tokens: of the longest title and what ends it.
        adapter: a PEFT adapter, not a whole model.
        quantize: none, nf4 or int8: how its base is held.
        chat: None where no chat template is used.
    """
    auto = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    imports = (
        ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer"]
        if adapter
        else ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    )
    held = _QUANTIZED.get(quantize, [])
    if held:
        imports[-1] = "from transformers import AutoTokenizer, BitsAndBytesConfig"
    on_device = ", device=model.device" if held else ""
    lines = [
        "import torch",
        *imports,
        "",
        'folder = "."',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        *held,
        f"model = {auto}.from_pretrained(folder{', quantization_config=held' if held else ''}).eval()",
        "",
        *([] if chat is not None else ["", *_ids_function(template), "", ""]),
        f"history = {history!r}  # oldest first",
        *([f"candidates = {history[::-1]!r}  # the answer is one of them"] if template.candidates else []),
        *(_prompt(template) if chat is None else _messages(template, chat)),
        f"inputs = torch.tensor([prompt]{on_device})",
        "answer = model.generate(",
        "    input_ids=inputs,",
        "    attention_mask=torch.ones_like(inputs),",
        f"    max_new_tokens={max_new_tokens},",
        "    do_sample=False,",
        ")",
        "print(tokenizer.decode(answer[0, len(prompt) :], skip_special_tokens=True))",
    ]
    return "\n".join(lines) + "\n"


def _prompt(template: TemplateConfig) -> list[str]:
    """The ids of a prompt, part by part."""
    each = f"    prompt += ids(title) + ids({template.separator!r})"
    lines = ["prompt = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []"]
    if template.candidates:
        lines += [f"prompt += ids({template.candidates_prefix!r})"] if template.candidates_prefix else []
        lines += ["for title in candidates:", each]
    lines += [f"prompt += ids({template.prefix!r})", "for title in history:", each]
    return [*lines, f"prompt += ids({template.suffix!r})"] if template.suffix else lines


def _messages(template: TemplateConfig, chat: ChatUse) -> list[str]:
    """The messages, and their ids."""
    each = f"title + {template.separator!r} for title in"
    lines = [f"text = {template.prefix!r} + ''.join({each} history) + {template.suffix!r}"]
    if template.candidates:
        lines.append(f"text = {template.candidates_prefix!r} + ''.join({each} candidates) + text")
    system = [f'    {{"role": "system", "content": {template.system!r}}},'] if template.system else []
    given = "".join(f", {key}={value!r}" for key, value in chat.options.items())
    return [
        *lines,
        "messages = [",
        *system,
        '    {"role": "user", "content": text},',
        "]",
        f'prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True{given})["input_ids"]',
    ]


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
    opening = template.candidates_prefix if template.candidates else ""
    if not any("{eos}" in part for part in (template.prefix, template.separator, template.suffix, opening)):
        return ["def ids(text):", plain]
    return [
        "def ids(text):",
        '    if "{eos}" in text:',
        '        before, _, after = text.partition("{eos}")',
        "        return (ids(before) if before else []) + [tokenizer.eos_token_id] + (ids(after) if after else [])",
        plain,
    ]
