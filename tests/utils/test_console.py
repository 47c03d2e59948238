"""What a person sees: in a terminal, narrow or without colours, and in a pipe; and what is told of work elsewhere."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from rosepo.utils.console import Progress, duration, echo, table
from rosepo.utils.follow import follow

WORK = """
import time
from rosepo.utils.console import Progress, echo
with Progress("sft", 3) as progress:
    progress.doing("starting 2 workers")
    time.sleep(0.3)
    for step in range(3):
        progress.update(loss=0.5 * step)
        time.sleep(0.4)
        if step == 1:
            echo("[bold]a worker of sft was lost[/bold] :smile:")
"""
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
COLOUR = re.compile(r"\x1b\[[0-9;]*[1-9][0-9]*m")


def in_terminal(columns: int, **environment: str) -> str:
    """What WORK sends to a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "TERM")}
    command = [sys.executable, "-c", WORK]
    with subprocess.Popen(command, stderr=theirs, env=kept | {"TERM": "xterm-256color"} | environment) as work:
        os.close(theirs)
        told = b""
        while True:
            try:
                told += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert work.returncode == 0
    return told.decode()


def in_pipe(**environment: str) -> str:
    run = subprocess.run([sys.executable, "-c", WORK], env=os.environ | environment, capture_output=True, text=True)
    assert run.returncode == 0
    assert run.stdout == ""
    return run.stderr


def test_a_terminal_gets_a_bar_in_place_and_lines_above_it() -> None:
    told = in_terminal(100)
    assert "━" in told
    assert COLOUR.search(told)
    lines = [line.rstrip() for line in CONTROL.sub("\n", told).splitlines() if line.strip()]
    assert any("starting 2 workers" in line for line in lines)
    assert any("2/3" in line and " left · " in line for line in lines)
    assert "[bold]a worker of sft was lost[/bold] :smile:" in lines
    assert re.fullmatch(r"  sft 3/3 · \d:\d\d in all · \d\.\d s(teps)?/s(tep)? · loss 1", lines[-1])
    assert told.rfind("\x1b[?25h") > told.rfind("\x1b[?25l"), "the cursor comes back"


def test_a_terminal_without_colours_gets_none() -> None:
    assert not COLOUR.search(in_terminal(100, NO_COLOR="1"))


def test_a_narrow_terminal_gets_one_row_without_a_bar() -> None:
    told = in_terminal(30)
    assert "━" not in told
    moving = [line for line in CONTROL.split(told) if line.startswith("  sft") and "in all" not in line]
    assert moving
    assert all(len(line) <= 30 and "\n" not in line for line in moving), moving


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1", "COLUMNS": "20"}])
def test_a_pipe_gets_plain_lines_as_they_are_and_no_control_characters(environment: dict[str, str]) -> None:
    first, lost, last = in_pipe(**environment).splitlines()
    assert first == "  sft starting 2 workers · 0:00 elapsed"
    assert lost == "[bold]a worker of sft was lost[/bold] :smile:"
    assert last.startswith("  sft 3/3 · 0:0")


def test_long_lines_are_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    echo("error: " + "word " * 100 + "end")
    assert capsys.readouterr().err == "error: " + "word " * 100 + "end\n"


def test_many_updates_make_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("pairs", 10_000, "groups") as progress:
        for _ in range(10_000):
            progress.update()
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("  pairs 1/10,000")
    assert last.startswith("  pairs 10,000/10,000 · 0:0")


def test_what_an_earlier_run_did_counts_but_not_for_the_speed(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("sft", 1000, before=999) as progress:
        progress._start -= 50.0
        progress.update()
    assert re.search(r"  sft 1,000/1,000 · 0:5\d in all · 5\d.\d s/step\n", capsys.readouterr().err)


def test_time_that_is_left_goes_down_while_nothing_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("sft", 4) as progress:
        progress._start -= 100.0
        progress.update()
        for moment in ("_start", "_counted"):
            setattr(progress, moment, getattr(progress, moment) - 60.0)
        progress.doing("validating")
    first, later, _ = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"  sft 1/4 · (5:00|4:59) left · 100.\d s/step · 1:4\d elapsed", first)
    assert re.fullmatch(r"  sft 1/4 · validating · (4:00|3:5\d) left · 100.\d s/step · 2:4\d elapsed", later)


def test_a_total_that_nobody_knows_is_not_made_up(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", None, "rows") as progress:
        progress._start -= 10.0
        progress.update(1_000_000)
    first, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"  reading 1,000,000 rows · \d+,\d+ rows/s · 0:\d\d elapsed", first)
    assert re.fullmatch(r"  reading 1,000,000 rows · 0:\d\d in all · \d+,\d+ rows/s", last)


def test_work_that_failed_has_no_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(ValueError), Progress("sft", 2) as progress:
        progress.update()
        raise ValueError
    assert "in all" not in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "0:07"), (59.6, "1:00"), (750, "12:30"), (11_100, "3:05:00")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_tables_align_what_terminals_show_and_take_no_title_for_markup() -> None:
    rows = [["[red]REC[/red] (2007)", 0.5, 12345], ["千と千尋", 12.25, 7]]
    assert table(rows, header=("title", "score", "n")).splitlines() == [
        "  title                    score        n",
        "  ───────────────────────────────────────",
        "  [red]REC[/red] (2007)    0.500   12,345",
        "  千と千尋                12.250        7",
    ]
    assert table([["a", 1]]) == "  a   1"


def test_no_table_is_folded_on_its_way_to_a_file() -> None:
    assert len(table([["word " * 200, "x"]]).splitlines()) == 1


def test_a_log_is_followed_from_its_end_on_by_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "steps.jsonl"
    log.write_text('{"step": 0}\n')
    seen: list[int] = []
    come = threading.Event()

    def show(line: dict[str, int]) -> None:
        seen.append(line["step"])
        come.set()

    with follow(log, show, interval=0.02), log.open("a") as file:
        file.write('{"step": 1}\n{"st')
        file.flush()
        assert come.wait(10)
        file.write('ep": 2}\n')
        file.flush()
    assert seen == [1, 2]


def test_a_log_may_appear_later(tmp_path: Path) -> None:
    seen: list[int] = []
    with follow(tmp_path / "steps.jsonl", lambda line: seen.append(line["step"]), interval=0.02):
        (tmp_path / "steps.jsonl").write_text('{"step": 1}\n')
    assert seen == [1]
