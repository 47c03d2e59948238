"""From item indexes to token ids: the one place where prompts and completions are put together.

Every title and every template part is tokenised once on its own and joined in token space, so that the boundary between
prompt and completion is the same in training, reference pass, sampling and evaluation, whatever the tokenizer merges.

    prompt     = [BOS, if there is one] (candidates_prefix (title separator)*)? prefix (title separator)* suffix
    completion = title end

with EOS as the template's `end`, or nothing. A chat template puts what it writes around the user's message in place of
BOS and behind the suffix; the parts are then a title with its separator, what stands before them and what stands behind
(`rosepo.data.chat`), and the completion ends as the assistant's turn does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from rosepo.config import TemplateConfig
from rosepo.data.chat import Chat, chat_of, special_tokens
from rosepo.data.titles import check_tokens, tokens_of
from rosepo.utils.arrays import ranges
from rosepo.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 5_000  # prompts a tokenizer call


class PromptBuilder:
    """Prompts and completions of one catalogue under one tokenizer and template.

    Args:
        tokenizer: a Hugging Face tokenizer with an EOS token; BOS is used where it has one.
        titles: [n_items] titles, in item order.
        template: text around the titles; `{eos}` in a part stands for the EOS token.
        max_length: tokens of prompt and completion together.

    Attributes:
        template: with what a chat template fills in; its `chat` is `no` where none is used.
        chat: the chat template, None where none is used.
        head: int32, BOS (or what the chat template begins with) and prefix: what every prompt starts with, but for
            those that list candidates, in which the list stands between the two.
        lists_candidates: whether prompts list candidates, `TemplateConfig.candidates`.
        separator: int32, follows every title of a prompt; in a chat's message a token of it may begin in the title.
        tail: int32, the suffix and what the chat template writes behind it: what every prompt ends with.
        end: int32, follows every completion.
        stop_id: the token that ends an answer: EOS, or what ends the assistant's turn.
        piece_lengths: int64 [n_items], tokens of every title and the separator behind it, as they stand in a prompt.
        longest_completion: tokens of the catalogue's longest completion, `end` included.

    Raises:
        UserError: a tokenizer without EOS; a chat template that cannot be used (`chat_of`); a title without tokens,
            with an EOS inside, or with another title's tokens; one that begins with another's where nothing ends a
            completion; a max_length without room for the longest title both in the history and as the completion.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, titles: Sequence[str], template: TemplateConfig, max_length: int
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no EOS token, which ends every title: set one, or use another model")
        self.eos_id = int(tokenizer.eos_token_id)
        self.chat = chat_of(tokenizer, template)
        self.template = template.model_copy(update={"chat": "no"}) if self.chat is None else self.chat.template
        self.max_length = max_length
        self.lists_candidates = template.candidates
        self.separator = self._part(tokenizer, template.separator)
        self.end = self._part(tokenizer, self.template.end)
        if not len(self.separator) and template.separator:
            raise UserError(
                f"model.template.separator={template.separator!r} has no tokens in this tokenizer: choose another"
            )
        self.stop_id = int(self.end[-1]) if self.chat is not None and len(self.end) else self.eos_id
        self._flat, self._offsets = tokens_of(tokenizer, titles)
        self._lengths = np.diff(self._offsets)
        forbidden = {self.eos_id: "the text of the tokenizer's EOS token, which ends a title"}
        if self.chat is None:
            self._in_chat, self.piece_lengths = None, self._lengths + len(self.separator)
        else:
            forbidden |= {token: f"{text}, a token of the chat template" for token, text in special_tokens(tokenizer)}
            parted = template.separator
            self._in_chat = tokens_of(tokenizer, [title + parted for title in titles], parted)
            self.piece_lengths = np.diff(self._in_chat[1])
        check_tokens(titles, self._flat, self._offsets, forbidden, ended=len(self.end) > 0)
        self.head, self._list_head, self._prefix, self.tail = self._fixed(tokenizer, self.chat)
        self.longest_completion = int(self._lengths.max(initial=0)) + len(self.end)
        self._check_room(titles)

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def template_tokens(self) -> int:
        """Tokens that every prompt has beside its titles and their separators."""
        opening = len(self._list_head) + len(self._prefix) if self.lists_candidates else len(self.head)
        return opening + len(self.tail)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every title [n_items] int64, `end` not counted."""
        return self._lengths

    def title_ids(self, item: int) -> np.ndarray:
        """Token ids of a title, int32, without special tokens."""
        return self._flat[self._offsets[item] : self._offsets[item + 1]]

    def completion(self, item: int) -> np.ndarray:
        """Token ids of a title and what ends it, int32."""
        return np.concatenate((self.title_ids(item), self.end))

    def pieces(self, items: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Titles as they stand in a prompt, each with the separator behind it: their token ids end to end, int32, and
        how many each has, int64 [n]."""
        flat, offsets = self._pieces
        rows = np.asarray(items, dtype=np.int64)
        lengths = offsets[rows + 1] - offsets[rows]
        return flat[ranges(offsets[rows], lengths)], lengths

    @cached_property
    def _pieces(self) -> tuple[np.ndarray, np.ndarray]:
        """The same of the whole catalogue, and where each begins, int64 [n_items + 1]."""
        if self._in_chat is not None:
            return self._in_chat
        if not len(self.separator):
            return self._flat, self._offsets
        ends = np.repeat(self._offsets[1:], len(self.separator))
        flat = np.insert(self._flat, ends, np.tile(self.separator, len(self)))
        return flat, self._offsets + np.arange(len(self) + 1) * len(self.separator)

    def dropped(self, history: Sequence[int] | np.ndarray, fixed: int | None = None) -> int:
        """How many of the oldest items of a history its prompt leaves out.

        Args:
            fixed: tokens of the prompt beside the history; None for a prompt without candidates.

        Raises:
            UserError: see `prompt`.
        """
        items = np.asarray(history, dtype=np.int64)
        fixed = self.template_tokens if fixed is None else fixed
        room = self.max_length - self.longest_completion - fixed
        newest_first = np.cumsum(self.piece_lengths[items][::-1])
        kept = int(np.searchsorted(newest_first, room, side="right"))
        if room < 0 or (kept == 0 and len(items)):
            raise UserError(
                f"model.max_length={self.max_length} has no room for a history item: the template takes {fixed} tokens"
                f"{' with its candidates' if self.lists_candidates else ''}, the completion "
                f"{self.longest_completion}: raise it"
            )
        return len(items) - kept

    def prompt(
        self,
        history: Sequence[int] | np.ndarray,
        candidates: Sequence[int] | np.ndarray | None = None,
    ) -> tuple[np.ndarray, int]:
        """The prompt of a history, cut from its oldest end where it would leave too little room for the completion.

        Args:
            history: item indexes, oldest first.
            candidates: item indexes listed before the history; never cut. Given where the template lists them, and
                nowhere else.

        Returns:
            Token ids int32, and how many of the oldest history items were left out.

        Raises:
            UserError: not even the newest item (or, with an empty history, the template) fits.
            ValueError: candidates that the template does not list, or none where it does.
        """
        if (candidates is not None) != self.lists_candidates:
            raise ValueError(f"candidates={candidates} do not go with a template of candidates={self.lists_candidates}")
        items = np.asarray(history, dtype=np.int64)
        opening = self._opening(candidates)
        dropped = self.dropped(items, sum(len(part) for part in opening) + len(self.tail))
        return np.concatenate([*opening, self.pieces(items[dropped:])[0], self.tail]), dropped

    def prompts(
        self, histories: Sequence[np.ndarray], candidates: np.ndarray | None = None
    ) -> tuple[list[np.ndarray], list[int]]:
        """The prompts of many histories, and how many of the oldest items each leaves out; see `prompt`.

        Args:
            histories: N arrays of item indexes, each oldest first.
            candidates: int64 [N, C]; not looked at where the template lists none.

        Raises:
            UserError: a history for which there is no room, or no candidates where the template lists them.
        """
        if not self.lists_candidates:
            made = [self.prompt(history) for history in histories]
        elif candidates is None:
            raise UserError(
                "this model answers out of candidates that its prompts list (model.template.candidates=true), and these"
                " examples have none: set prepare.candidates, or take a model without"
            )
        else:
            made = [self.prompt(history, candidates=row) for history, row in zip(histories, candidates, strict=True)]
        return [prompt for prompt, _ in made], [dropped for _, dropped in made]

    def read_alike(self, tokenizer: PreTrainedTokenizerBase, titles: Sequence[str]) -> int:
        """Of how many titles (the catalogue's, or the first of them) a prompt has the ids of its whole text, which are
        those of `apply_chat_template`: no token reaches over a joint. With a chat template alone."""
        if self.chat is None:
            raise ValueError("prompts without a chat template are no text that was read as a whole")
        alike = 0
        for start in range(0, len(titles), _CHUNK):
            texts = [self.chat.text([title, title], [title]) for title in titles[start : start + _CHUNK]]
            for place, ids in enumerate(tokenizer(texts, add_special_tokens=False)["input_ids"], start):
                listed = [place] if self.lists_candidates else None
                parts = [*self._opening(listed), self.pieces([place, place])[0], self.tail]
                alike += ids == np.concatenate(parts).tolist()
        return alike

    def _opening(self, candidates: Sequence[int] | np.ndarray | None) -> list[np.ndarray]:
        """What stands before the history."""
        if candidates is None:
            return [self.head]
        return [self._list_head, self.pieces(candidates)[0], self._prefix]

    def _fixed(self, tokenizer: PreTrainedTokenizerBase, chat: Chat | None) -> tuple[np.ndarray, ...]:
        """Head, head with the opening of a list, prefix behind a list, and tail; int32."""
        parts = self.template
        openings = (parts.prefix, parts.candidates_prefix)
        if chat is None:
            bos = np.array([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id], dtype=np.int32)
            heads = [np.concatenate([bos, self._part(tokenizer, opening)]) for opening in openings]
            return *heads, self._part(tokenizer, parts.prefix), self._part(tokenizer, parts.suffix)
        heads = [tokens_of(tokenizer, [chat.head + opening])[0] for opening in openings]
        behind = (tokens_of(tokenizer, [text], parts.separator)[0] for text in (parts.prefix, parts.suffix + chat.tail))
        return *heads, *behind

    def _part(self, tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
        ids: list[int] = []
        for number, piece in enumerate(text.split("{eos}")):
            if number:
                ids.append(self.eos_id)
            if piece:
                ids.extend(tokenizer(piece, add_special_tokens=False)["input_ids"])
        return np.array(ids, dtype=np.int32)

    def _check_room(self, titles: Sequence[str]) -> None:
        item = int(np.argmax(self.piece_lengths))
        tokens = int(self._lengths[item])
        needed = self.template_tokens + int(self.piece_lengths[item]) + self.longest_completion
        if needed > self.max_length:
            raise UserError(
                f"model.max_length={self.max_length} has no room for title {titles[item]!r} both in the history and as"
                f" the completion: it takes {tokens} tokens, the template {self.template_tokens}; raise it to {needed},"
                " or shorten the title"
            )
