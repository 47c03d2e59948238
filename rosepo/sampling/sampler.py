"""What rejected titles are drawn from: examples as arrays of item indexes, and the strategies of a mixture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.config import PairsConfig
from rosepo.data.catalogue import Catalogue
from rosepo.data.example_shards import COLUMNS, example_files
from rosepo.sampling.strategies.distributions import CatalogueScores, FromOracle, FromPolicy
from rosepo.sampling.strategies.example_batch import Examples
from rosepo.sampling.strategies.strategies import (
    Accepted,
    Answers,
    Candidates,
    Strategy,
    WrongAnswers,
    own_strategy,
    popularity,
    uniform,
)
from rosepo.sampling.strategies.wrong_candidates import CandidateScores, WrongCandidates
from rosepo.utils.errors import UserError

MIN_BEAMS = 8
"""A narrower search would miss the model's best titles behind a rare first token."""

Scores = Callable[[Examples, np.ndarray], np.ndarray]
"""Calibrated oracle scores float32 [N, C] of items int64 [N, C] after each example's history."""


def examples_of(table: pa.Table, catalogue: Catalogue) -> Examples:
    """A table of examples (see `read_shard`) as arrays of item indexes, without prompts.

    Raises:
        UserError: an item that the catalogue does not hold.
    """
    columns = {name: table[name].combine_chunks() for name in ("history", "seen")}
    flat = {name: catalogue.index(column.flatten().to_numpy(zero_copy_only=False)) for name, column in columns.items()}
    offsets = {name: _offsets(column) for name, column in columns.items()}
    ids = table["example_id"].to_numpy()
    made = Examples.of(ids, [], catalogue.index(table["target"].to_numpy()), len(catalogue))
    candidates = None
    if "candidates" in table.column_names:
        candidates = catalogue.index_matrix(table["candidates"])
    return replace(
        made,
        history_items=flat["history"],
        history_offsets=offsets["history"],
        seen_items=flat["seen"],
        seen_offsets=offsets["seen"],
        candidates=candidates,
        ids=ids,
        users=table["user_id"].to_numpy(),
    )


def strategies(
    pairs: PairsConfig,
    negatives: int,
    catalogue: Catalogue,
    decoder: Callable[[int], Answers] | None = None,
    scores: Scores | None = None,
    embeddings: Path | None = None,
    whole: CatalogueScores | None = None,
    listed: CandidateScores | None = None,
    device: str = "cpu",
) -> dict[str, Strategy]:
    """Every strategy that the mixture of `pairs` uses, by its name.

    Args:
        pairs: the configuration.
        negatives: K, rejected titles an example.
        catalogue: of the examples.
        decoder: what gives the policy's answers, made for a number of beams; for self_hard, policy, and rso on the
            policy's answers.
        scores: the oracle; for rso.
        embeddings: NumPy file of the title embeddings float32 [n_items, d]; for semantic.
        whole: the oracle asked about the whole catalogue; for oracle.
        listed: the policy's scores of candidates, which take the decoder's place where prompts list them.
        device: where titles are compared; for semantic.
    """

    def answers(most: int) -> Answers:
        if decoder is None:
            raise ValueError("a strategy asks the policy, and there is none")
        return decoder(max(MIN_BEAMS, most))

    def wrong_answers(top: int, count: int) -> Strategy:
        if listed is not None:
            return WrongCandidates(listed, top)
        return WrongAnswers(answers(top + count - 1), top)

    def from_oracle() -> FromOracle:
        if whole is None:
            raise ValueError("the strategy oracle asks the oracle, and there is none")
        return FromOracle(whole, pairs.oracle_top)

    def rso() -> Accepted:
        if scores is None:
            raise ValueError("rso asks the oracle, and there is none")
        proposals = max(pairs.rso_proposals, negatives)
        sources: dict[str, Callable[[], Strategy]] = {
            "self_hard": lambda: wrong_answers(1, proposals),  # the best ones, in order
            "popularity": lambda: popularity(catalogue.train_count, pairs.popularity_exponent),
            "uniform": lambda: uniform(len(catalogue)),
        }
        return Accepted(sources[pairs.rso_from](), scores, proposals, pairs.rso_temperature)

    def semantic() -> Strategy:
        from rosepo.sampling.strategies.look_alikes import LookAlikes  # an actor without it starts without torch

        if embeddings is None:
            raise ValueError("semantic needs title embeddings")
        # Mapped, not read: actors of one machine share its pages. Never written to, but torch asks for an array that
        # could be.
        vectors = np.load(embeddings, mmap_mode="c", allow_pickle=False)
        return LookAlikes(vectors, pairs.semantic_decay, pairs.semantic_top, device)

    makers: Mapping[str, Callable[[], Strategy]] = {
        "self_hard": lambda: wrong_answers(pairs.self_hard_top, negatives),
        "semantic": semantic,
        "popularity": lambda: popularity(catalogue.train_count, pairs.popularity_exponent),
        "uniform": lambda: uniform(len(catalogue)),
        "candidates": Candidates,
        "rso": rso,
        "policy": lambda: FromPolicy(answers(pairs.policy_top), pairs.policy_top),
        "oracle": from_oracle,
    }
    return {name: makers[name]() if name in makers else own_strategy(name, catalogue) for name in pairs.used}


def check_columns(examples: Path, candidates: bool) -> None:
    """Refuse examples without a column that sampling reads; `candidates` is one if asked for.

    Raises:
        UserError: naming file, column and remedy.
    """
    for path in example_files(examples):
        names = pq.read_schema(path).names
        if candidates and "candidates" not in names:
            raise UserError(
                f"{path} has no candidate lists, which pairs.strategies.candidates draws from and prompts list under"
                " model.template.candidates=true: set prepare.candidates to at least 2 and run `rosepo prepare` again"
            )
        missing = [name for name in (*COLUMNS, "split") if name not in names]
        if missing:
            raise UserError(f"{path} has no column '{missing[0]}': run `rosepo prepare` again")


def _offsets(lists: pa.Array) -> np.ndarray:
    return np.append(0, np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))).astype(np.int64)
