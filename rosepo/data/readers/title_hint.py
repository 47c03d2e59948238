"""Where titles are equal: the column that would tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rosepo.config import DataConfig
from rosepo.data.readers.interactions import plan_reading, read_items
from rosepo.data.readers.title_template import columns_of
from rosepo.data.titles import normalised
from rosepo.utils.errors import UserError


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
        if name not in mapping.values() and "{" not in name and "}" not in name:
            template = f"{title} ({{{name}}})"
            found[template] = _equal(config, template, wanted)
    best = min(found, key=lambda template: found[template])  # the first of equals
    if found[best] == found[title]:
        return ""
    left = "" if not found[best] else f" of all but {found[best]:,}"
    return f"; --set 'data.columns.title=\"{best}\"' makes titles{left} of two columns, which differ"


def _equal(config: DataConfig, title: str, item_ids: pa.Array) -> int:
    """How many titles another one equals; more than there are where the columns make no titles."""
    try:
        items = read_items(config.model_copy(update={"columns": config.columns.model_copy(update={"title": title})}))
    except UserError:
        return len(item_ids) + 1
    kept = items.filter(pa.compute.is_in(items["item_id"], value_set=item_ids))
    keys = [normalised(text) for text in kept["title"].to_pylist()]
    return len(keys) - len(set(keys))
