"""What all tests share: one local Ray cluster a session, one thread a process, no network."""

from __future__ import annotations

import os
import shutil
import tempfile

# What the product keeps for later runs, and what tests tell processes of the cluster: gone with the session.
os.environ["ROSEPO_TEST_SCRATCH"] = tempfile.mkdtemp(prefix="rosepo-tests-")
os.environ["ROSEPO_CACHE"] = os.environ["ROSEPO_TEST_SCRATCH"] + "/cache"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator

import pytest
from hypothesis import settings

# A busy machine is slow, not wrong.
settings.register_profile("rosepo", deadline=None)
settings.load_profile("rosepo")

pytest_plugins = ["tests.training.tiny_run"]


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray session of four CPUs (the product's own start-up code), shut down at the end."""
    from rosepo.config import RayConfig
    from rosepo.run.ray_session import ray_session

    with ray_session(RayConfig(num_cpus=4)):
        yield


def pytest_unconfigure() -> None:
    """Take away what the session kept."""
    shutil.rmtree(os.environ["ROSEPO_TEST_SCRATCH"], ignore_errors=True)
