"""From item indexes to token ids: the one place where prompts and completions are put together.

Every title and every template part is tokenised once on its own and joined in token space, so that the boundary between
prompt and completion is the same in training, reference pass, sampling and evaluation, whatever the tokenizer merges.

    prompt     = [BOS, if there is one] (candidates_prefix (title separator)*)? prefix (title separator)* suffix
    completion = title end

with EOS as the template's `end`, or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from rosepo.config import TemplateConfig
from rosepo.utils.arrays import ranges
from rosepo.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 50_000  # titles a tokenizer call: bounds the Python lists of a large catalogue


class PromptBuilder:
    """Prompts and completions of one catalogue under one tokenizer and template.

    Args:
        tokenizer: a Hugging Face tokenizer with an EOS token; BOS is used where it has one.
        titles: [n_items] titles, in item order.
        template: text around the titles; `{eos}` in a part stands for the EOS token.
        max_length: tokens of prompt and completion together.

    Attributes:
        head: int32, BOS and prefix: what every prompt starts with, but for those that list candidates, in which the
            list stands between the two.
        lists_candidates: whether prompts list candidates, `TemplateConfig.candidates`.
        separator: int32, follows every title of a prompt.
        tail: int32, the suffix: what every prompt ends with.
        end: int32, follows every completion.
        longest_completion: tokens of the catalogue's longest completion, `end` included.

    Raises:
        UserError: a tokenizer without EOS; a title without tokens, with an EOS inside, or with another title's tokens;
            one that begins with another's where nothing ends a completion; a max_length without room for the longest
            title both in the history and as the completion.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, titles: Sequence[str], template: TemplateConfig, max_length: int
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no EOS token, which ends every title: set one, or use another model")
        self.eos_id = int(tokenizer.eos_token_id)
        self.template = template
        self.max_length = max_length
        bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
        prefix = self._part(tokenizer, template.prefix)
        self.head = np.array([*bos, *prefix], dtype=np.int32)
        self.lists_candidates = template.candidates
        self._list_head = np.array([*bos, *self._part(tokenizer, template.candidates_prefix)], dtype=np.int32)
        self._prefix = np.array(prefix, dtype=np.int32)
        self.separator = np.array(self._part(tokenizer, template.separator), dtype=np.int32)
        self.tail = np.array(self._part(tokenizer, template.suffix), dtype=np.int32)
        self.end = np.array(self._part(tokenizer, template.end), dtype=np.int32)
        if not len(self.separator) and template.separator:
            raise UserError(
                f"model.template.separator={template.separator!r} has no tokens in this tokenizer: choose another"
            )
        self._flat, self._offsets = _tokenise(tokenizer, titles)
        self._lengths = np.diff(self._offsets)
        self._check_titles(titles)
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
        newest_first = np.cumsum((self._lengths[items] + len(self.separator))[::-1])
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
        opening = [self.head]
        if candidates is not None:
            opening = [self._list_head, self.pieces(candidates)[0], self._prefix]
        fixed = sum(len(part) for part in opening) + len(self.tail)
        dropped = self.dropped(items, fixed)
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

    def _part(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        ids: list[int] = []
        for number, piece in enumerate(text.split("{eos}")):
            if number:
                ids.append(self.eos_id)
            if piece:
                ids.extend(tokenizer(piece, add_special_tokens=False)["input_ids"])
        return ids

    def _check_titles(self, titles: Sequence[str]) -> None:
        if not len(titles):
            raise UserError("the catalogue is empty: there is no title to recommend")
        if (self._lengths == 0).any():
            title = titles[int(np.argmax(self._lengths == 0))]
            raise UserError(f"title {title!r} has no tokens in this tokenizer: rename the item or use another model")
        eos = np.flatnonzero(self._flat == self.eos_id)
        if len(eos):
            title = titles[int(np.searchsorted(self._offsets, eos[0], side="right")) - 1]
            raise UserError(
                f"title {title!r} holds the text of the tokenizer's EOS token, which ends a title: rename the item"
            )
        seen: dict[bytes, int] = {}
        for item in range(len(titles)):
            other = seen.setdefault(self.title_ids(item).tobytes(), item)
            if other != item:
                raise UserError(
                    f"titles {titles[other]!r} and {titles[item]!r} have the same tokens: "
                    "rename one or use another model"
                )
        if not len(self.end):
            self._check_parted(titles, seen)

    def _check_parted(self, titles: Sequence[str], seen: Mapping[bytes, int]) -> None:
        """Refuse a title that begins another one, by the bytes of their tokens: nothing would tell where it ends."""
        for item in np.flatnonzero(self._lengths > 1).tolist():
            ids = self.title_ids(item)
            other = next((seen[start] for end in range(1, len(ids)) if (start := ids[:end].tobytes()) in seen), None)
            if other is not None:
                raise UserError(
                    f"model.template.end is empty, and the tokens of title {titles[other]!r} begin those of "
                    f"{titles[item]!r}: set model.scratch.whole_titles={len(titles)}, or leave model.template.end out"
                )

    def _check_room(self, titles: Sequence[str]) -> None:
        item = int(np.argmax(self._lengths))
        tokens = int(self._lengths[item])
        needed = self.template_tokens + tokens + len(self.separator) + self.longest_completion
        if needed > self.max_length:
            raise UserError(
                f"model.max_length={self.max_length} has no room for title {titles[item]!r} both in the history and as"
                f" the completion: it takes {tokens} tokens, the template {self.template_tokens}; raise it to {needed},"
                " or shorten the title"
            )


def _tokenise(tokenizer: PreTrainedTokenizerBase, titles: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of all titles end to end, int32, and where each starts, int64 [n_items + 1]."""
    flat = [np.empty(0, dtype=np.int32)]
    lengths: list[int] = [0]
    for start in range(0, len(titles), _CHUNK):
        ids = tokenizer(list(titles[start : start + _CHUNK]), add_special_tokens=False)["input_ids"]
        lengths.extend(len(entry) for entry in ids)
        flat.append(np.fromiter((token for entry in ids for token in entry), dtype=np.int32))
    return np.concatenate(flat), np.cumsum(lengths, dtype=np.int64)
