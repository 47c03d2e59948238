"""One title, one item: titles that a model could not tell apart are refused or told apart."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rosepo.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 50_000  # titles a tokenizer call: bounds the Python lists of a large catalogue


def normalised(title: str) -> str:
    """What two titles are compared by: NFKC, case folded, white space collapsed, without what nobody sees."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", title).casefold())
    folded = re.sub(r"\s+", " ", folded)
    if not folded.isprintable():  # NUL, zero-width spaces and joiners, soft hyphens, marks of direction
        folded = re.sub(" +", " ", "".join(char for char in folded if unicodedata.category(char) not in ("Cc", "Cf")))
    return folded.strip()


class ItemLookup:
    """Items by what people write: an id, or a title, compared after normalisation. A number is an id.

    Args:
        titles, ids: of the catalogue, in item order.
    """

    def __init__(self, titles: Sequence[str], ids: Sequence[Any]) -> None:
        self._titles, self._ids = titles, ids
        self.by_title = {normalised(title): index for index, title in enumerate(titles)}
        self.by_id = {str(item): index for index, item in enumerate(ids)}

    def find(self, entry: Any, where: str) -> int | None:
        """The index of the item; None for what is neither.

        Raises:
            UserError: text that is the title of one item and the id of another, naming `where` it stands.
        """
        text = str(entry).strip()
        by_id = self.by_id.get(text)
        by_title = self.by_title.get(normalised(text)) if isinstance(entry, str) else None
        if by_id is not None and by_title is not None and by_id != by_title:
            raise UserError(
                f"{where}: {text!r} is the title of item {self._ids[by_title]!r} and the id of "
                f"{self._titles[by_id]!r}: write {str(self._ids[by_title])!r} for the one, or "
                f"{self._titles[by_id]!r} for the other"
            )
        return by_id if by_title is None else by_title


def distinct_titles(
    titles: Sequence[str],
    ids: Sequence[Any],
    duplicates: str,
    hint: Callable[[], str] = str,
    remedy: str = "--set prepare.duplicate_titles=disambiguate tells them apart",
) -> tuple[list[str], int]:
    """Titles without two that are equal after normalisation, and how many were changed.

    Args:
        titles: in item order.
        ids: item ids, for messages.
        duplicates: `refuse`; `disambiguate`: later ones get ` (2)`, ` (3)`, …, passing over titles that exist; or
            `auto`: that, unless there is a hint.
        hint: another remedy, the end of the sentence that refuses; empty for none. Asked where titles are equal.
        remedy: what that sentence says can be done.

    Raises:
        UserError: two items share a title and `duplicates` does not let them.
    """
    keys = [normalised(title) for title in titles]
    taken = set(keys)
    if len(taken) == len(keys):
        return list(titles), 0
    told = hint() if duplicates != "disambiguate" else ""
    refused = duplicates == "refuse" or bool(told)
    first: dict[str, int] = {}
    following: dict[str, int] = {}
    result, changed = list(titles), 0
    for place, key in enumerate(keys):
        other = first.setdefault(key, place)
        if other == place:
            continue
        if refused:
            raise UserError(
                f"items {ids[other]!r} ({titles[other]!r}) and {ids[place]!r} ({titles[place]!r}) have one title "
                f"({len(keys) - len(taken)} such in all): {remedy}{told}"
            )
        number = following.get(key, 2)
        while normalised(f"{titles[place]} ({number})") in taken:
            number += 1
        result[place] = f"{titles[place]} ({number})"
        taken.add(normalised(result[place]))
        following[key] = number + 1
        changed += 1
    return result, changed


def tokens_of(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], before: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of all texts end to end, int32, and where each starts, int64 [n + 1].

    Args:
        before: text behind which each is read; its own tokens are left out. A text that would share a token with it is
            read on its own.
    """
    context = _ids(tokenizer, [before])[0] if before else []
    flat = [np.empty(0, dtype=np.int32)]
    lengths: list[int] = [0]
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        ids = _ids(tokenizer, [before + text for text in chunk])
        for place, entry in enumerate(ids):
            if entry[: len(context)] != context:
                entry = context + _ids(tokenizer, chunk[place : place + 1])[0]
            ids[place] = entry[len(context) :]
        lengths.extend(len(entry) for entry in ids)
        flat.append(np.fromiter((token for entry in ids for token in entry), dtype=np.int32))
    return np.concatenate(flat), np.cumsum(lengths, dtype=np.int64)


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def check_tokens(
    titles: Sequence[str], flat: np.ndarray, offsets: np.ndarray, forbidden: Mapping[int, str], ended: bool
) -> None:
    """Refuse titles that a model could not tell apart by their tokens.

    Args:
        flat, offsets: of the titles, as `tokens_of` gives them.
        forbidden: tokens that no title may hold, id to words for them.
        ended: whether a completion has something that ends it.

    Raises:
        UserError: no titles; one without tokens, with a forbidden one inside, or with another title's tokens; one that
            begins with another's where nothing ends a completion.
    """
    lengths = np.diff(offsets)
    if not len(titles):
        raise UserError("the catalogue is empty: there is no title to recommend")
    if (lengths == 0).any():
        title = titles[int(np.argmax(lengths == 0))]
        raise UserError(f"title {title!r} has no tokens in this tokenizer: rename the item or use another model")
    inside = np.flatnonzero(np.isin(flat, list(forbidden)))
    if len(inside):
        title = titles[int(np.searchsorted(offsets, inside[0], side="right")) - 1]
        raise UserError(f"title {title!r} holds {forbidden[int(flat[inside[0]])]}: rename the item")
    seen: dict[bytes, int] = {}
    keys = [flat[start:stop].tobytes() for start, stop in itertools.pairwise(offsets.tolist())]
    for item, key in enumerate(keys):
        first = seen.setdefault(key, item)
        if first != item:
            raise UserError(
                f"titles {titles[first]!r} and {titles[item]!r} have the same tokens: rename one or use another model"
            )
    if ended:
        return
    width = flat.itemsize  # by the bytes of their tokens: nothing would tell where a title ends that begins another
    for item, key in enumerate(keys):
        other = next((seen[key[:stop]] for stop in range(width, len(key), width) if key[:stop] in seen), None)
        if other is not None:
            raise UserError(
                f"model.template.end is empty, and the tokens of title {titles[other]!r} begin those of "
                f"{titles[item]!r}: set model.scratch.whole_titles={len(titles)}, or leave model.template.end out"
            )
