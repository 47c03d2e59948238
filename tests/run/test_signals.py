"""One way out for Ctrl-C and SIGTERM, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

# Ends itself by SIGTERM inside the body of `with`, whose handler of SIGINT leaves as Ray Train's does; prints how.
PROGRAM = """
import os, signal, sys
from rosepo.run.signals import handlers_kept, interrupt_on_sigterm

def leave(number, frame):
    print("workers ended")
    sys.exit(0)

before = signal.getsignal(signal.SIGINT)
interrupt_on_sigterm()
try:
    with handlers_kept(signal.SIGINT):
        {body}
        os.kill(os.getpid(), signal.SIGTERM)
except SystemExit as stopped:
    print("left with", stopped.code)
except KeyboardInterrupt:
    print("interrupted")
print("put back" if signal.getsignal(signal.SIGINT) is before else "left behind")
"""


@pytest.mark.parametrize(
    ("body", "ignored", "said"),
    [
        ("signal.signal(signal.SIGINT, leave)", False, ["workers ended", "left with 0", "put back"]),
        ("pass", False, ["interrupted", "put back"]),
        ("pass", True, ["interrupted", "put back"]),
    ],
)
def test_sigterm_goes_the_way_of_ctrl_c_even_where_that_is_ignored(body: str, ignored: bool, said: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL),
    )
    assert done.stdout.splitlines() == said, done.stderr
