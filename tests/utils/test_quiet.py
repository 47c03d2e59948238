"""What libraries say is kept from the screen, and what a user must know is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WORK = """
import logging, os, sys, warnings
from pathlib import Path
import tensorboardX  # a library that was there before
from rosepo.utils.quiet import quiet_libraries, quiet_worker

def noisy(name):
    logger = logging.getLogger(name)
    logger.addHandler(logging.StreamHandler())
    logger.propagate = False
    return logger

early = noisy("ray.early")
log = Path(sys.argv[1])
quiet_libraries(log)
early.warning("a notice of a library that is here already")
noisy("transformers.models").warning("a notice of a library that sets itself a handler later")
logging.getLogger("peft.tuners").warning("a notice of a library that sets itself none")
for _ in range(3):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("`is_gradient_checkpointing` is deprecated", FutureWarning)
assert not log.parent.exists()
log.parent.mkdir()
noisy("DeepSpeed").error("an error of a library")
noisy("ray.train").error("an error that comes as an exception too")
noisy("users.scorer").warning("a notice of the user's own code")
del _Logged
"""


@pytest.fixture(autouse=True)
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that other tests ran in this process name a log for all that is started from here."""
    monkeypatch.delenv("ROSEPO_DEBUG_LOG", raising=False)


def test_notices_go_to_the_log_and_errors_to_the_screen_too(tmp_path: Path) -> None:
    log = tmp_path / "run" / "debug.log"
    done = subprocess.run([sys.executable, "-c", WORK, str(log)], capture_output=True, text=True)
    assert done.stdout == ""
    shown = done.stderr.splitlines()
    assert shown[:2] == ["DeepSpeed: an error of a library", "a notice of the user's own code"]
    assert shown[-1].startswith("NameError"), "what Python itself says of an error"
    kept = log.read_text()
    assert kept.count("a notice of a library") == 3
    assert kept.count("UserWarning") + kept.count("FutureWarning: `is_gradient_checkpointing` is deprecated") == 1
    assert "an error of a library" in kept
    assert "an error that comes as an exception too" in kept
    assert "user's own code" not in kept


def test_processes_that_are_started_go_on_with_the_same_log(tmp_path: Path) -> None:
    worker = "from rosepo.utils.quiet import quiet_worker; quiet_worker(); import warnings; warnings.warn('elsewhere')"
    code = f"""
import subprocess, sys
from pathlib import Path
from rosepo.utils.quiet import quiet_libraries
quiet_libraries(Path("debug.log"))
subprocess.run([sys.executable, "-c", {worker!r}], cwd="/", check=True)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "UserWarning: elsewhere" in (tmp_path / "debug.log").read_text()


def test_a_worker_that_nobody_told_of_a_log_keeps_what_it_says() -> None:
    worker = "from rosepo.utils.quiet import quiet_worker; quiet_worker(); import warnings; warnings.warn('here')"
    done = subprocess.run([sys.executable, "-c", worker], capture_output=True, text=True)
    assert "UserWarning: here" in done.stderr
