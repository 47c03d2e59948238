"""A whole job: `python -m tests.training.job RUN` makes the SFT model of a run with settings and examples."""

from __future__ import annotations

import sys
from pathlib import Path

from rosepo.config import load_config
from rosepo.pipeline.planning import plan_run
from rosepo.pipeline.runner import run_stages
from rosepo.run.ray_session import ray_session

if __name__ == "__main__":
    root = Path(sys.argv[1])
    settings = load_config(root / "job.yaml")
    with ray_session(settings.ray):
        run_stages(plan_run(settings, root, ["sft"]))
