"""One title, one item: titles that a model could not tell apart are refused or told apart."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from rosepo.utils.errors import UserError


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
