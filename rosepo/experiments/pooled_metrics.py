"""From rankings to figures of several seeds: values example by example, pooled over seeds, with paired intervals.

Intervals come from a bootstrap over users. The same user of several seeds is one unit: a draw takes all seeds of a user
or none, so an interval tells what other users would have given, for models that were trained as often as these.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rosepo.config import Config
from rosepo.data.catalogue import Catalogue
from rosepo.evaluation.rankings import read_batches, read_rankings
from rosepo.evaluation.systems import EXAMPLES_FILE, ITEMS_FILE, RANKINGS_FOLDER
from rosepo.lm.model.title_embeddings import encode_titles, history_similarity
from rosepo.metrics import bias
from rosepo.metrics.bootstrap import Estimate, Resampled, UserBootstrap
from rosepo.metrics.ranking import hit_ratio, ndcg
from rosepo.run.paths import RunPaths

METRICS = ("hr@1", "hr@10", "ndcg@10", "log_popularity", "head_share", "hallucination")
TRUTH = "truth"

Series = dict[str, np.ndarray]


@dataclass(frozen=True)
class Measured:
    """An evaluation, example by example.

    Attributes:
        example_ids: [N], in the order of all series.
        users: [N].
        systems: name of a model, or `truth`, to metric to float64 [N]; NaN where an example has no value.
    """

    example_ids: np.ndarray
    users: np.ndarray
    systems: dict[str, Series]


def read_measured(folder: Path, config: Config, models: Iterable[str]) -> Measured:
    """Read the rankings of some models in a run's folder; models without a ranking are left out.

    Args:
        config: of the run; says by what titles are alike.
    """
    inputs = RunPaths(folder)
    catalogue = Catalogue.load(inputs.examples / ITEMS_FILE)
    examples = inputs.evaluation / EXAMPLES_FILE
    folders = {name: inputs.evaluation / RANKINGS_FOLDER / f"{name}.parquet" for name in models}
    ranked = {name: read_rankings(path, catalogue) for name, path in folders.items() if path.is_dir()}
    about = pq.read_table(examples, columns=["example_id", "user_id", "target"])
    targets = catalogue.index(about["target"].to_numpy())
    top = {name: items[:, : bias.LIST] for name, (_, items) in ranked.items()}
    popularity = bias.Popularity.of(catalogue.train_count)
    alike = _hallucination(config, inputs, catalogue, examples, top)
    systems: dict[str, Series] = {TRUTH: bias.popularity_series(targets[:, None], popularity)}
    for name, (ranks, _) in ranked.items():
        systems[name] = {"hr@1": hit_ratio(ranks, 1), "hr@10": hit_ratio(ranks, 10), "ndcg@10": ndcg(ranks, 10)}
        systems[name] |= bias.popularity_series(top[name], popularity) | {"hallucination": alike[name]}
    return Measured(about["example_id"].to_numpy(), about["user_id"].to_numpy(), systems)


def _hallucination(
    config: Config, paths: RunPaths, catalogue: Catalogue, examples: Path, top: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """By how much each model's wrong titles look more like the history than the right one: float64 [N] each."""
    spec = "tfidf" if config.pairs.encoder == "policy" and not paths.sft.is_dir() else config.pairs.encoder
    embeddings = encode_titles(spec, catalogue, paths.sft)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in top}
    start = 0
    for batch in read_batches(examples, catalogue):
        rows = slice(start, start + len(batch.targets))
        start = rows.stop
        profiles = history_similarity(embeddings, batch.histories, config.pairs.semantic_decay)
        profiles[[not len(history) for history in batch.histories]] = np.nan
        truth = bias.likeness(embeddings, profiles, batch.targets[:, None])[:, 0]
        for name, items in top.items():
            similarity = bias.likeness(embeddings, profiles, items[rows])
            series = bias.hallucination_series(items[rows], batch.targets, similarity, truth)
            parts[name].append(series["hallucination"])
    return {name: np.concatenate(found) for name, found in parts.items()}


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
