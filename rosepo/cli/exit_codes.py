"""What stands between a command's work and the person who typed it: failures in one clear line, and an exit code."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rosepo.utils.console import echo
from rosepo.utils.errors import StageError, UserError
from rosepo.utils.quiet import DEBUG_LOG, quiet_libraries

EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED = 2, 1, 130


def ends_clearly(keeps_log: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn the failures of a command into one clear line and an exit code (0 done, 2 bad input, 1 failed).

    With its option `--debug` it shows tracebacks, and what libraries say.

    Args:
        keeps_log: what libraries say otherwise is kept in its folder `--out`; of other commands it is not kept.
    """

    def around(work: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(work)
        def command(debug: bool, **options: Any) -> None:
            if not debug:
                quiet_libraries(options["out"] / DEBUG_LOG if keeps_log else Path(os.devnull))
            try:
                work(debug=debug, **options)
            except (UserError, StageError) as error:
                if debug:
                    raise
                echo(f"error: {error}")
                sys.exit(EXIT_BAD_INPUT if isinstance(error, UserError) else EXIT_FAILED)
            except KeyboardInterrupt:
                echo("interrupted: no stage was left half-written; run the same command again to go on")
                sys.exit(EXIT_INTERRUPTED)
            except Exception as error:
                if debug:
                    raise
                echo(f"error: {_headline(error)} (--debug shows where)")
                sys.exit(EXIT_FAILED)

        return command

    return around


def _headline(error: BaseException) -> str:
    """The cause behind the wrapping that Ray puts around it, in one line."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        cause = getattr(error, "cause", None) or error.__cause__
        if not isinstance(cause, BaseException):
            break
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Where only text came back from another process, the line that names the error stands last but one, or last.
    told = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    return f"{type(error).__name__}: {(told or lines or ['no message'])[0]}"
