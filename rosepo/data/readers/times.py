"""Times of interactions: numbers, timestamps, or text in either form, as Unix seconds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rosepo.data.readers.columns import flat, numbers, trimmed
from rosepo.utils.errors import UserError, said

UNIX = "give Unix seconds as a number, an ISO 8601 time, or a real timestamp type"
MOST_YEARS = 200
"""A log of a longer time has times of several units."""
_YEAR = 365.25 * 86400
_ISO = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.,]\d+)?)?)? ?(Z|z|[+-]\d{2}(:?\d{2})?)?$"
_ZONE = r" ?(?P<zone>Z|z|[+-]\d{2}(?::?\d{2})?)$"
_DATE = r"^\d{4}-\d{2}-\d{2}$"


def times(column: pa.ChunkedArray, name: str, where: str, row: int) -> pa.Array:
    """Unix seconds, float64. Text is ISO 8601, with fractions and zones or without them (UTC), or a number.

    Raises:
        UserError: a missing time, or one that is neither; naming the row.
    """
    values = flat(column)
    if pa.types.is_string(values.type):
        values = trimmed(values)
        iso = pc.fill_null(pc.match_substring_regex(values, _ISO), False)
        if pc.any(iso).as_py():
            seconds = _seconds(pc.if_else(iso, values, pa.scalar(None, pa.string())), where, row)
            rest = pa.chunked_array([pc.if_else(iso, pa.scalar(None, pa.string()), values)])
            found = pc.coalesce(seconds, numbers(rest, name, where, row, UNIX))
        else:
            found = numbers(pa.chunked_array([values]), name, where, row, UNIX)
    else:
        found = numbers(column, name, where, row, UNIX)
    if found.null_count:
        at = row + int(np.argmax(found.is_null().to_numpy(zero_copy_only=False)))
        raise UserError(f"{where}: row {at} has no {name}: fill it in or leave the row out")
    return found


def check_span(earliest: float, latest: float, where: str) -> None:
    """Refuse a log whose times lie too far apart to be of one unit.

    Raises:
        UserError: with the years that they span.
    """
    years = (latest - earliest) / _YEAR
    if years > MOST_YEARS:
        raise UserError(
            f"{where}: times run from {earliest:.15g} to {latest:.15g}, which as Unix seconds span {years:,.0f} years: "
            "some are given in another unit (milliseconds?); give all in seconds"
        )


def _seconds(values: pa.Array, where: str, row: int) -> pa.Array:
    """Seconds of ISO times; null stays null."""
    zoned = pc.invert(pc.match_substring_regex(values, _DATE))  # the end of a date is no zone
    zone = pc.struct_field(pc.extract_regex(pc.if_else(zoned, values, ""), _ZONE), "zone")
    bare = pc.if_else(zoned, pc.replace_substring_regex(values, _ZONE, ""), values)
    bare = pc.replace_substring(bare, ",", ".")
    whole = pc.replace_substring_regex(bare, r"\.\d+$", "")
    fraction = pc.struct_field(pc.extract_regex(bare, r"(?P<part>\.\d+)$"), "part")
    try:
        seconds = whole.cast(pa.timestamp("s")).cast(pa.int64()).cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise UserError(f"{where}: a time from row {row} on is no date: {said(error)}") from error
    seconds = pc.add(seconds, pc.fill_null(pc.cast(pc.binary_join_element_wise("0", fraction, ""), pa.float64()), 0.0))
    return pc.subtract(seconds, _offset(zone))


def _offset(zone: pa.Array) -> pa.Array:
    """Seconds that local times are ahead of UTC; 0 without a zone. `zone`: Z, +hh, +hhmm or +hh:mm."""
    parts = pc.extract_regex(zone, r"^(?P<sign>[+-])(?P<hours>\d{2}):?(?P<minutes>\d{2})?$")
    sign, hours, minutes = (pc.struct_field(parts, name) for name in ("sign", "hours", "minutes"))
    minutes = pc.if_else(pc.equal(minutes, ""), "0", minutes)
    ahead = pc.add(pc.multiply(hours.cast(pa.float64()), 3600.0), pc.multiply(minutes.cast(pa.float64()), 60.0))
    return pc.fill_null(pc.if_else(pc.equal(sign, "-"), pc.negate(ahead), ahead), 0.0)
