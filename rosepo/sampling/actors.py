"""The Ray Data actor that turns shards of examples into part files of groups."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rosepo.config import PairsConfig
from rosepo.errors import StageError
from rosepo.evaluation.decode import Decoder
from rosepo.models.folder import load_recommender
from rosepo.models.loading import load_policy
from rosepo.models.oracle import CrossFitted
from rosepo.sampling.draws import round_seed
from rosepo.sampling.epsilon import calibrate, epsilon
from rosepo.sampling.examples import Examples
from rosepo.sampling.figures import Tally
from rosepo.sampling.mixture import Rejected, sample_rejected
from rosepo.sampling.plan import Shard, read_shard
from rosepo.sampling.reference import reference_logps
from rosepo.sampling.strategies import LookAlikes, Strategy, WrongAnswers, own_strategy, popularity, uniform
from rosepo.training.logps import LogpsModel

MIN_BEAMS = 8
"""A narrower search would miss the model's best titles behind a rare first token."""


@dataclass(frozen=True)
class ActorSettings:
    """What an actor needs to know.

    Attributes:
        pairs, seed: from the configuration.
        round: of the pairs; draws differ between rounds.
        policy: folder of the model that answers.
        reference: folder of the model whose log-probabilities are written; it may be the same.
        oracle: folder of the preference oracle.
        out: folder of the part files.
        embeddings: NumPy file of the title embeddings float32 [n_items, d]; None where `semantic` is not used.
        device: `cpu` or `cuda`.
    """

    pairs: PairsConfig
    seed: int
    round: int
    policy: Path
    reference: Path
    oracle: Path
    out: Path
    embeddings: Path | None
    device: str


class GroupsActor:
    """Loads the models once, then writes one part file a shard. Its answer for a shard depends on the shard alone."""

    def __init__(self, settings: ActorSettings) -> None:
        torch.set_num_threads(max(1, int(settings.pairs.cpus_per_actor)))
        self.settings = settings
        recommender = load_recommender(settings.policy)
        self.builder, self.catalogue = recommender.builder, recommender.catalogue
        model = recommender.model.to(settings.device)
        same = settings.reference == settings.policy
        self.reference = LogpsModel(model if same else load_policy(settings.reference).to(settings.device))
        self.oracle = CrossFitted.load(settings.oracle, self.catalogue.item_ids, device=settings.device)
        self.strategies = self._strategies(model)
        self.seed = round_seed(settings.seed, settings.round)

    def __call__(self, batch: pa.Table) -> dict[str, list[Any]]:
        """One answer a shard: its number, and its figures as JSON."""
        numbers, figures = [], []
        for row in batch.to_pylist():
            shard = Shard(row["shard"], row["path"], np.asarray(row["rows"], dtype=np.int32))
            tally = Tally()
            self._write(shard, tally)
            numbers.append(shard.number)
            figures.append(json.dumps(tally.to_dict()))
        return {"shard": numbers, "figures": figures}

    def _strategies(self, model: torch.nn.Module) -> dict[str, Strategy]:
        pairs = self.settings.pairs
        found: dict[str, Strategy] = {}
        wanted = {name for name, weight in pairs.strategies.items() if weight > 0}
        if "self_hard" in wanted:
            beams = max(MIN_BEAMS, pairs.self_hard_top + pairs.negatives - 1)
            found["self_hard"] = WrongAnswers(Decoder(model, self.builder, beams), pairs.self_hard_top)
        if "semantic" in wanted and self.settings.embeddings is not None:
            # Mapped, not read: actors of one machine share its pages.
            embeddings = np.load(self.settings.embeddings, mmap_mode="r", allow_pickle=False)
            found["semantic"] = LookAlikes(embeddings, pairs.semantic_decay, pairs.semantic_top)
        if "popularity" in wanted:
            found["popularity"] = popularity(self.catalogue.train_count, pairs.popularity_exponent)
        if "uniform" in wanted:
            found["uniform"] = uniform(len(self.catalogue))
        return found | {name: own_strategy(name, self.catalogue) for name in wanted if ":" in name}

    def _write(self, shard: Shard, tally: Tally) -> None:
        with _timed(tally, "read"):
            examples = read_shard(shard)
        size = self.settings.pairs.batch_size
        parts = [self.groups(examples.slice(low, size), tally) for low in range(0, len(examples), size)]
        with _timed(tally, "write"):
            path = self.settings.out / f"part-{shard.number:05d}.parquet"
            aside = path.with_name(f".{path.name}.tmp")
            pq.write_table(pa.concat_tables(parts), aside, compression="zstd")
            aside.replace(path)

    def groups(self, table: pa.Table, tally: Tally) -> pa.Table:
        """The groups of one batch of examples, in their order."""
        pairs = self.settings.pairs
        with _timed(tally, "prompts"):
            histories, seen, targets = self._items(table)
            prompts, dropped = zip(*(self.builder.prompt(history) for history in histories), strict=True)
            tally.count_prompts(np.array([len(prompt) for prompt in prompts]), np.array(dropped))
            ids = table["example_id"].to_pylist()
            examples = Examples.of(ids, histories, targets, len(self.catalogue), prompts, seen)
        with _timed(tally, "sampling"):
            rejected = sample_rejected(examples, self.strategies, pairs.strategies, pairs.negatives, self.seed)
            _check(examples, rejected, ids)
        with _timed(tally, "oracle"):
            items = np.concatenate([targets[:, None], rejected.items], axis=1)
            scores = calibrate(self.oracle.score_items(table["user_id"].to_pylist(), histories, items), self.oracle.tau)
            smoothing = epsilon(scores)
        with _timed(tally, "reference"):
            completions = [[self.builder.completion(item) for item in row] for row in items]
            logps = np.stack(reference_logps(self.reference, prompts, completions))
        if not (np.isfinite(scores).all() and np.isfinite(logps).all()):
            raise StageError("the oracle or the model gives scores that are not finite: train it again")
        for index, name in enumerate(rejected.names):
            at = rejected.strategy == index
            margin = (scores[:, :1] - scores[:, 1:])[at]
            tally.count_pairs(name, margin, smoothing[at], rejected.fallback[at])
        names = np.array(rejected.names, dtype=object)[rejected.strategy]
        item_ids = self.catalogue.item_ids[items]
        id_type = table["target"].type
        return pa.table(
            {
                "example_id": table["example_id"].combine_chunks(),
                "user_id": table["user_id"].combine_chunks(),
                "prompt_ids": _lists(prompts),
                "chosen_item": pa.array(item_ids[:, 0], type=id_type),
                "chosen_ids": _lists([row[0] for row in completions]),
                "rejected_items": _matrix(item_ids[:, 1:], id_type),
                "rejected_ids": _nested([row[1:] for row in completions]),
                "strategy": _matrix(names, pa.string()),
                "epsilon": _matrix(smoothing, pa.float32()),
                "oracle_scores": _matrix(scores, pa.float32()),
                "ref_logps": _matrix(logps, pa.float32()),
            }
        )

    def _items(self, table: pa.Table) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
        """Histories, all that was seen before, and targets, as item indexes."""
        histories, seen = (self.catalogue.index_lists(table[name]) for name in ("history", "seen"))
        return histories, seen, self.catalogue.index(table["target"].to_numpy())


def _check(examples: Examples, rejected: Rejected, ids: Sequence[str]) -> None:
    """What every group promises, looked at before it is written."""
    ordered = np.sort(rejected.items, axis=1)
    wrong = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1) | (ordered[:, 0] < 0)
    wrong |= ordered[:, -1] >= examples.n_items
    for column in rejected.items.T:
        wrong |= examples.excluded.holds(column)
    if wrong.any():
        raise StageError(
            f"example {ids[int(np.argmax(wrong))]} got a rejected title twice, from its history, or its own target:"
            " a strategy breaks its promise"
        )


@contextmanager
def _timed(tally: Tally, part: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    tally.count_seconds(part, time.monotonic() - start)


def _lists(arrays: Sequence[np.ndarray]) -> pa.ListArray:
    """One list<int32> entry an array."""
    offsets = np.cumsum([0, *(len(array) for array in arrays)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(arrays), type=pa.int32()))


def _nested(rows: Sequence[Sequence[np.ndarray]]) -> pa.ListArray:
    """One list<list<int32>> entry a row."""
    offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, _lists([array for row in rows for array in row]))


def _matrix(values: np.ndarray, kind: pa.DataType) -> pa.ListArray:
    """One list entry a row of a matrix."""
    offsets = (np.arange(len(values) + 1) * values.shape[1]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel(), type=kind))
