"""The errors a user can mend, and the exit codes that tell scripts apart (0 done, 2 bad input or config, 1 failed)."""

from __future__ import annotations


class UserError(Exception):
    """Bad input or configuration: one sentence that names the file, row or key, the value and the remedy.

    The command line prints the sentence without a traceback (``--debug`` shows it) and exits with 2.
    """


class StageError(Exception):
    """Work that started and could not be finished, told in a sentence. Exits with 1."""
