"""A file that tells processes how often to die."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from rosepo.utils.files import write_text


def die_if_told(deaths: Path) -> None:
    """Kill this process as often as the file says; it is written whole or not at all, for other processes read it."""
    left = int(deaths.read_text())
    if left:
        write_text(deaths, str(left - 1))
        os.kill(os.getpid(), signal.SIGKILL)
