"""The Ray Data actor that turns shards of examples into part files of groups."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rosepo.data.catalogue import ITEMS_FILE, Catalogue
from rosepo.data.example_shards import Shard, read_shard
from rosepo.data.item_columns import INDEX
from rosepo.sampling.group_files import write_part
from rosepo.sampling.settings import ActorSettings
from rosepo.sampling.strategies.distributions import FromOracle
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.sampling.strategies.mixture import Rejected, make_strategies, sample_rejected
from rosepo.sampling.strategies.protocol import StrategyInputs
from rosepo.sampling.tally import Tally
from rosepo.utils.list_columns import fixed, lists, matrix, nested
from rosepo.utils.quiet import quiet_worker

if TYPE_CHECKING:
    from rosepo.sampling.models import Models

COLUMNS = (
    "example_id", "user_id", "prompt_ids", "chosen_item", "chosen_ids", "rejected_items", "rejected_ids", "strategy",
    "epsilon", "oracle_scores", "oracle_rest", "oracle_shares", "ref_logps",
)  # fmt: skip
"""Columns of the groups table, in order; without scores it has no tokens and nothing behind `strategy`. `oracle_rest`
is there where the strategy `oracle` is used, `oracle_shares` with `pairs.oracle_whole`, see `FromOracle.odds`."""
BATCH = 1024
"""Examples that are sampled and scored together: enough for models to put prompts of like length into full batches, few
enough for a strategy or a scorer of one's own to hold a number an item for each."""


class GroupsActor:
    """Loads what it needs once, then writes one part file a shard, which depends on the shard alone."""

    def __init__(self, settings: ActorSettings) -> None:
        quiet_worker()
        self.settings, pairs = settings, settings.pairs
        self.catalogue = Catalogue.load(settings.paths.examples / ITEMS_FILE)
        self.models: Models | None = None
        if pairs.score or pairs.asks_policy or pairs.asks_oracle:
            # An actor that asks no model starts without torch, in a fraction of the time.
            from rosepo.sampling.models import Models

            self.models = Models(settings, self.catalogue)
        inputs = StrategyInputs(
            pairs, settings.negatives, self.catalogue, embeddings=settings.embeddings, device=settings.device
        )
        if self.models is not None:
            inputs = self.models.given_to(inputs)
        self.strategies = make_strategies(inputs)
        self.scorer = self.models.scorer() if self.models and pairs.score else None

    def __call__(self, batch: pa.Table) -> dict[str, list[Any]]:
        """One answer a shard: its number, and how many groups it holds."""
        answers: dict[str, list[Any]] = {"shard": [], "groups": []}
        for row in batch.to_pylist():
            shard = Shard(**row)
            self.write(shard)
            answers["shard"].append(shard.number)
            answers["groups"].append(shard.count)
        return answers

    def write(self, shard: Shard) -> None:
        """Write the part file of a shard, and its figures beside it."""
        tally = Tally()
        with tally.timed("read"):
            extra = ("candidates",) if self.settings.candidates else ()
            table = read_shard(shard, self.settings.pairs.newest, extra)
        starts = range(0, len(table), BATCH)
        groups = pa.concat_tables([self.groups(table.slice(start, BATCH), tally) for start in starts])
        write_part(self.settings.out, shard, self.settings.origin, groups, tally)

    def groups(self, table: pa.Table, tally: Tally) -> pa.Table:
        """The groups of a table of examples, in their order; see `read_shard`."""
        pairs = self.settings.pairs
        with tally.timed("read"):
            examples = Examples.of(table, len(self.catalogue))
        if pairs.score or pairs.asks_policy:
            with tally.timed("prompts"):
                examples = self._with_prompts(examples, tally)
        with tally.timed("sampling"):
            count = self.settings.negatives
            rejected = sample_rejected(examples, self.strategies, pairs.strategies, count, self.settings.seed)
        items = np.concatenate([examples.targets[:, None], rejected.items], axis=1)
        columns = self._titles(table, items, rejected)
        tally.totals["groups"] += len(examples)
        if self.scorer is not None:
            columns |= self._scored(examples, items, rejected, tally)
        else:
            for index, name in enumerate(rejected.names):
                tally.count_pairs(name, rejected.fallback[rejected.strategy == index])
        return pa.table({name: columns[name] for name in COLUMNS if name in columns})

    def _with_prompts(self, examples: Examples, tally: Tally) -> Examples:
        """The examples with their prompts."""
        assert self.models is not None
        prompts, dropped = self.models.builder.prompts(examples.histories, examples.candidates)
        tally.count_prompts(np.array([len(prompt) for prompt in prompts]), np.array(dropped))
        return replace(examples, prompts=prompts)

    def _titles(self, table: pa.Table, items: np.ndarray, rejected: Rejected) -> dict[str, Any]:
        names = np.array(rejected.names, dtype=object)[rejected.strategy]
        return {
            "example_id": table["example_id"].combine_chunks(),
            "user_id": table["user_id"].combine_chunks(),
            "chosen_item": pa.array(items[:, 0], INDEX),
            "rejected_items": matrix(items[:, 1:], INDEX),
            "strategy": matrix(names, pa.string()),
        }

    def _scored(self, examples: Examples, items: np.ndarray, rejected: Rejected, tally: Tally) -> dict[str, Any]:
        assert self.scorer is not None
        scored = self.scorer(examples, items, tally)
        for index, name in enumerate(rejected.names):
            at = rejected.strategy == index
            margin = (scored.oracle_scores[:, :1] - scored.oracle_scores[:, 1:])[at]
            tally.count_pairs(name, rejected.fallback[at], margin, scored.epsilon[at])
        oracle = self.strategies.get("oracle")
        drawn: dict[str, Any] = {}
        if isinstance(oracle, FromOracle):
            whole = self.settings.pairs.oracle_whole
            rest, shares = oracle.odds(examples, whole)
            drawn["oracle_rest"] = pa.array(rest, pa.float32())
            if shares is not None:
                drawn["oracle_shares"] = fixed(shares)
        return drawn | {
            "prompt_ids": lists(list(examples.prompts or [])),
            "chosen_ids": lists([row[0] for row in scored.completions]),
            "rejected_ids": nested([row[1:] for row in scored.completions]),
            "epsilon": matrix(scored.epsilon, pa.float32()),
            "oracle_scores": matrix(scored.oracle_scores, pa.float32()),
            "ref_logps": matrix(scored.ref_logps, pa.float32()),
        }
