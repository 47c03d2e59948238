"""Settings of the model: where it comes from and how a history is put into words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from rosepo.config.base import Count, Positive, Rate, Section, word

WISH = "Next title:"
"""What a message asks for, behind the history, where `model.template.suffix` is not given."""


class ScratchConfig(Section):
    """A small Llama with a BPE tokenizer trained on the catalogue: needs no download."""

    hidden_size: Count = 128
    layers: Count = 2
    heads: Count = 4
    intermediate_size: Count = 512
    vocab_size: Annotated[int, Field(ge=300)] = 8192
    """Upper bound of the tokenizer's vocabulary (bytes included)."""
    whole_titles: Annotated[int, Field(ge=0)] = 0
    """The most popular titles, so many of them, are one token each, on top of `vocab_size`."""
    split_words: bool = False
    """False lets merges cross spaces: frequent titles become one or two tokens."""
    dropout: Rate = 0.3

    def faults(self) -> Iterator[str]:
        if self.whole_titles and self.split_words:
            yield "model.scratch.whole_titles is not used beside model.scratch.split_words=true: leave one of them out"
        if self.hidden_size % (2 * self.heads):
            yield f"model.scratch.hidden_size={self.hidden_size} must be a multiple of 2 * heads={2 * self.heads}"


class LoraConfig(Section):
    """Low-rank adapters instead of full training (PEFT)."""

    rank: Count = 16
    alpha: Positive = 32.0
    dropout: Rate = 0.05
    target_modules: str | tuple[str, ...] = "all-linear"
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023, arXiv 2312.03732)."""
    dora: bool = False
    """Magnitudes of the weights train beside their directions (Liu et al. 2024, arXiv 2402.09353)."""
    quantize: Literal["none", "nf4", "int8"] = "none"
    """How the frozen base is held, in all stages: 4 bits a weight (QLoRA) or 8, with bitsandbytes."""


class TemplateConfig(Section):
    """How a history becomes a prompt: BOS (if there is one), `prefix`, every title followed by `separator`, `suffix`.

    With `candidates`, the list stands behind BOS: `candidates_prefix` and every candidate followed by `separator`.
    Parts are tokenised one by one and joined in token space, so that the boundary between prompt and completion is the
    same everywhere. `{eos}` in a part stands for the end-of-sequence token.

    With the chat template of an instruct model all of this is the text of one message of the user, behind a `system`
    message if there is one, and the completion is the assistant's.
    """

    chat: Annotated[Literal["auto", "no"], BeforeValidator(word)] = "auto"
    """The tokenizer's chat template around the prompt: wherever it has one and no part holds `{eos}`, or never. Models
    from scratch have none."""
    system: str = ""
    """Text of a system message before the user's; none where it is empty. With the chat template alone."""
    prefix: str = "Titles that one person liked, oldest first:\n"
    separator: str = "\n"
    suffix: str = ""
    """Text between the last title and the completion; with the chat template, where it is not given, `Next title:`:
    many of them strip the white space that a message ends with."""
    end: str = "{eos}"
    """What ends a completion; with the chat template, where it is not given, the token that ends the assistant's turn.
    It may be empty where no title's tokens begin another's, as where each is one token (model.scratch.whole_titles);
    `separator` may be then, too."""
    candidates: bool = False
    """The candidate protocol: every prompt lists its example's own candidates (`prepare.candidates`), and the model
    learns, rejects and is measured on one of them."""
    candidates_prefix: str = "Choose from:\n"
    """Opens the list of candidates, which stands before `prefix`."""

    def faults(self) -> Iterator[str]:
        if not self.separator and self.end:
            yield "model.template.separator is empty: titles would run into one another"
        if self.chat == "no" and self.system:
            yield (
                "model.template.system is a message of the chat template, which model.template.chat=no does not use: "
                "leave one of them out"
            )


class ModelConfig(Section):
    """The language model that becomes the recommender."""

    path: str | None = None
    """Hub id or local folder of any causal LM that Transformers loads. None trains `scratch`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    scratch: ScratchConfig | None = None
    lora: LoraConfig | None = None
    """None trains all weights."""
    max_length: Annotated[int, Field(ge=16)] = 512
    """Tokens of prompt and completion together; over-long prompts lose their oldest items."""
    template: TemplateConfig = TemplateConfig()

    def faults(self) -> Iterator[str]:
        if self.path is not None and self.scratch is not None:
            yield f"model.path={self.path} excludes model.scratch: give one or the other"
        if self.path is None and self.revision is not None:
            yield "model.revision needs model.path"
        if self.path is None and self.template.system:
            yield (
                "model.template.system is a message of a chat template, and a model from scratch has none: leave it out"
            )
        if self.path is None and self.lora is not None:
            yield "model.lora needs a pretrained model.path: a model from scratch has no base to adapt"

    @property
    def scratch_config(self) -> ScratchConfig:
        """The scratch settings, defaults filled in."""
        return self.scratch or ScratchConfig()
