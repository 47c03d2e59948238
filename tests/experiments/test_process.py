"""Runs as processes: what is kept of what they say, and that none outlives its command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rosepo.experiments.process import call, only_one
from tests.cli.test_app import ROOT

CHILD = """
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1], "stopped").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(120)
"""
PARENT = """
import signal, sys
from pathlib import Path
from rosepo.experiments.process import call, only_one
def stop(number, frame):
    raise KeyboardInterrupt
signal.signal(signal.SIGTERM, stop)
folder = Path(sys.argv[1])
with only_one(folder) as lock:
    call([sys.executable, "-c", sys.argv[2], str(folder)], folder / "log.txt", lock)
"""


def test_what_a_run_says_is_kept_and_its_error_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.txt"
    script = "import sys; print('[1/2] sft: go'); print('  a line'); print('error: no such key'); sys.exit({})"
    with only_one(tmp_path) as lock:
        assert call([sys.executable, "-c", script.format(2)], log, lock) == f"no such key ({log})"
        assert call([sys.executable, "-c", script.format(0)], log, lock) is None
        killed = call(
            [sys.executable, "-c", "import os; print('busy', flush=True); os.kill(os.getpid(), 9)"], log, lock
        )
    assert killed == f"ended by SIGKILL; its last line: busy ({log})"
    assert log.read_text().count("  a line\n") == 2
    assert "[1/2] sft: go" in capfd.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_ends_takes_its_run_along(tmp_path: Path, how: signal.Signals) -> None:
    if how == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent was killed")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), CHILD], env=environment) as command:
        _wait_for(tmp_path / "ready")
        command.send_signal(how)
        command.wait(60)
    _wait_for(tmp_path / "stopped")
    with only_one(tmp_path):  # which the run holds too, as long as it lives
        pass


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path.name
        time.sleep(0.05)
