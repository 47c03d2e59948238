"""The errors a user can mend, and the exit codes that tell scripts apart (0 done, 2 bad input or config, 1 failed)."""

from __future__ import annotations

import re


class UserError(Exception):
    """Bad input or configuration: one sentence that names the file, row or key, the value and the remedy.

    The command line prints the sentence without a traceback (``--debug`` shows it) and exits with 2.
    """


class StageError(Exception):
    """Work that started and could not be finished, told in a sentence. Exits with 1."""


def said(error: BaseException, longest: int = 1000) -> str:
    """All that an error of a library says, on one line; its type where it says nothing, its middle left out above
    `longest` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else f"{text[: longest - 300]} … {text[-300:]}"


def user_error_from(error: BaseException | None) -> UserError | StageError | None:
    """The error that a process raised for a person to read, out of Ray's wrapping; None where there is none."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        for kind in (UserError, StageError):
            if isinstance(error, kind):
                return kind(str(getattr(error, "cause", None) or error))
            # What an actor raises while it starts arrives as text alone.
            told = re.findall(rf"^{kind.__module__}\.{kind.__name__}: (.+)$", str(error), flags=re.MULTILINE)
            if told:
                return kind(told[-1])
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None
