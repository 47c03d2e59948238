"""The `evaluate` stage: every model ranks the catalogue for the same examples; figures, intervals, report.

Catalogue protocol: all titles that the user had not chosen yet compete; the one right answer is the title that came
next.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.artifacts import write_json
from rosepo.config import Config
from rosepo.console import Progress, say
from rosepo.data.catalogue import Catalogue
from rosepo.evaluation import bias
from rosepo.evaluation.baselines import Popular, markov
from rosepo.evaluation.bootstrap import Estimate, UserBootstrap
from rosepo.evaluation.metrics import accuracy
from rosepo.evaluation.rankings import (
    Batch,
    count_cut,
    rank_by_batches,
    rank_by_models,
    read_batches,
    read_rankings,
    write_examples,
)
from rosepo.evaluation.verdict import NO_BASELINE
from rosepo.models.scorers import ImportedScorer, WholeCatalogue, load_scorer, read_about
from rosepo.resources import stage_use_gpu

if TYPE_CHECKING:
    from rosepo.artifacts import Outputs

EXAMPLES_FILE, RANKINGS_FOLDER = "_examples.parquet", "rankings"
EXPOSURE_FILE, METRICS_FILE = "exposure.parquet", "metrics.json"
MODELS = ("popular", "markov", "oracle", "sft", "aligned")
COMPARED = (
    ("aligned", "sft"), ("aligned", "oracle"), ("aligned", "markov"), ("aligned", "popular"),
    ("sft", "oracle"), ("sft", "markov"), ("sft", "popular"), ("oracle", "markov"),
)  # fmt: skip
"""Pairs whose differences get paired intervals."""

TABLE = "table of scores"

Series = dict[str, np.ndarray]
BatchScores = Callable[[Batch], np.ndarray]


def evaluate(config: Config, inputs: Outputs, out: Path) -> dict[str, Any]:
    """Write `rankings/<model>.parquet`, `exposure.parquet`, `metrics.json` and `report.html` into `out`.

    Models whose stage folder is missing are left out, and said to be.

    Raises:
        UserError: an empty split, more actors than the cluster has CPUs for, or an oracle of another catalogue.
        StageError: an actor failed.
    """
    from rosepo.evaluation.report import write_report

    started = time.monotonic()
    settings = config.evaluate
    catalogue = Catalogue.load(inputs.examples / "_items.parquet")
    examples = out / EXAMPLES_FILE
    n = write_examples(inputs.examples, settings.split, settings.max_examples, settings.batch_size, examples)
    folders = {name: folder for name, folder in (("sft", inputs.sft), ("aligned", inputs.aligned)) if folder.is_dir()}
    oracle = oracle_name(inputs.oracle)
    ranks = oracle not in (None, TABLE)
    present = ["popular", "markov", *(["oracle"] if ranks else []), *folders]
    absent = [name for name in MODELS if name not in present]
    missing = [name for name in absent if name != "oracle" or oracle is None]
    if missing:
        say(f"  not there, so left out: {', '.join(missing)}{_missing_round(inputs) if 'aligned' in missing else ''}")
    if oracle == TABLE:
        say(f"  {NO_BASELINE}")
    rankings = out / RANKINGS_FOLDER
    rankings.mkdir()
    seconds = _rank_all(config, inputs, catalogue, examples, rankings, folders, n, with_oracle=ranks)
    metrics, exposure = measure(config, inputs, catalogue, examples, rankings, present)
    metrics["oracle"] = oracle
    metrics["cut"] = {name: count_cut(rankings / f"{name}.parquet") for name in folders}
    for name, cut in metrics["cut"].items():
        if cut["prompts"]:
            say(f"  {name}: {cut['prompts']:,} of {n:,} prompts could not hold their history and left out "
                f"{cut['items']:,} of its oldest items (model.max_length)")  # fmt: skip
    write_json(out / METRICS_FILE, metrics)
    pq.write_table(exposure, out / EXPOSURE_FILE, compression="zstd")
    write_report(config, inputs, out, seconds=time.monotonic() - started)
    figures = {name: {key: models[key]["value"] for key in ("hr@1", "hr@10", "ndcg@10")}
               for name, models in metrics["models"].items()}  # fmt: skip
    return {"n_examples": n, "n_users": metrics["n_users"], "split": settings.split, "models": figures,
            "cut": metrics["cut"], "left_out": absent, "ranking_seconds": seconds}  # fmt: skip


def _missing_round(inputs: Outputs) -> str:
    """Of several rounds, the first one whose alignment is not there, and what to run; nothing of a single round."""
    if inputs.round == 1:
        return ""
    first = next(each for each in inputs.rounds if not each.aligned.is_dir())
    option = "" if first.round == 1 else f" --round {first.round}"
    steps = ("align",) if first.groups.is_dir() else ("pairs", "align")
    commands = " and ".join(f"`rosepo {step}{option}`" for step in steps)
    text = f" (of {inputs.round} rounds, round {first.round} is not aligned: run {commands}"
    text += ", then the later ones" if first.round < inputs.round else ""
    return text + (f", or evaluate with pairs.rounds={first.round - 1})" if first.round > 1 else ")")


def measure(
    config: Config, inputs: Outputs, catalogue: Catalogue, examples: Path, rankings: Path, names: list[str]
) -> tuple[dict[str, Any], pa.Table]:
    """`metrics.json` as a mapping, and how often each item was recommended in the top ten by each model.

    Args:
        examples: file that `write_examples` wrote.
        rankings: folder of `<name>.parquet`, rows in the examples' order.
    """
    ranked = {name: read_rankings(rankings / f"{name}.parquet", catalogue) for name in names}
    users = pq.read_table(examples, columns=["user_id"])["user_id"].to_numpy()
    top = {name: items[:, : bias.LIST] for name, (_, items) in ranked.items()}
    popularity = bias.Popularity.of(catalogue.train_count)
    targets, alike = _likeness(config, inputs, catalogue, examples, top)
    series: dict[str, Series] = {}
    for name, (ranks, _) in ranked.items():
        series[name] = accuracy(ranks) | bias.popularity_series(top[name], popularity) | alike[name]
    series["truth"] = bias.popularity_series(targets[:, None], popularity) | alike["truth"]
    bootstrap = UserBootstrap(users, config.evaluate.bootstrap, config.seed)
    drawn = bootstrap.resample({(name, key): values for name in series for key, values in series[name].items()})
    counts = {name: bias.exposure(items, len(catalogue)) for name, items in top.items()}
    counts["truth"] = bias.exposure(targets[:, None], len(catalogue))
    entries: dict[str, dict[str, Any]] = {}
    for name in series:
        entries[name] = {key: _plain(drawn.mean((name, key))) for key in series[name]}
        entries[name] |= {key: {"value": value} for key, value in bias.concentration(counts[name]).items()}
    truth = entries.pop("truth")
    for figures, key in itertools.product(entries.values(), truth):
        figures[key]["truth"] = truth[key]["value"]
    differences = {
        f"{a}-{b}": {key: _plain(drawn.difference((a, key), (b, key))) for key in series[a]}
        for a, b in COMPARED
        if a in names and b in names
    }
    columns = {"item_id": catalogue.item_ids, "train_count": catalogue.train_count, **counts}
    return {
        "split": config.evaluate.split,
        "protocol": "catalogue",
        "n_examples": bootstrap.n_examples,
        "n_users": bootstrap.n_users,
        "models": entries,
        "truth": truth,
        "differences": differences,
    }, pa.table(columns)


def _rank_all(
    config: Config,
    inputs: Outputs,
    catalogue: Catalogue,
    examples: Path,
    rankings: Path,
    folders: dict[str, Path],
    n: int,
    *,
    with_oracle: bool,
) -> dict[str, float]:
    """Write the rankings of every model that is there; seconds by what ran together."""
    settings, seconds = config.evaluate, {}
    use_gpu = stage_use_gpu(config, "evaluate") if folders else False
    popular, chain = Popular(catalogue.train_count), markov(inputs.examples, catalogue)
    scorers: dict[str, BatchScores] = {
        "popular": lambda batch: popular.score_all(batch.histories),
        "markov": lambda batch: chain.score_all(batch.histories),
    }
    if with_oracle:
        scorers["oracle"] = _oracle_baseline(inputs.oracle, catalogue)
    started = time.monotonic()
    for name, scorer in scorers.items():
        with Progress(name, n, "examples") as progress:
            rank_by_batches(scorer, examples, catalogue, rankings / f"{name}.parquet", progress)
    seconds["+".join(scorers)] = round(time.monotonic() - started, 2)
    if folders:
        started = time.monotonic()
        with Progress(" and ".join(folders), n * len(folders), "examples") as progress:
            rank_by_models(
                folders,
                examples,
                rankings,
                beams=settings.beams,
                actors=settings.actors,
                cpus_per_actor=settings.cpus_per_actor,
                use_gpu=use_gpu,
                on_rows=lambda _, rows: progress.update(rows),
            )
        seconds["+".join(folders)] = round(time.monotonic() - started, 2)
    return seconds


def oracle_name(folder: Path) -> str | None:
    """What the oracle in a folder is, in words: SASRec, the import path of a scorer, or TABLE; None without a folder.

    Raises:
        UserError: a folder that says nothing that can be read.
    """
    if not folder.is_dir():
        return None
    about = read_about(folder)
    return str({"sasrec": "SASRec", "table": TABLE}.get(about["kind"]) or about["scorer"])


def _oracle_baseline(folder: Path, catalogue: Catalogue) -> BatchScores:
    """The oracle as a ranker: SASRec trained on all users, or a scorer of one's own over the whole catalogue."""
    if read_about(folder)["kind"] == "sasrec":
        from rosepo.models.oracle import Oracle

        oracle = Oracle.load(folder, catalogue.item_ids)
        return lambda batch: oracle.score_all(batch.histories)
    scorer = load_scorer(folder, catalogue)
    assert isinstance(scorer, ImportedScorer)
    whole = WholeCatalogue(scorer, len(catalogue))
    return lambda batch: whole.score_all(batch.example_ids, batch.users.to_pylist(), batch.histories)


def _likeness(
    config: Config, inputs: Outputs, catalogue: Catalogue, examples: Path, top: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, Series]]:
    """Targets int64 [N] and the likeness series of every model, and of the truth, by title embeddings."""
    from rosepo.models.encoder import encode_titles, history_similarity

    spec = config.pairs.encoder
    if spec == "policy" and not inputs.sft.is_dir():
        say("  likeness to the history: no SFT model whose title embeddings to use, so `tfidf`")
        spec = "tfidf"
    embeddings = encode_titles(spec, catalogue, inputs.sft)
    collected: dict[str, list[Series]] = {name: [] for name in (*top, "truth")}
    targets, start = [], 0
    for batch in read_batches(examples, catalogue):
        rows = slice(start, start + len(batch.targets))
        profiles = history_similarity(embeddings, batch.histories, config.pairs.semantic_decay)
        profiles[[not len(history) for history in batch.histories]] = np.nan
        truth = bias.likeness(embeddings, profiles, batch.targets[:, None])[:, 0]
        collected["truth"].append({"look_alike": truth})
        for name, items in top.items():
            similarity = bias.likeness(embeddings, profiles, items[rows])
            collected[name].append(bias.hallucination_series(items[rows], batch.targets, similarity, truth))
        targets.append(batch.targets)
        start = rows.stop
    return np.concatenate(targets), {name: bias.merge(batches) for name, batches in collected.items()}


def _plain(estimate: Estimate) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in estimate.as_dict().items()}
