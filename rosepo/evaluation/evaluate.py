"""The `evaluate` stage: every system ranks the catalogue for the same examples; metrics with intervals.

Catalogue protocol: all titles that the user had not chosen yet compete; the one right answer is the title that came
next. With `evaluate.add_items` titles compete too that came after training, of which no example is about. Where prompts
list candidates, an example's own candidates compete instead. Rankings are made in parts: a run that
was ended goes on from those that are finished, and one with other systems or figures takes over those that a finished
evaluation made of the same models and examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.config import Config, folder_or_id
from rosepo.config.evaluation import OWN
from rosepo.data.added_items import told_of, with_items
from rosepo.data.catalogue import ITEMS_FILE, Catalogue
from rosepo.evaluation.candidates.free_generation import free_generation
from rosepo.evaluation.evaluate_rankings import evaluate_rankings
from rosepo.evaluation.external_models import check_external_model
from rosepo.evaluation.measured_examples import EXAMPLES_FILE, plan_parts, write_examples
from rosepo.evaluation.predictions import read_predictions
from rosepo.evaluation.rankings import count_cut
from rosepo.evaluation.systems import Ranking, oracle_name
from rosepo.lm.model.added_titles import check_added, unknown_told
from rosepo.utils.console import echo
from rosepo.utils.files import write_json

if TYPE_CHECKING:
    from rosepo.run.paths import RunPaths

EXPOSURE_FILE, METRICS_FILE = "exposure.parquet", "metrics.json"


def evaluate(config: Config, paths: RunPaths, out: Path) -> dict[str, Any]:
    """Write `rankings/<name>.parquet/`, `exposure.parquet` and `metrics.json` into `out`.

    Models whose stage folder is missing are left out, and said to be. Parts of rankings that an earlier run finished in
    `out` are kept and not made again.

    Raises:
        UserError: an empty split, more actors than the cluster has CPUs for, an oracle of another catalogue, a model
            or predictions that cannot be evaluated here, or items that cannot be added.
        StageError: an actor failed for good, or the disk is full.
    """
    settings = config.evaluate
    catalogue, added = _catalogue(config, paths, out)
    examples = out / EXAMPLES_FILE
    listed = ("candidates",) if config.model.template.candidates else ()
    n = write_examples(paths.examples, settings.split, settings.max_examples, settings.batch_size, examples, listed)
    folders = {name: folder for name, folder in (("sft", paths.sft), ("aligned", paths.aligned)) if folder.is_dir()}
    oracle = oracle_name(paths.oracle)
    absent = _tell_absent(paths, folders, oracle)
    if catalogue.added:
        added["unknown_tokens"] = {name: check_added(folder, catalogue) for name, folder in folders.items()}
        _tell_unknown(added)
    external = settings.external
    models = {name: str(folder) for name, folder in folders.items()}
    for name, system in external.items():
        if system.kind == "models":
            check_external_model(system, catalogue, config.model)
            models[name] = folder_or_id(system.location)
    ambiguous = config.prepare.duplicate_titles == "disambiguate"
    predictions = [read_predictions(system, catalogue, examples, ambiguous) for system in external.values()
                   if system.kind == "predictions"]  # fmt: skip
    ranking = Ranking(config, paths, out, catalogue, plan_parts(examples))
    own = [name for name in OWN if name not in absent]
    seconds = ranking.by_actors(models, [name for name in own if name not in models])
    ranking.by_predictions(predictions)
    metrics, exposure = evaluate_rankings(config, paths, catalogue, examples, ranking.folder, [*own, *external])
    free_generation(ranking, models, metrics)
    metrics["oracle"] = oracle
    if added:
        metrics["added_items"] = added | {"top10_share": _shares(exposure, catalogue)}
    metrics["cut"] = {name: count_cut(ranking.folder_of(name)) for name in models}
    _tell_cut(metrics["cut"], n)
    metrics["external"] = {name: {"kind": one.kind, "location": one.location} for name, one in external.items()}
    for lists in predictions:
        metrics["external"][lists.name] |= dict(lists.counts)
    write_json(out / METRICS_FILE, metrics)
    pq.write_table(exposure, out / EXPOSURE_FILE, compression="zstd")
    figures = {name: {key: models[key]["value"] for key in ("hr@1", "hr@10", "ndcg@10")}
               for name, models in metrics["models"].items()}  # fmt: skip
    return {"n_examples": n, "n_users": metrics["n_users"], "split": settings.split, "models": figures,
            "cut": metrics["cut"], "left_out": absent, "external": metrics["external"],
            "ranking_seconds": seconds,
            **({"added_items": metrics["added_items"]} if added else {})}  # fmt: skip


def _catalogue(config: Config, paths: RunPaths, out: Path) -> tuple[Catalogue, dict[str, Any]]:
    """What is ranked: the run's items, and behind them those of `evaluate.add_items`, which are written into `out`;
    where the latter come from, and counts of them (nothing without them)."""
    own, location = Catalogue.load(paths.examples / ITEMS_FILE), config.evaluate.add_items
    if location is None:
        return own, {}
    catalogue, counts = with_items(own, config, location, "evaluate.add_items")
    echo(f"  {told_of(counts, location)}")
    if catalogue.added:
        catalogue.save(out / ITEMS_FILE)
    return catalogue, {"location": location, **counts}


def _shares(exposure: pa.Table, catalogue: Catalogue) -> dict[str, float]:
    """Of every system, the share of first ten places that added items take."""
    own, names = len(catalogue) - catalogue.added, exposure.column_names[2:]
    counts = {name: exposure[name].to_numpy() for name in names if name != "truth"}
    return {name: round(float(found[own:].sum() / max(1, found.sum())), 5) for name, found in counts.items()}


def _tell_unknown(added: Mapping[str, Any]) -> None:
    for name, count in added["unknown_tokens"].items():
        if count:
            echo(f"  {name}: {unknown_told(count, added['added'])}")


def _tell_absent(paths: RunPaths, folders: Mapping[str, Path], oracle: str | None) -> list[str]:
    """The run's own systems that are not ranked; those that are not there are said."""
    present = ["popular", "markov", *(["oracle"] if oracle is not None else []), *folders]
    absent = [name for name in OWN if name not in present]
    if absent:
        echo(f"  not there, so left out: {', '.join(absent)}{_missing_round(paths) if 'aligned' in absent else ''}")
    return absent


def _missing_round(paths: RunPaths) -> str:
    """Of several rounds, the first one whose alignment is not there, and what to run; nothing of a single round."""
    if paths.round == 1:
        return ""
    first = next(each for each in paths.rounds if not each.aligned.is_dir())
    option = "" if first.round == 1 else f" --round {first.round}"
    steps = ("align",) if first.groups.is_dir() else ("pairs", "align")
    commands = " and ".join(f"`rosepo {step}{option}`" for step in steps)
    text = f" (of {paths.round} rounds, round {first.round} is not aligned: run {commands}"
    text += ", then the later ones" if first.round < paths.round else ""
    return text + (f", or evaluate with pairs.rounds={first.round - 1})" if first.round > 1 else ")")


def _tell_cut(cut: Mapping[str, Mapping[str, int]], n: int) -> None:
    for name, counts in cut.items():
        if counts["prompts"]:
            echo(f"  {name}: {counts['prompts']:,} of {n:,} prompts could not hold their history and left out "
                f"{counts['items']:,} of its oldest items (model.max_length)")  # fmt: skip
