"""Items that join a catalogue after training: who ranks by titles can recommend one that it has never seen.

They stand behind the items that are there, sorted by id, so that every item index keeps its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from rosepo.config import Config
from rosepo.data.catalogue import Catalogue
from rosepo.data.readers import columns as cols
from rosepo.data.readers.interactions import Plan, listed_items, plan_files
from rosepo.data.titles import distinct_titles
from rosepo.utils.errors import UserError


def plan_added(config: Config, location: str, key: str) -> Plan:
    """Find the files of added items, whose formats their endings tell, and check their headers.

    Args:
        config: says what the columns are called (`data.columns`).
        location: a file, a folder or a glob, as `data.items`.
        key: the option or setting that holds the location, for messages.

    Raises:
        UserError: as `plan_reading`.
    """
    return plan_files(config.data, "items", location, "auto", key)


def with_items(catalogue: Catalogue, config: Config, location: str, key: str) -> tuple[Catalogue, dict[str, int]]:
    """A catalogue with the items of a file behind its own.

    What it has already stays as it is there. A title that another item has is numbered as `prepare` numbers titles, the
    newcomer's alone; with `prepare.duplicate_titles=refuse` it is refused.

    Args:
        catalogue: without added items.
        config, location, key: see `plan_added`.

    Returns:
        The catalogue, and counts: `read`, of which `known` are in the catalogue, `added`, of which `renamed` shared
        another item's title.

    Raises:
        UserError: see `plan_added`; an item twice, an empty title, ids of another type than the catalogue's, or a title
            that is refused.
    """
    plan = plan_added(config, location, key)
    items = listed_items(plan, config.data.columns.title)
    items = items.set_column(0, "item_id", _typed(items["item_id"].combine_chunks(), catalogue, plan.named))
    known = cols.codes(items["item_id"], pa.array(catalogue.item_ids)) >= 0
    new = items.filter(pa.array(~known)).sort_by("item_id")
    ids = [*catalogue.item_ids.tolist(), *new["item_id"].to_pylist()]
    refuse = config.prepare.duplicate_titles == "refuse"
    titles, renamed = distinct_titles(
        [*catalogue.titles, *new["title"].to_pylist()],
        ids,
        "refuse" if refuse else "disambiguate",
        remedy=f"rename the one of {plan.named}",
    )
    counts = {"read": len(items), "known": int(known.sum()), "added": len(new), "renamed": renamed}
    return Catalogue(
        item_ids=np.array(ids, dtype=catalogue.item_ids.dtype),
        titles=titles,
        categories=[*catalogue.categories, *(tuple(entry or ()) for entry in new["categories"].to_pylist())],
        train_count=np.append(catalogue.train_count, np.zeros(len(new), dtype=np.int64)),
        added=len(new),
    ), counts


def told_of(counts: Mapping[str, int], location: str) -> str:
    """What came of a file of items, in a sentence."""
    told = f"items added of {location}: {counts['added']:,}"
    told += f"; in the catalogue already: {counts['known']:,}" if counts["known"] else ""
    return told + (f"; numbered, as another item has their title: {counts['renamed']:,}" if counts["renamed"] else "")


def _typed(ids: pa.Array, catalogue: Catalogue, where: str) -> pa.Array:
    """Ids in the type of the catalogue's. Raises UserError where they are of another."""
    integers = catalogue.item_ids.dtype.kind == "i"
    found = cols.integers_if_all(ids) if integers else ids
    if pa.types.is_integer(found.type) == integers:
        return found
    odd: Any = found[0].as_py()
    if integers:
        odd = next(one for one in found.to_pylist() if pa.types.is_string(cols.integers_if_all(pa.array([one])).type))
    raise UserError(
        f"{where}: item_id {odd!r} is {'text' if integers else 'an integer'}, and the catalogue's ids are "
        f"{'integers' if integers else 'text'} (such as {catalogue.item_ids.tolist()[0]!r}): give ids of its type"
    )
