"""A small run, and sampling without processes of its own for tests that are about what is sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from rosepo.data.example_shards import Shard
from rosepo.run.paths import RunPaths
from rosepo.sampling import pool
from rosepo.sampling.actors import GroupsActor
from rosepo.sampling.settings import ActorSettings
from tests.sampling.runs import make_run


@pytest.fixture
def in_process(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage's one actor works in this process. That actors of Ray give the same is a test of its own."""

    def answers(shards: Sequence[Shard], settings: ActorSettings) -> Iterator[dict[str, Any]]:
        actor = GroupsActor(settings)
        for shard in shards:
            actor.write(shard)
            yield {"shard": shard.number, "groups": shard.count}

    monkeypatch.setattr(pool, "_answers", answers)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run's folder with examples, an untrained policy and an untrained oracle."""
    return make_run(tmp_path_factory.mktemp("run"))
