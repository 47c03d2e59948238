"""What all tests share: one local Ray cluster a session, one thread a process, no network."""

from __future__ import annotations

import gc
import hashlib
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
from typing import Any

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


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is hashed in this process, a block at a time."""
    blocks: list[bytes] = []
    sha256 = hashlib.sha256

    class Recorded:
        def __init__(self, data: bytes = b"", **options: Any) -> None:
            self._sha = sha256(**options)
            self.update(data)

        def update(self, data: bytes) -> None:
            blocks.append(bytes(data))
            self._sha.update(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sha, name)

    def file_digest(file: Any, name: str) -> Any:
        content = file.read()
        blocks.append(content)
        return sha256(content)

    monkeypatch.setattr(hashlib, "sha256", Recorded)
    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    return blocks


def pytest_collection_finish() -> None:
    """DeepSpeed collects garbage a dozen times an engine: not through all that has been imported, each time."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """Take away what the session kept."""
    shutil.rmtree(os.environ["ROSEPO_TEST_SCRATCH"], ignore_errors=True)
