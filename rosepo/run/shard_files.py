"""Long work in parts: files that are whole or not there, made by actors, from which a later run goes on."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rosepo.run.ray_session import RESTARTS
from rosepo.utils.errors import StageError
from rosepo.utils.files import aside_of


@contextmanager
def whole_part(path: Path) -> Iterator[Path]:
    """A name aside for the body to write to; renamed to `path` when the body ends well, else removed.

    Raises:
        StageError: the disk is full.
    """
    # A name of its own: an actor that was taken for lost may still be at work on the same part.
    aside = aside_of(path)
    try:
        yield aside
        aside.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StageError(
            f"no space is left on the disk of {path.parent.parent} for {path.name}: free some and run the same"
            " command again; it goes on from the parts that are finished"
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def lost_actor(error: Exception, kind: str, finished: int, total: int, key: str) -> StageError:
    """An actor that died again and again, in one sentence.

    Args:
        kind: of the actor, with its article: `a sampling actor`.
        finished, total: parts.
        key: of the configuration that says how many actors there are.
    """
    text = str(error)
    why = "ran out of memory" if "OutOfMemory" in text or "MemoryError" in text else "died or failed"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # What the actor's own code raised comes before what Ray says about retries.
    told = [line for line in lines if re.match(r"(?!ray\.)[\w.]*(Error|Exception): ", line)]
    reason = (told or lines or [type(error).__name__])[-1]
    return StageError(
        f"{kind} {why}, {RESTARTS + 1} times at most: {reason[:300]}; {finished} of {total} parts are "
        f"finished and kept: run the same command again to go on from them (with fewer {key} if memory was short)"
    )
