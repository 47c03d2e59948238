"""A tokenizer's chat template around a prompt: what it writes before and behind a message of the user, as text.

The template is rendered with a mark in place of the message and cut there, so that the prompt of a history is

    head prefix (title separator)* suffix tail

and has the ids of `apply_chat_template` wherever no token reaches over a joint between these parts. Each part is read
as it stands behind a separator: most tokenizers have a token for the `)` of a title with the line's end behind it, and
some put a space before whatever they are given first. `PromptBuilder.read_alike` counts the titles of which it is true.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rosepo.config import TemplateConfig
from rosepo.config.model import WISH
from rosepo.utils.errors import UserError, said

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SET = {"enable_thinking": False, "date_string": "26 Jul 2024"}
"""What templates are told where they ask: to answer at once, and a date (Llama's own default) that stays the same."""
_MARK = "Rosepo7Mark"


@dataclass(frozen=True)
class Chat:
    """The chat template of one tokenizer around the prompts of one template.

    Attributes:
        template: the same, with what it leaves open filled in: `suffix` and `end`.
        head: text of a prompt before the user's message, a system message included.
        tail: text behind it, up to where the assistant's begins.
        options: variables of the template that are set; `apply_chat_template` takes them by name.
    """

    template: TemplateConfig
    head: str
    tail: str
    options: Mapping[str, Any]

    def text(self, titles: Sequence[str], candidates: Sequence[str] = ()) -> str:
        """The text of a prompt."""
        return self.head + message(self.template, titles, candidates) + self.tail


def message(template: TemplateConfig, titles: Sequence[str], candidates: Sequence[str] = ()) -> str:
    """What the user's message says."""
    listed = [template.candidates_prefix, *(title + template.separator for title in candidates)]
    liked = [template.prefix, *(title + template.separator for title in titles)]
    return "".join([*(listed if template.candidates else []), *liked, template.suffix])


def chat_of(tokenizer: PreTrainedTokenizerBase, template: TemplateConfig) -> Chat | None:
    """The chat template in force; None where none is used, see `unused`.

    Raises:
        UserError: one that cannot carry the prompts: it raises, changes what a message says, begins to think before
            the answer, or says what day it is; or a system message where none is used.
    """
    name = tokenizer.name_or_path or "this model"
    why = unused(tokenizer, template)
    if why is not None and template.system:
        raise UserError(
            f"model.template.system is a message of a chat template, and for {name} none is used, as {why}: leave it "
            "out, or put it into model.template.prefix"
        )
    if why is not None:
        return None
    given = template.model_fields_set
    template = template if "suffix" in given else template.model_copy(update={"suffix": WISH})
    rendering = _Rendering(tokenizer, template.system, name)
    head, tail = rendering.around()
    sample = message(template, [_MARK], [_MARK])
    if rendering.of(sample) != head + sample + tail:
        raise rendering.fault(
            "changes what a message says, such as white space at its ends: begin and end it otherwise "
            "(model.template.prefix, model.template.suffix)"
        )
    if "<think>" in tail and "</think>" not in tail:
        raise rendering.fault("begins to think before the answer: take a model without")
    if "end" not in given:
        template = template.model_copy(update={"end": rendering.end() or template.end})
    return Chat(template, head, tail, rendering.options)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, str]]:
    """The tokens that stand for no text, but for the one of unknown characters: ids and how they are written."""
    added = tokenizer.added_tokens_decoder.items()
    return [(id, str(token)) for id, token in added if token.special and id != tokenizer.unk_token_id]


def unused(tokenizer: PreTrainedTokenizerBase, template: TemplateConfig) -> str | None:
    """Why no chat template is put around prompts of a template, in words; None where one is."""
    if template.chat == "no":
        return "model.template.chat is no"
    if not getattr(tokenizer, "chat_template", None):
        return "its tokenizer has none"
    if not template.separator:
        return "model.template.separator is empty"
    parts = ("prefix", "separator", "suffix", *(("candidates_prefix",) if template.candidates else ()))
    ended = next((part for part in parts if "{eos}" in getattr(template, part)), None)
    return None if ended is None else f"model.template.{ended} holds {{eos}}, which would end a message"


class _Rendering:
    """What a tokenizer's chat template writes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str, name: str) -> None:
        self.tokenizer, self.system, self.name = tokenizer, system, name
        try:
            self.source = tokenizer.get_chat_template()
        except ValueError as error:
            raise self.fault(f"is not one, but several ({said(error)}): use another model") from error
        self.options = {key: value for key, value in SET.items() if key in self.source}

    def fault(self, what: str) -> UserError:
        """An error about the template."""
        return UserError(f"the chat template of {self.name} {what}, or set model.template.chat=no")

    def of(self, text: str, answer: str | None = None, **options: Any) -> str:
        """The text of a conversation: up to where the assistant's answer begins, or with an answer."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": text})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        options = {"tokenize": False, "add_generation_prompt": answer is None, **self.options, **options}
        try:
            return str(self.tokenizer.apply_chat_template(messages, **options))
        except Exception as error:  # whatever a template's own code raises
            remedy = ": put model.template.system into model.template.prefix" if self.system else ": use another model"
            raise self.fault(f"cannot be used ({said(error)}){remedy}") from error

    def around(self) -> tuple[str, str]:
        """What stands before and behind the user's message."""
        text = self.of(_MARK)
        if self._asks_the_day():
            raise self.fault("says what day it is, so that prompts of tomorrow would be others: give model.template."
                             "system, where that takes the date's place")  # fmt: skip
        head, mark, tail = text.partition(_MARK)
        if not mark or _MARK in tail or not tail:
            raise self.fault("does not write a message once, and behind it where the answer begins: use another model")
        if self.system.strip() not in head:
            raise self.fault("leaves out the system message: put model.template.system into model.template.prefix")
        return head, tail

    def _asks_the_day(self) -> bool:
        """Whether the calendar is called for: where it is none, that fails."""
        try:
            return "strftime_now" in self.source and not self.of(_MARK, strftime_now="")
        except UserError:
            return True

    def end(self) -> str | None:
        """What ends the assistant's turn: what stands behind its message up to the first special token, and that; None
        where no such token does."""
        _, mark, behind = self.of("?", answer=_MARK).rpartition(_MARK)
        found = [(behind.find(text), -len(text), text) for _, text in special_tokens(self.tokenizer) if text in behind]
        if not mark or not found:
            return None
        place, _, text = min(found)
        return behind[: place + len(text)].strip()
