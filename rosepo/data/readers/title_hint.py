"""Where titles are equal: the column that would tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rosepo.config import DataConfig
from rosepo.data.readers.interactions import plan_reading, read_items
from rosepo.data.readers.title_template import columns_of
from rosepo.data.titles import normalised
from rosepo.utils.errors import UserError

LONG = 24
"""Characters on average beyond which a column is no part of a title."""
MANY = 100
"""Items from which on a column of as many values as there are items is taken for an identifier."""


def title_hint(config: DataConfig, item_ids: Sequence[Any]) -> str:
    """The end of a sentence about equal titles: what to set `data.columns.title` to, so that the fewest are left; empty
    where no column makes them fewer. Reads the items again, once for every column that is not in use.

    Args:
        item_ids: of the items whose titles are to differ.
    """
    plan = plan_reading(config, "items")
    header, mapping = plan.files[0][1], plan.mappings[0]
    title = config.columns.title if columns_of(config.columns.title) else f"{{{mapping['title']}}}"
    wanted = pa.array(item_ids)
    found = {title: _equal(config, title, wanted)}
    for name in header.names:
        if name not in mapping.values() and "{" not in name and "}" not in name and _is_short(config, name):
            template = f"{title} ({{{name}}})"
            found[template] = _equal(config, template, wanted)
    best = min(found, key=lambda template: found[template])  # the first of equals
    if found[best] == found[title]:
        return ""
    left = "" if not found[best] else f" of all but {found[best]:,}"
    return f"; --set 'data.columns.title=\"{best}\"' makes titles{left} of two columns, which differ"


def _titles(config: DataConfig, title: str, item_ids: pa.Array | None = None) -> list[str] | None:
    """Titles that a template gives, of all items or of those; None where it gives none."""
    try:
        items = read_items(config.model_copy(update={"columns": config.columns.model_copy(update={"title": title})}))
    except UserError:
        return None
    kept = items if item_ids is None else items.filter(pc.is_in(items["item_id"], value_set=item_ids))
    return [normalised(text) for text in kept["title"].to_pylist()]


def _equal(config: DataConfig, title: str, item_ids: pa.Array) -> int:
    """How many titles another one equals; more than there are where the columns make none."""
    titles = _titles(config, title, item_ids)
    return len(item_ids) + 1 if titles is None else len(titles) - len(set(titles))


def _is_short(config: DataConfig, name: str) -> bool:
    """Whether a column may be part of a title: a year, an edition, a maker; no link, text or identifier."""
    # A letter before it: rows without a value have a title then, too.
    values = _titles(config, f"x {{{name}}}")
    if values is None or any("://" in value for value in values):
        return False
    mean = sum(map(len, values)) / len(values) - 2
    return mean <= LONG and not (len(values) >= MANY and len(set(values)) > 0.9 * len(values))
