"""What real commands leave on the screen: rosepo's own lines alone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from rosepo.config import dump_config
from rosepo.pipeline.fingerprints import stage_settings
from rosepo.run.manifest import FORMAT, MANIFEST
from rosepo.run.paths import RunPaths
from rosepo.run.stages import find_stage
from rosepo.utils.files import now, write_json
from rosepo.utils.quiet import DEBUG_LOG
from tests.training.tiny_run import tiny_config

MODEL = Path(__file__).resolve().parents[3] / "shared" / "models" / "stories260K-hf"
DEPRECATED = "is_gradient_checkpointing"
"""What Transformers says of the way in which DeepSpeed and PEFT ask for it."""


@pytest.fixture
def prepared(tiny_run: RunPaths, tmp_path: Path) -> Path:
    """A run with examples, and the configuration of a training that makes libraries talk."""
    config = tiny_config(
        model={"path": str(MODEL), "lora": {"rank": 2}, "max_length": 128},
        activation_checkpointing=True,
        precision="bfloat16",
        zero_stage=2,
        epochs=0.1,
    )
    shutil.copytree(tiny_run.examples, tmp_path / "run" / "examples")
    manifest = {"format": FORMAT, "fingerprint": "made", "settings": stage_settings(config, find_stage("prepare"))}
    write_json(tmp_path / "run" / "examples" / MANIFEST, {**manifest, "created": now(), "seconds": 0})
    (tmp_path / "run.yaml").write_text(dump_config(config))
    return tmp_path


@pytest.mark.skipif(not MODEL.is_dir(), reason="needs a pretrained model")
def test_training_an_adapter_leaves_our_own_lines_alone(prepared: Path) -> None:
    command = [sys.executable, "-m", "rosepo", "sft", "--config", "run.yaml", "--out", "run"]
    done = subprocess.run(command, cwd=prepared, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    strange = [line for line in done.stderr.splitlines() if not re.match(r"\[1/1\] sft|  (sft \S|Next: )", line)]
    assert strange == []
    if hasattr(PreTrainedModel, "activation_checkpointing_enable"):  # older versions do not warn
        assert DEPRECATED in (prepared / "run" / DEBUG_LOG).read_text()
