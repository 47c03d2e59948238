"""From rankings to figures of several seeds: values example by example, pooled over seeds, with paired intervals.

Intervals come from a bootstrap over users. The same user of several seeds is one unit: a draw takes all seeds of a user
or none, so an interval tells what other users would have given, for models that were trained as often as these.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq

from rosepo.config import Config
from rosepo.data.catalogue import Catalogue, ranked_items
from rosepo.evaluation.evaluate_rankings import ExampleSeries
from rosepo.evaluation.measured_examples import EXAMPLES_FILE
from rosepo.evaluation.rankings import RANKINGS_FOLDER
from rosepo.experiments.suite import Metric
from rosepo.metrics.bootstrap import Estimate, Resampled, UserBootstrap
from rosepo.run.paths import RunPaths

METRICS: tuple[Metric, ...] = get_args(Metric)
TRUTH = "truth"

Series = dict[str, np.ndarray]


@dataclass(frozen=True)
class Measured:
    """An evaluation, example by example.

    Attributes:
        example_ids: [N], in the order of all series.
        users: [N].
        systems: name of a model, or `truth`, to metric to float [N]; NaN where an example has no value.
    """

    example_ids: np.ndarray
    users: np.ndarray
    systems: dict[str, Series]


def read_measured(folder: Path, config: Config, models: Iterable[str]) -> Measured:
    """Read the rankings of some models in a run's folder; models without a ranking are left out.

    Args:
        config: of the run.
    """
    paths = RunPaths(folder)
    examples, rankings = paths.evaluation / EXAMPLES_FILE, paths.evaluation / RANKINGS_FOLDER
    names = [name for name in models if (rankings / f"{name}.parquet").is_dir()]
    about = pq.read_table(examples, columns=["example_id", "user_id"])
    catalogue = Catalogue.load(ranked_items(paths.examples, paths.evaluation))
    series = ExampleSeries(config, paths, catalogue, len(about), names)
    series.read(examples, rankings)
    systems: dict[str, Series] = {}
    for (name, key), values in series.all():
        if key in METRICS:
            systems.setdefault(name, {})[key] = values
    return Measured(about["example_id"].to_numpy(), about["user_id"].to_numpy(), systems)


class Pool:
    """Systems on the same examples, each with one or several seeds.

    Args:
        users: seed to the users of its examples, [N] each.
        systems: name to seed to metric to values of those examples.
        resamples: draws behind an interval.
    """

    def __init__(
        self,
        users: Mapping[int, np.ndarray],
        systems: Mapping[str, Mapping[int, Series]],
        resamples: int = 1000,
    ) -> None:
        self.users, self.systems, self.resamples = users, systems, resamples
        self._drawn: dict[tuple[int, ...], Resampled] = {}

    def seeds(self, *names: str) -> tuple[int, ...]:
        """Those that all of the systems have."""
        return tuple(sorted(set.intersection(*(set(self.systems.get(name, ())) for name in names))))

    def mean(self, name: str, metric: str) -> Estimate:
        """Mean over the examples of all seeds of a system, with its interval."""
        return self._draws(self.seeds(name)).mean((name, metric))

    def difference(self, name: str, base: str, metric: str) -> Estimate:
        """Mean of one system minus that of another, over the seeds that both have, of which there must be any."""
        return self._draws(self.seeds(name, base)).difference((name, metric), (base, metric))

    def by_seed(self, name: str, metric: str) -> dict[int, float | None]:
        """The mean of every seed; None where no example has a value."""
        return {seed: _mean(series[metric]) for seed, series in sorted(self.systems[name].items())}

    def _draws(self, seeds: tuple[int, ...]) -> Resampled:
        """All systems that have these seeds, under the same draws of users."""
        if seeds not in self._drawn:
            users = np.concatenate([self.users[seed] for seed in seeds])
            values: dict[Hashable, np.ndarray] = {
                (name, metric): np.concatenate([of_seed[seed][metric] for seed in seeds])
                for name, of_seed in self.systems.items()
                if set(seeds) <= set(of_seed)
                for metric in of_seed[seeds[0]]
            }
            self._drawn[seeds] = UserBootstrap(users, self.resamples).resample(values)
        return self._drawn[seeds]


def _mean(values: np.ndarray) -> float | None:
    found = values[~np.isnan(values)]
    return float(found.mean()) if len(found) else None
