"""The small run that faults befall."""

from __future__ import annotations

import pytest

from rosepo.run.paths import RunPaths
from tests.sampling.runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run's folder with examples, an untrained policy and an untrained oracle."""
    return make_run(tmp_path_factory.mktemp("run"))
