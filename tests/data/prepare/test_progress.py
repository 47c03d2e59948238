"""What is told while a log is prepared: every phase, with its count."""

from __future__ import annotations

import re
import time
from itertools import pairwise
from pathlib import Path

import pytest

from rosepo.data.prepare import log
from rosepo.data.prepare.counting import counting
from rosepo.data.prepare.prepare import inspect_data, prepare
from rosepo.run.paths import RunPaths
from rosepo.utils import console
from rosepo.utils.console import Progress
from tests.data.tables import config_for, random_rows, titles, write_data

PHASES = (
    "reading", "counting users and items", "encoding", "grouping by user", "k-core, round 1", "k-core, round 2",
    "looking for the moments of the split", "measuring",
)  # fmt: skip


@pytest.fixture
def told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PLAIN_INTERVAL", 0.0)
    monkeypatch.setattr(log, "BUCKET_ROWS", 400)


def phases_of(text: str) -> list[str]:
    """The phases of lines as `  reading 3/7 · …`, each once."""
    labels = re.findall(r"^  (\D+?(?:, round \d+)?) [\d,]+(?:/[\d,]+| rows) ·", text, flags=re.MULTILINE)
    return [label for label, before in zip(labels, ["", *labels]) if label != before]


def test_a_log_that_is_read_in_this_process_tells_every_phase(
    tmp_path: Path, told_at_once: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(write_data(tmp_path, random_rows(2_000, 1, False), titles(False)), k_core=9, split="temporal")
    inspect_data(config)
    told = capsys.readouterr().err
    phases = phases_of(told)
    assert [phase for phase in phases if not re.fullmatch(r"k-core, round [3-9]", phase)] == list(PHASES)
    assert "  reading 2,000/2,000 · " in told
    buckets = re.findall(r"  measuring (\d+)/(\d+) ", told)
    assert len({total for _, total in buckets}) == 1
    assert [int(done) for done, _ in buckets] == list(range(int(buckets[0][1]) + 1))
    assert "in all" not in told


def test_a_log_that_ray_reads_tells_every_phase_too(
    ray_cluster: None, tmp_path: Path, told_at_once: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(write_data(tmp_path, random_rows(2_000, 1, False), titles(False)), k_core=9, split="temporal")
    (tmp_path / "examples").mkdir()
    prepare(config, RunPaths(tmp_path), tmp_path / "examples")
    told = capsys.readouterr().err
    phases = [phase for phase in phases_of(told) if not re.fullmatch(r"k-core, round [3-9]", phase)]
    # Tasks that are over between two looks leave a phase out.
    fleeting = {"grouping by user", "measuring"}
    assert [phase for phase in phases if phase not in fleeting] == [
        phase for phase in (*PHASES, "writing") if phase not in fleeting
    ]
    writing = [int(done) for done in re.findall(r"  writing (\d+)/\d+ ", told)]
    assert all(after == before + 1 for before, after in pairwise(writing))


def test_tasks_of_other_processes_move_the_line_through_its_phases(ray_cluster: None) -> None:
    import ray

    @ray.remote(num_cpus=0.1)
    def work(counter: object, count: int) -> None:
        counter.add.remote(count)  # type: ignore[attr-defined]

    progress = Progress("nothing yet", None)
    with counting(progress, ("encoding", 30, "rows"), ("grouping", 4, "buckets")) as counter:
        assert (progress.label, progress.total, progress.done) == ("encoding", 30, 0)
        ray.get([work.remote(counter, 10) for _ in range(2)])
        wait_for(progress, "encoding", 20)
        ray.get([work.remote(counter, 10), work.remote(counter, 3)])
        wait_for(progress, "grouping", 3)


def wait_for(progress: Progress, label: str, done: int) -> None:
    deadline = time.monotonic() + 60
    while (progress.label, progress.done) != (label, done):
        assert time.monotonic() < deadline, (progress.label, progress.done)
        time.sleep(0.02)
