from __future__ import annotations

import mmap
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rosepo.utils.memory import MemoryMonitor

MIB = 2**20
HOLD = 'import sys; x = bytearray(160 << 20); print("held", flush=True); sys.stdin.read()'
SHARE = """
import mmap, sys
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as pages:
    sum(pages[:: mmap.PAGESIZE])
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def child(code: str, *arguments: str) -> Iterator[None]:
    """A process that has said that it holds its memory."""
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
        process.communicate()


def held() -> MemoryMonitor:
    """One look."""
    monitor = MemoryMonitor()
    monitor.look()
    return monitor


def test_what_other_processes_hold_is_counted_while_they_live() -> None:
    before = held()
    with MemoryMonitor() as monitor, child(HOLD):
        monitor.look()
    assert 150 * MIB < monitor.peak - before.peak < 250 * MIB
    assert monitor.processes == before.processes + 1
    assert held().processes == before.processes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not tell of shared memory")
def test_what_processes_share_counts_once(tmp_path: Path) -> None:
    (tmp_path / "block").write_bytes(b"\1" * (160 * MIB))
    with child(SHARE, str(tmp_path / "block")):
        one = held()
        with child(SHARE, str(tmp_path / "block")):
            two = held()
    assert two.processes == one.processes + 1
    assert one.peak > 160 * MIB
    assert two.peak - one.peak < 100 * MIB


def test_a_stage_does_not_answer_for_an_earlier_one() -> None:
    # Mapped by hand: what is freed on the heap need not go back to the system.
    with MemoryMonitor() as first, mmap.mmap(-1, 160 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held[:: mmap.PAGESIZE] = b"\1" * (160 * MIB // mmap.PAGESIZE)
        first.look()
    with MemoryMonitor() as second:
        pass
    assert second.peak < first.peak - 100 * MIB


def test_it_looks_by_itself() -> None:
    with MemoryMonitor() as monitor:
        before = monitor.processes
        with child('print("held", flush=True); input()'):
            for _ in range(400):
                if monitor.processes > before:
                    break
                time.sleep(0.05)
    assert monitor.processes == before + 1
