"""Strategies of one's own that kill or starve the actor that runs them, as the files in a folder tell them to."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import numpy as np

from rosepo.data.catalogue import Catalogue
from rosepo.sampling.draws import Draws
from rosepo.sampling.examples import Examples
from rosepo.sampling.strategies import Strategy, uniform

SCRATCH = Path(os.environ["ROSEPO_TEST_SCRATCH"])
USER = 317
"""In the last shard."""


def deadly(catalogue: Catalogue) -> Strategy:
    """Uniform; kills its process at the examples of USER as often as the file `deaths` says."""
    even = uniform(len(catalogue))

    def strategy(examples: Examples, count: int, draws: Draws) -> np.ndarray:
        deaths = SCRATCH / "deaths"
        left = int(deaths.read_text())
        if left and examples.users is not None and USER in examples.users:
            deaths.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return even(examples, count, draws)

    return strategy


def crowded(catalogue: Catalogue) -> Strategy:
    """Uniform; where the file `crowded` names a folder, the figures of part 1 go to a device that is always full."""
    even = uniform(len(catalogue))

    def strategy(examples: Examples, count: int, draws: Draws) -> np.ndarray:
        folder = (SCRATCH / "crowded").read_text()
        if folder:
            # Writing there fails as on a full disk, by the system's own hand.
            aside = Path(folder, f"._part-00001.json.{os.getpid()}.tmp")
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
