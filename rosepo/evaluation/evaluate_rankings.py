"""Rankings to figures: `metrics.json` and exposure, read part by part.

What is kept of an example are a few numbers in arrays: of every system its rank (1 byte) and five series in float32 (20
bytes), of the truth three series (12), of the user a code, the length and the popularity of the history (16).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rosepo.config import Config
from rosepo.config.evaluation import OWN
from rosepo.data.catalogue import Catalogue
from rosepo.evaluation.measured_examples import Batch, Part, batches_beside, plan_parts, user_codes
from rosepo.evaluation.rankings import read_part
from rosepo.evaluation.user_segments import METRICS, group_figures, user_groups
from rosepo.metrics import bias
from rosepo.metrics.bootstrap import Resampled, UserBootstrap, plain
from rosepo.metrics.ranking import accuracy, hit_ratio, ndcg
from rosepo.utils.console import echo

if TYPE_CHECKING:
    from rosepo.run.paths import RunPaths

COMPARED = (
    ("aligned", "sft"), ("aligned", "oracle"), ("aligned", "markov"), ("aligned", "popular"),
    ("sft", "oracle"), ("sft", "markov"), ("sft", "popular"), ("oracle", "markov"),
)  # fmt: skip
"""Pairs whose differences get paired intervals; a system of others is compared with each of the run's own."""
POPULARITY = ("log_popularity", "head_share")
LIKENESS = ("look_alike", "hallucination", "hallucination@1")


def evaluate_rankings(
    config: Config, paths: RunPaths, catalogue: Catalogue, examples: Path, rankings: Path, names: Sequence[str]
) -> tuple[dict[str, Any], pa.Table]:
    """`metrics.json` as a mapping, and how often each item was recommended in the top ten by each system.

    Args:
        examples: file that `write_examples` wrote.
        rankings: folder of the folders `<name>.parquet` of rankings, rows in the examples' order.
        names: of the systems; those that are not the run's own last.
    """
    users = user_codes(examples)
    series = ExampleSeries(config, paths, catalogue, len(users), names)
    series.read(examples, rankings)
    bootstrap = UserBootstrap(users, config.evaluate.bootstrap, config.seed)
    drawn = bootstrap.resample(series.all())
    entries: dict[str, dict[str, Any]] = {}
    for name in (*names, "truth"):
        entries[name] = {key: plain(drawn.mean((name, key))) for key in series.keys(name)}
        entries[name] |= {
            key: {"value": value if np.isfinite(value) else None}
            for key, value in bias.concentration(series.exposure[name]).items()
        }
    truth = entries.pop("truth")
    for figures, key in itertools.product(entries.values(), truth):
        figures[key]["truth"] = truth[key]["value"]
    groups = user_groups(users, series.lengths, series.tastes)
    columns = {"item_id": catalogue.item_ids, "train_count": catalogue.train_count, **series.exposure}
    return {
        "split": config.evaluate.split,
        "protocol": "candidates" if config.model.template.candidates else "catalogue",
        "n_examples": bootstrap.n_examples,
        "n_users": bootstrap.n_users,
        "models": entries,
        "truth": truth,
        "differences": _differences(drawn, series, names),
        "groups": group_figures(groups, users, series.grouped(), config.evaluate.bootstrap, config.seed),
    }, pa.table(columns)


def compared(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of systems whose differences are told: of others' systems each with each of the run's own and with those
    behind it."""
    external = [name for name in names if name not in OWN]
    pairs = [*COMPARED, *itertools.product(external, reversed(OWN)), *itertools.combinations(external, 2)]
    return [(a, b) for a, b in pairs if a in names and b in names]


def _differences(drawn: Resampled, series: ExampleSeries, names: Sequence[str]) -> dict[str, Any]:
    return {
        f"{a}-{b}": {key: plain(drawn.difference((a, key), (b, key))) for key in series.keys(a)}
        for a, b in compared(names)
    }


class ExampleSeries:
    """Numbers of every example, by system.

    Args:
        config: of the run; says by what titles are alike.
        n: examples.

    Attributes:
        ranks: int8 [N] by system, -1 for a miss.
        values: float32 [N] by system (and `truth`) and name; NaN where an example does not count.
        exposure: int64 [n_items] by system and `truth`.
        lengths, tastes: int64 [N], float32 [N] titles chosen before each example, and their mean log-popularity.
    """

    def __init__(self, config: Config, paths: RunPaths, catalogue: Catalogue, n: int, names: Sequence[str]) -> None:
        from rosepo.lm.titles.title_embeddings import encode_titles

        spec = config.pairs.encoder
        if spec == "policy" and not paths.sft.is_dir():
            echo("  likeness to the history: no SFT model whose title embeddings to use, so `tfidf`")
            spec = "tfidf"
        self._embeddings = encode_titles(spec, catalogue, paths.sft)
        self._decay = config.pairs.semantic_decay
        self._catalogue, self._names = catalogue, names
        self._popularity = bias.Popularity.of(catalogue.train_count)
        self.ranks = {name: np.empty(n, dtype=np.int8) for name in names}
        keys = dict.fromkeys(names, (*POPULARITY, *LIKENESS)) | {"truth": (*POPULARITY, "look_alike")}
        self.values = {name: {key: np.empty(n, dtype=np.float32) for key in keys[name]} for name in keys}
        self.exposure = {name: np.zeros(len(catalogue), dtype=np.int64) for name in keys}
        self.lengths, self.tastes = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.float32)

    def read(self, examples: Path, rankings: Path) -> None:
        """Fill in all examples, part by part."""

        def found_in(part: Part) -> dict[str, tuple[np.ndarray, np.ndarray]]:
            return {name: read_part(rankings / f"{name}.parquet" / part.name) for name in self._names}

        start = 0
        for batch, found in batches_beside(examples, plan_parts(examples), found_in):
            here = slice(start, start + len(batch.targets))
            for name, (ranks, _) in found.items():
                self.ranks[name][here] = ranks
            self._fill(
                here, batch, {name: items[:, : bias.LIST].astype(np.int64) for name, (_, items) in found.items()}
            )
            start = here.stop

    def keys(self, name: str) -> list[str]:
        """Names of a system's series; the truth has no accuracy."""
        return [*(accuracy(np.empty(0)) if name != "truth" else ()), *self.values[name]]

    def all(self) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
        """Every series, one after the other: its system and name, and its values."""
        for name, values in self.values.items():
            figures = accuracy(self.ranks[name]) if name != "truth" else {}
            for key in self.keys(name):
                yield (name, key), figures[key] if key in figures else values[key]

    def grouped(self) -> dict[str, dict[str, np.ndarray]]:
        """The series that groups of users are told of."""
        found = {name: {key: values[key] for key in METRICS if key in values} for name, values in self.values.items()}
        for name, ranks in self.ranks.items():
            found[name] |= {"hr@10": hit_ratio(ranks, 10).astype(np.float32), "ndcg@10": ndcg(ranks, 10)}
        return found

    def _fill(self, here: slice, batch: Batch, top: dict[str, np.ndarray]) -> None:
        from rosepo.lm.titles.title_embeddings import history_similarity

        profiles = history_similarity(self._embeddings, batch.histories, self._decay)
        profiles[[not len(history) for history in batch.histories]] = np.nan
        targets = batch.targets[:, None]
        truth = bias.likeness(self._embeddings, profiles, targets)[:, 0]
        found = {name: bias.popularity_series(items, self._popularity) for name, items in top.items()}
        for name, items in top.items():
            similarity = bias.likeness(self._embeddings, profiles, items)
            found[name] |= bias.hallucination_series(items, batch.targets, similarity, truth)
        found["truth"] = bias.popularity_series(targets, self._popularity) | {"look_alike": truth}
        for name, figures in found.items():
            self.exposure[name] += bias.exposure(top.get(name, targets), len(self._catalogue))
            for key, values in figures.items():
                self.values[name][key][here] = values
        self.lengths[here] = [len(seen) for seen in batch.seen]
        log = self._popularity.log
        self.tastes[here] = [log[seen].mean() if len(seen) else np.nan for seen in batch.seen]
