from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
import time

import pytest

from rosepo.utils.memory import MemoryMonitor, held_by_tree, running_monitor

MIB = 2**20
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not tell of processes")


@linux
def test_what_other_processes_hold_is_counted_while_they_live() -> None:
    code = "import sys; x = bytearray(160 << 20); print('held', flush=True); sys.stdin.read()"
    with MemoryMonitor() as meter:
        before, alone = held_by_tree(os.getpid())
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            meter.look()
            child.communicate()
        assert held_by_tree(os.getpid())[1] == alone
    assert meter.peak - before > 150 * MIB
    assert meter.processes == alone + 1


@linux
def test_a_stage_does_not_answer_for_an_earlier_one() -> None:
    # Mapped by hand: what is freed on the heap need not go back to the system.
    with MemoryMonitor() as first, mmap.mmap(-1, 160 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held[:: mmap.PAGESIZE] = b"\1" * (160 * MIB // mmap.PAGESIZE)
        first.look()
    with MemoryMonitor() as second:
        pass
    assert second.peak < first.peak - 100 * MIB


@linux
def test_it_looks_by_itself() -> None:
    with MemoryMonitor() as meter:
        before = meter.processes
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            for _ in range(400):
                if meter.processes > before:
                    break
                time.sleep(0.05)
            child.communicate()
    assert meter.processes == before + 1


def test_a_stage_finds_its_own_meter_and_no_thread_finds_another_ones() -> None:
    found: list[MemoryMonitor | None] = []
    with MemoryMonitor() as outer:
        assert running_monitor() is outer
        with MemoryMonitor() as inner:
            assert running_monitor() is inner
        assert running_monitor() is outer
        thread = threading.Thread(target=lambda: found.append(running_monitor()))
        thread.start()
        thread.join()
    assert found == [None]
    assert running_monitor() is None
