"""A ranking actor that kills its process, as a file tells it to."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from rosepo.evaluation.rankers import Ranker
from tests.deaths import die_if_told
from tests.faults.strategies import SCRATCH


class DeadlyRanker(Ranker):
    """Kills its process at the second part of `aligned` as often as the file `deaths` says."""

    def __call__(self, work: pa.Table) -> dict[str, list[Any]]:
        if {"system": "aligned", "number": 1}.items() <= work.to_pylist()[0].items():
            die_if_told(SCRATCH / "deaths")
        return super().__call__(work)
