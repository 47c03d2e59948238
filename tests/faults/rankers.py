"""A ranking actor that kills its process, as a file tells it to."""

from __future__ import annotations

import os
import signal
from typing import Any

import pyarrow as pa

from rosepo.evaluation.rankers import Ranker
from tests.faults.strategies import SCRATCH


class DeadlyRanker(Ranker):
    """Kills its process at the second part of `aligned` as often as the file `deaths` says."""

    def __call__(self, work: pa.Table) -> dict[str, list[Any]]:
        deaths = SCRATCH / "deaths"
        left = int(deaths.read_text())
        if left and {"system": "aligned", "number": 1}.items() <= work.to_pylist()[0].items():
            deaths.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(work)
