"""The candidate protocol, and the share of free answers that are no title: figures of what models write unconstrained.

In the candidate protocol a prompt lists its example's candidates, the model writes an answer, and the answer is looked
up among the titles. Public code divides hits by all answers in one repository and by valid answers in another, and
calls both HR@1: here each has a name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rosepo.evaluation.candidates.free_answers import freely, read_answers
from rosepo.evaluation.candidates.leakage_probes import learn_probes
from rosepo.evaluation.evaluate_rankings import compared
from rosepo.evaluation.measured_examples import Batch, Part, batches_beside, user_codes, write_examples
from rosepo.evaluation.systems import Ranking
from rosepo.metrics.bootstrap import UserBootstrap, plain

FREE_EXAMPLES_FILE = "_free_examples.parquet"
SERIES = ("hr@1", "hr@1_valid", "valid_ratio", "hr@1_substring", "hr@1_substring_valid", "valid_ratio_substring")
PROBES = ""
"""Stands for the probes among the names of systems, none of which is empty."""


def free_generation(ranking: Ranking, models: Mapping[str, str], metrics: dict[str, Any]) -> None:
    """Let language models (name to folder or hub id) answer freely, and add what that shows to the `metrics`.

    Where prompts list candidates: `candidates`, see `candidate_protocol`. Otherwise, with `evaluate.free_generation`:
    `out_of_catalogue` of models and differences, see there. Else nothing.

    Raises:
        UserError, StageError: as `Ranking.by_actors`.
    """
    settings = ranking.config.evaluate
    if ranking.config.model.template.candidates:
        metrics["candidates"] = candidate_protocol(freely(ranking), models)
    elif settings.free_generation and models:
        count = min(settings.free_generation, settings.max_examples or settings.free_generation)
        examples = ranking.out / FREE_EXAMPLES_FILE
        write_examples(ranking.paths.examples, settings.split, count, settings.batch_size, examples)
        found = out_of_catalogue(freely(ranking, FREE_EXAMPLES_FILE), models)
        for kind, figures in found.items():
            for name, figure in figures.items():
                metrics[kind][name]["out_of_catalogue"] = figure


def candidate_protocol(writing: Ranking, models: Mapping[str, str]) -> dict[str, Any]:
    """Free answers to prompts that list candidates, for all examples.

    Returns:
        n_examples, n_users, n_candidates; `models` and `differences`, by name the series of `answer_series`, and
        `probes` (see `Probes`): each value, low and high, under the same draws of users.
    """
    config, catalogue = writing.config, writing.catalogue
    writing.by_actors(models)
    probes = learn_probes(writing.paths.examples, config.evaluate.split, catalogue)
    series: dict[tuple[str, str], list[np.ndarray]] = {}
    n_candidates = 0
    for batch, answers in _batches(writing, models):
        assert batch.candidates is not None
        n_candidates = batch.candidates.shape[1]
        for key, values in probes.series(batch.candidates, batch.targets).items():
            series.setdefault((PROBES, key), []).append(values)
        for name, (texts, items) in answers.items():
            for key, values in answer_series(texts, items, batch.candidates, batch.targets, catalogue.titles).items():
                series.setdefault((name, key), []).append(values)
    bootstrap = UserBootstrap(user_codes(writing.examples), config.evaluate.bootstrap, config.seed)
    drawn = bootstrap.resample((name, np.concatenate(parts)) for name, parts in series.items())
    return {
        "n_examples": bootstrap.n_examples,
        "n_users": bootstrap.n_users,
        "n_candidates": n_candidates,
        "models": {name: {key: plain(drawn.mean((name, key))) for key in SERIES} for name in models},
        "probes": {key: plain(drawn.mean((name, key))) for name, key in series if name == PROBES},
        "differences": {
            f"{a}-{b}": {key: plain(drawn.difference((a, key), (b, key))) for key in SERIES}
            for a, b in compared(list(models))
        },
    }


def out_of_catalogue(writing: Ranking, models: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Share of free answers that are no title of the catalogue: `models` and `differences` by name, each value, low,
    high, and the n_examples and n_users behind them."""
    config = writing.config
    writing.by_actors(models)
    series: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for _, answers in _batches(writing, models):
        for name, (_, items) in answers.items():
            series[name].append((items < 0).astype(np.float64))
    bootstrap = UserBootstrap(user_codes(writing.examples), config.evaluate.bootstrap, config.seed)
    drawn = bootstrap.resample((name, np.concatenate(parts)) for name, parts in series.items())
    counts = {"n_examples": bootstrap.n_examples, "n_users": bootstrap.n_users}
    pairs = compared(list(models))
    return {
        "models": {name: plain(drawn.mean(name)) | counts for name in models},
        "differences": {f"{a}-{b}": plain(drawn.difference(a, b)) | counts for a, b in pairs},
    }


def answer_series(
    texts: Sequence[str], items: np.ndarray, candidates: np.ndarray, targets: np.ndarray, titles: Sequence[str]
) -> dict[str, np.ndarray]:
    """Figures of n answers, float64 [n] each; NaN where an answer does not count.

    `hr@1`: the answer is the target, over all answers. `valid_ratio`: it is one of the candidates. `hr@1_valid`: `hr@1`
    over those alone. The same three with `_substring` go by `named_candidate` instead.

    Args:
        texts: the answers.
        items: the catalogue's item that each is, int64 [n], -1 for none; see `TitleMatcher`.
        candidates: int64 [n, C], the target among them.
        targets: int64 [n].
        titles: of the catalogue, by item index.
    """
    valid = (candidates == items[:, None]).any(axis=1)
    listed = ([titles[item] for item in row] for row in candidates)
    places = np.array([named_candidate(text, names) for text, names in zip(texts, listed, strict=True)], dtype=np.int64)
    named = places >= 0
    found = candidates[np.arange(len(places)), np.maximum(places, 0)]
    return {
        **_rates(items == targets, valid, ""),
        **_rates(named & (found == targets), named, "_substring"),
    }


def named_candidate(answer: str, titles: Sequence[str]) -> int:
    """The place of the one title that is contained in an answer, -1 where none or several are.

    The rule of LLaRA's published evaluation (arXiv 2312.02445): answer and titles lower-cased and stripped, a title
    counts where it is a substring of the answer, and an answer is valid where exactly one does. S-DPO's (2406.09215)
    is the same without lower-casing. So "Aliens" names nothing where "Alien" is a candidate too, and a title inside
    of any other text is as good as the title. LLaRA divides hits by valid answers, S-DPO by all.
    """
    answer = answer.strip().lower().strip()
    found = [place for place, title in enumerate(titles) if title.strip().lower().strip() in answer]
    return found[0] if len(found) == 1 else -1


def _rates(hits: np.ndarray, valid: np.ndarray, rule: str) -> dict[str, np.ndarray]:
    rate = hits.astype(np.float64)
    return {
        f"hr@1{rule}": rate,
        f"hr@1{rule}_valid": np.where(valid, rate, np.nan),
        f"valid_ratio{rule}": valid.astype(np.float64),
    }


def _batches(
    writing: Ranking, models: Mapping[str, str]
) -> Iterator[tuple[Batch, dict[str, tuple[list[str], np.ndarray]]]]:
    """Batch by batch, and every model's answers to it: texts and items."""

    def answers(part: Part) -> dict[str, Any]:
        return {name: read_answers(writing.folder_of(name) / part.name) for name in models}

    return batches_beside(writing.examples, writing.parts, answers)
