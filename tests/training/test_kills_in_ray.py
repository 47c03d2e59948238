"""What becomes of a training when a worker of Ray Train, or the whole job, is killed.

Up to two minutes each, of which CI runs the shortest; tests/training/checkpoint/test_resume.py kills ranks without Ray,
at every stage, in seconds.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist
from torch import Tensor

from rosepo.cli.exit_codes import EXIT_INTERRUPTED
from rosepo.config import Config, dump_config
from rosepo.pipeline.fingerprints import stage_settings
from rosepo.run.manifest import FORMAT, MANIFEST, read_manifest
from rosepo.run.paths import RunPaths
from rosepo.run.stages import find_stage
from rosepo.training.checkpoint.checkpoint_files import FOLDER, newest_checkpoint
from rosepo.training.feed.plan import Arrays
from rosepo.training.sft import SftTask, sft_task
from rosepo.training.task import Loss
from rosepo.training.trainer import fit
from rosepo.utils.files import now, write_json
from tests.deaths import die_if_told
from tests.training.kills import config_of, train_rank_of
from tests.training.ranks import forked_ranks
from tests.training.tiny_run import assert_same_training, lines

DEADLY_CALL = 26
"""Call of the loss, looks at validation not counted, in which the worker is killed: the thirteenth step of sixteen."""


@dataclass
class Deadly(SftTask):
    """Kills its second worker in the middle, as often as the file `deaths` says."""

    deaths: Path = Path()
    calls: int = 0

    def loss(self, logps: Tensor, counts: Tensor, arrays: Arrays) -> Loss:
        self.calls += logps.requires_grad
        if dist.get_rank() == 1 and self.calls == DEADLY_CALL:
            die_if_told(self.deaths)
        return super().loss(logps, counts, arrays)


def deadly(config: Config, run: RunPaths, scratch: Path, deaths: int) -> Deadly:
    task = sft_task(config, run)
    (scratch / "deaths").write_text(str(deaths))
    return Deadly(**vars(task), deaths=scratch / "deaths")


def prepared(run: RunPaths, root: Path, config: Config) -> Path:
    """A run's folder with the settings, in which `prepare` is done."""
    shutil.copytree(run.examples, root / "examples")
    made = {
        "format": FORMAT, "fingerprint": "made", "settings": stage_settings(config, find_stage("prepare")),
        "created": now(), "seconds": 0,
    }  # fmt: skip
    write_json(root / "examples" / MANIFEST, made)
    (root / "job.yaml").write_text(dump_config(config))
    return root


def wait_for_checkpoint(job: subprocess.Popen[bytes], root: Path) -> None:
    while job.poll() is None and not any(newest_checkpoint(part) for part in root.glob(".sft.*.partial")):
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_killed_worker_is_started_again_and_the_training_ends_as_one_never_stopped(
    kind: str,
    ray_cluster: None,
    tiny_run: RunPaths,
    base_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stage, lora = (2, None) if kind == "full" else (3, base_model)
    config = config_of(stage, lora, workers=2)
    out, whole = tmp_path / "out", tmp_path / "whole"
    out.mkdir()
    figures = fit(deadly(config, tiny_run, tmp_path, deaths=1), out)
    assert (tmp_path / "deaths").read_text() == "0"
    assert figures["resumed_from"] in ([9], [12])
    assert not (out / FOLDER).exists()
    assert forked_ranks(2, train_rank_of, str(tiny_run.root), config, str(whole), None) == [0, 0]
    assert_same_training(whole, out, 1e-6)
    assert [line["step"] for line in lines(out)] == [line["step"] for line in lines(whole)]
    assert figures["tokens"] > 0
    assert figures["rows"] == 120


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_ends_its_workers_and_leaves_no_stage(
    how: signal.Signals, tiny_run: RunPaths, tmp_path: Path
) -> None:
    config = config_of(1, epochs=1000, checkpoint_every=10, log_every=10)
    root = prepared(tiny_run, tmp_path / "run", config)
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "rosepo", "sft", "--config", str(root / "job.yaml"), "--out", str(root)]
        job = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for_checkpoint(job, root)
        started = psutil.Process(job.pid).children(recursive=True)
        workers = [process for process in started if "TrainWorker" in process.cmdline()[0]]
        job.send_signal(how)
        job.wait()
    assert job.returncode == EXIT_INTERRUPTED, (tmp_path / "log").read_text()
    assert "interrupted: no stage was left half-written" in (tmp_path / "log").read_text()
    assert workers
    assert not psutil.wait_procs(started, timeout=30)[1]
    assert not (root / "sft").exists()


@pytest.mark.slow
def test_the_same_command_goes_on_after_the_whole_job_was_killed(tiny_run: RunPaths, tmp_path: Path) -> None:
    config = config_of(1, epochs=15, checkpoint_every=10, log_every=10, validate_every=60)
    whole = tmp_path / "whole"
    root = prepared(tiny_run, tmp_path / "run", config)
    command = [sys.executable, "-m", "tests.training.job", str(root)]
    with (tmp_path / "first.log").open("w") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for_checkpoint(job, root)
        job.send_signal(signal.SIGKILL)
        job.wait()
    assert job.returncode == -signal.SIGKILL, (tmp_path / "first.log").read_text()
    assert not (root / "sft").exists()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = re.search(r"sft goes on from step (\d+) of 120", done.stderr)
    assert told is not None, done.stderr
    assert 10 <= int(told[1]) < 120
    assert not list(root.glob(".sft.*"))
    assert not (root / "sft" / FOLDER).exists()
    assert (read_manifest(root / "sft") or {})["figures"]["resumed_from"] == [int(told[1])]
    assert forked_ranks(1, train_rank_of, str(root), config, str(whole), None) == [0]
    assert_same_training(whole, root / "sft", 1e-6)
    assert [line["step"] for line in lines(root / "sft")] == [line["step"] for line in lines(whole)]
