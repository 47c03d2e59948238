"""Chat templates as families of instruct models have them, and tokenizers as these families cut text, trained on the
spot."""

from __future__ import annotations

import string

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TITLES = [
    "Heat (1995)", "Ran", "The Third Man (1949)", "Amélie", "8½", "Heat", "(500) Days of Summer (2009)", "M*A*S*H",
    "10 Things I Hate About You (1999)", "千と千尋の神隠し", "What's Up, Doc? (1972)", "Se7en",
    "...And Justice for All",
]  # fmt: skip

LETTERS = string.ascii_letters + string.digits + string.punctuation + "▁éß½千と"
"""What titles may be written with."""

LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + "
    "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
"""The first one, which writes where an answer begins whether it is asked to or not."""
DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ bos_token }}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}<|eot_id|>{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""As Llama 3.2's."""
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}<|im_start|>system\nYou help."
    "<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (
    "{%- for message in messages %}{%- if message.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{{- message.content.lstrip('\n') + '<|im_end|>\n' }}{%- else %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and "
    "enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)

CHATS = {
    "llama3": (LLAMA3, "llama3", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    "llama3.2": (DATED, "llama3", "<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>"),
    "qwen3": (QWEN3, "llama3", None, "<|im_end|>", "<|im_end|>"),
    "smollm2": (CHATML, "gpt2", "<|im_start|>", "<|im_end|>", "<|im_end|>"),
    "gemma": (GEMMA, "gemma", "<bos>", "<eos>", "<end_of_turn>"),
    "mistral": (MISTRAL, "llama2", "<s>", "</s>", "</s>"),
}
"""By family: template, how text is cut, BOS, EOS, and what ends the assistant's turn."""

_SPECIAL = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>", "<start_of_turn>",
            "<end_of_turn>", "[INST]", "[/INST]")  # fmt: skip
_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""As Llama 3 cuts text: punctuation takes the line's end behind it along."""


def chat_tokenizer(family: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer that cuts text as a family's does, with its chat template or another."""
    written, cut, bos, eos, _ = CHATS[family]
    core = Tokenizer(models.BPE())
    lines = [f"{title}\n{other}" for title in TITLES for other in TITLES]
    alphabet: list[str] = []
    if cut in ("llama3", "gpt2"):
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut == "gpt2")
        first = pre_tokenizers.Digits(individual_digits=True) if cut == "gpt2" else pre_tokenizers.Split(
            Regex(_CUT), "isolated")  # fmt: skip
        core.pre_tokenizer = pre_tokenizers.Sequence([first, level])
        core.decoder = decoders.ByteLevel()
    else:
        spaces = normalizers.Replace(" ", "▁")
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if cut == "llama2" else spaces
        core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
        # No piece of theirs goes on behind a line's end.
        lines, alphabet = TITLES, list(LETTERS + "\n")
    special = list(dict.fromkeys([*filter(None, (bos, eos)), *_SPECIAL]))
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([*lines, "Titles that one person liked, oldest first:", "Next title:"], trainer)
    ends = {"eos_token": eos} if bos is None else {"bos_token": bos, "eos_token": eos}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **ends)
    tokenizer.chat_template = written if template is None else template
    return tokenizer
