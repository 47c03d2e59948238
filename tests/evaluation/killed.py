"""The evaluation of a run that kills its process when its actor has written some parts.

Called as `python -m tests.evaluation.killed RUN PARTS`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from rosepo.evaluation import rankers
from rosepo.pipeline.planning import plan_run
from rosepo.pipeline.runner import run_stages
from tests.evaluation.runs import rank_in_process, tiny_config

if __name__ == "__main__":
    run, left = Path(sys.argv[1]), int(sys.argv[2])
    rank_in_process(setattr)
    write = rankers.Ranker.__call__

    def deadly(self: rankers.Ranker, work: object) -> object:
        global left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return write(self, work)  # type: ignore[arg-type]

    rankers.Ranker.__call__ = deadly  # type: ignore[assignment,method-assign]
    run_stages(plan_run(tiny_config(), run, ["evaluate"]))
