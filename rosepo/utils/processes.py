"""Processes that are started beside this one."""

from __future__ import annotations

import ctypes
import signal

_DEATH_SIGNAL = 1
"""Linux: PR_SET_PDEATHSIG."""


def end_with_parent() -> None:
    """For `preexec_fn`, on Linux: a process whose parent was killed outright gets SIGTERM and does not go on alone."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)
