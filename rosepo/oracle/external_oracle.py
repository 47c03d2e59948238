"""The `oracle` stage where nothing is trained: a scorer of one's own, or a table of scores, checked and calibrated."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from rosepo.config import Config
from rosepo.data.catalogue import Catalogue
from rosepo.oracle.calibration import (
    CALIBRATION_FILE,
    calibrate_preferences,
    score_validation,
    validation_arrays,
    validation_table,
)
from rosepo.oracle.load import ImportedScorer, write_kind
from rosepo.oracle.sasrec import catalogue_digest
from rosepo.oracle.score_files import score_files
from rosepo.oracle.score_table import ScoreTable, write_score_table
from rosepo.utils.console import Progress, echo
from rosepo.utils.errors import UserError
from rosepo.utils.files import write_json

if TYPE_CHECKING:
    from rosepo.run.paths import RunPaths


def external_oracle(config: Config, paths: RunPaths, out: Path) -> dict[str, Any]:
    """Check the oracle that `oracle.kind` names, fit tau where it is not set, write the oracle folder.

    Returns:
        Figures: kind, tau, auc, calibration_error, validation_pairs, validation_examples, seconds; of a table also
        rows, examples, unknown_rows, unknown_examples. auc and calibration_error are None without validation pairs.

    Raises:
        UserError: a scorer that cannot be made or whose answers are no scores; a table that cannot be read, see
            `write_score_table`; no validation examples to fit tau on.
    """
    started = time.monotonic()
    catalogue = Catalogue.load(paths.examples / "_items.parquet")
    about: dict[str, Any] = {"catalogue_digest": catalogue_digest(catalogue.item_ids)}
    if config.oracle.kind == "scorer":
        about["scorer"] = config.oracle.scorer
        found = _scorer(config, paths, catalogue)
    else:
        found = _table(config, paths, catalogue, out)
    calibration = found.pop("calibration")
    if calibration is not None:
        write_json(out / CALIBRATION_FILE, calibration)
    write_kind(out, config.oracle.kind, tau=found["tau"], **about)
    if found["auc"] is None:
        echo(f"  tau {found['tau']:.2f} as set; no validation pair to calibrate it on")
    else:
        echo(f"  {found['validation_pairs']:,} validation pairs: tau {found['tau']:.2f}, chosen above other "
            f"{found['auc']:.3f}, calibration error {found['calibration_error']:.3f}")  # fmt: skip
    return {"kind": config.oracle.kind, **found, "seconds": round(time.monotonic() - started, 2)}


def _scorer(config: Config, paths: RunPaths, catalogue: Catalogue) -> dict[str, Any]:
    scorer = ImportedScorer.make(str(config.oracle.scorer), catalogue)
    validation = validation_table(paths.examples, catalogue)
    if not len(validation):
        raise UserError(f"{paths.examples} has no validation examples for the oracle")
    echo(f"  {config.oracle.scorer}: nothing is trained")
    with Progress("oracle", len(validation), "examples") as progress:
        scores = score_validation(scorer, validation, len(catalogue), config.seed, progress)
    return {
        **calibrate_preferences(scores[:, 0], scores[:, 1:], config.oracle.tau),
        "validation_examples": len(validation),
    }


def _table(config: Config, paths: RunPaths, catalogue: Catalogue, out: Path) -> dict[str, Any]:
    sources = score_files(str(config.oracle.scores))
    counts = write_score_table(sources, _example_ids(paths.examples), catalogue, out)
    echo(f"  {config.oracle.scores}: {counts['rows']:,} scores of {counts['examples']:,} examples")
    if counts["unknown_rows"]:
        unknown = f"{counts['unknown_rows']:,} rows of {counts['unknown_examples']:,} examples"
        echo(f"  {unknown} that this run does not have were left out")
    validation = validation_table(paths.examples, catalogue)
    _, _, targets = validation_arrays(validation)
    scores = ScoreTable.load(out, catalogue.item_ids)
    chosen, other, examples = scores.preferences(validation["example_id"].to_pylist(), targets)
    if not examples:
        if config.oracle.tau is None:
            raise UserError(
                f"oracle.scores={config.oracle.scores} scores no validation example's target together with another "
                "item, so that tau cannot be fitted: score some validation examples too, or set oracle.tau (1 where "
                "the scores are logits already)"
            )
        calibrated: dict[str, Any] = {
            "tau": config.oracle.tau,
            "auc": None,
            "calibration_error": None,
            "validation_pairs": 0,
            "calibration": None,
        }
    else:
        calibrated = calibrate_preferences(chosen, other[:, None], config.oracle.tau)
    return {**calibrated, "validation_examples": examples, **counts}


def _example_ids(folder: Path) -> Iterator[list[str]]:
    """The ids of all examples, of every split, a row group at a time."""
    for path in sorted(folder.glob("part-*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1 << 18, columns=["example_id"]):
                yield batch.column("example_id").to_pylist()
