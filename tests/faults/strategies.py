"""Strategies of one's own that kill or starve the actor that runs them, as the files in a folder tell them to."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from rosepo.data.catalogue import Catalogue
from rosepo.data.random import Draws
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.sampling.strategies.protocol import Strategy
from rosepo.sampling.strategies.weighted import uniform
from rosepo.utils import files
from rosepo.utils.files import write_text
from tests.deaths import die_if_told

SCRATCH = Path(os.environ["ROSEPO_TEST_SCRATCH"])
USER = 317
"""In the last shard."""


def deadly(catalogue: Catalogue) -> Strategy:
    """Uniform; kills its process at the examples of USER as often as the file `deaths` says."""
    even = uniform(len(catalogue))

    def strategy(examples: Examples, count: int, draws: Draws) -> np.ndarray:
        if examples.users is not None and USER in examples.users:
            die_if_told(SCRATCH / "deaths")
        return even(examples, count, draws)

    return strategy


def crowded(catalogue: Catalogue) -> Strategy:
    """Uniform; where the file `crowded` names a folder, the figures of part 1 go to a device that is always full."""
    even = uniform(len(catalogue))

    def strategy(examples: Examples, count: int, draws: Draws) -> np.ndarray:
        folder = (SCRATCH / "crowded").read_text()
        if folder:
            # Writing there fails as on a full disk, by the system's own hand. Its name has to be known for that.
            files.uuid = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex="known"))
            aside = files.aside_of(Path(folder, "_part-00001.json"))
            aside.unlink(missing_ok=True)
            aside.symlink_to("/dev/full")
        return even(examples, count, draws)

    return strategy


def hungry(catalogue: Catalogue) -> Strategy:
    """Asks for more memory than its process may have."""

    def strategy(examples: Examples, count: int, draws: Draws) -> np.ndarray:
        limit = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (2**36, limit[1]))
        try:
            return np.ones((2**37,), dtype=np.int64)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limit)

    return strategy


def watchful(catalogue: Catalogue) -> Strategy:
    """Uniform; at the examples of a user it does what the file `watchful` says (`user`, `run`, `then`), after the
    alignment of that run has taken its first step: goes on, raises, or sleeps and leaves its process's number."""
    even = uniform(len(catalogue))

    def strategy(examples: Examples, count: int, draws: Draws) -> np.ndarray:
        about = json.loads((SCRATCH / "watchful").read_text())
        if examples.users is not None and about["user"] in examples.users:
            if about["then"] == "sleep":
                write_text(SCRATCH / "asleep", str(os.getpid()))
                time.sleep(600)
            wait_for_training(Path(about["run"]))
            if about["then"] == "raise":
                raise ValueError("no titles today")
        return even(examples, count, draws)

    return strategy


def wait_for_training(run: Path) -> None:
    """Return when an alignment of a run has told of its first step; raises after three minutes without."""
    for _ in range(1800):
        for path in run.glob(".aligned*/metrics.jsonl"):
            if any(json.loads(line).get("step", 0) >= 1 for line in path.read_text().splitlines()[:-1]):
                return
        time.sleep(0.1)
    raise TimeoutError("training took no step while this part was missing")
