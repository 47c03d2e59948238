"""Where titles are equal: the column that would tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rosepo.config import DataConfig
from rosepo.data.readers.columns import codes
from rosepo.data.readers.formats import read_piece
from rosepo.data.readers.interactions import Plan, plan_reading
from rosepo.data.readers.title_template import columns_of, filled
from rosepo.data.titles import normalised
from rosepo.utils.errors import UserError

LONG = 24
"""Characters on average beyond which a column is no part of a title."""
MANY = 100
"""Items from which on a column of as many values as there are items is taken for an identifier."""


def title_hint(config: DataConfig, item_ids: Sequence[Any]) -> str:
    """The end of a sentence about equal titles: what to set `data.columns.title` to, so that the fewest are left; empty
    where no column makes them fewer. Reads the items once more.

    Args:
        item_ids: of the items whose titles are to differ.
    """
    plan = plan_reading(config, "items")
    mapping = plan.mappings[0]
    title = config.columns.title if columns_of(config.columns.title) else f"{{{mapping['title']}}}"
    unused = [name for name in plan.files[0][1].names if name not in mapping.values() and name.isprintable()]
    names = [name for name in unused if "{" not in name and all(name in header.names for _, header in plan.files)]
    everything = _columns(plan, names)
    ids = everything[mapping["item_id"]].cast(pa.string())
    table = everything.filter(pa.array(codes(ids, pa.array(item_ids).cast(pa.string())) >= 0))
    templates = [f"{title} ({{{name}}})" for name in names if _is_short(name, everything)]
    found = {template: _equal(template, table) for template in (title, *templates)}
    best = min(found, key=lambda template: found[template])  # the first of equals
    if found[best] == found[title]:
        return ""
    left = "" if not found[best] else f" of all but {found[best]:,}"
    return f"; --set 'data.columns.title=\"{best}\"' makes titles{left} of two columns, which differ"


def _columns(plan: Plan, names: Sequence[str]) -> pa.Table:
    """Ids, what titles are made of, and the named columns, of all files."""
    parts = []
    for number, piece in plan.pieces:
        mapping = plan.mappings[number] | {f"{{{name}}}": name for name in names}
        parts += [table for _, table in read_piece(piece, plan.files[number][1], mapping, "items")]
    return pa.concat_tables(parts, promote_options="permissive")


def _texts(template: str, table: pa.Table) -> list[str]:
    """What a template gives for every row; nothing where a column is neither text nor numbers."""
    try:
        return [normalised(text or "") for text in filled(template, table, "").to_pylist()]
    except UserError:
        return []


def _equal(template: str, table: pa.Table) -> int:
    """How many titles another one equals."""
    titles = _texts(template, table)
    return len(titles) - len(set(titles))


def _is_short(name: str, table: pa.Table) -> bool:
    """Whether a column may be part of a title: a year, an edition, a maker; no link, text or identifier."""
    values = _texts(f"{{{name}}}", table)
    if not values or any("://" in value for value in values):
        return False
    identifies = len(values) >= MANY and len(set(values)) > 0.9 * len(values)
    return sum(map(len, values)) <= LONG * len(values) and not identifies
