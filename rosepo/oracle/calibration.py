"""Whether an oracle prefers what users chose: scores on validation, the temperature that calibrates them, how well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rosepo.data.catalogue import Catalogue
from rosepo.data.seen import read_split
from rosepo.oracle.epsilon import TAU_BOUNDS, calibration, fit_tau
from rosepo.oracle.protocol import Scorer
from rosepo.utils.console import Progress, echo

NEGATIVES = 20
"""Items drawn beside each validation target to fit tau on."""
CALIBRATION_FILE = "calibration.json"
_ROWS = 512


def validation_table(folder: Path, catalogue: Catalogue) -> pa.Table:
    """The validation examples: example_id, user_id, history, seen (lists of item indexes), target (index); int32."""
    table = pa.concat_tables(read_split(folder, "validation"))
    target = catalogue.index(table["target"].to_numpy()).astype(np.int32)
    lists = {name: as_indexes(table[name], catalogue) for name in ("history", "seen")}
    return pa.table({"example_id": table["example_id"], "user_id": table["user_id"], **lists, "target": target})


def validation_arrays(table: pa.Table) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Histories, what was seen, and targets, as item indexes."""
    histories, seen = ([row.values.to_numpy() for row in table[name]] for name in ("history", "seen"))
    return histories, seen, table["target"].to_numpy()


def score_validation(
    scorer: Scorer, validation: pa.Table, n_items: int, seed: int, progress: Progress | None = None
) -> np.ndarray:
    """Raw scores float32 [N, 1 + NEGATIVES] of every validation target and of other items drawn evenly beside it.

    Args:
        validation: from `validation_table`.
    """
    histories, _, targets = validation_arrays(validation)
    users = validation["user_id"].to_pylist()
    rng = np.random.default_rng([seed, len(targets)])
    drawn = rng.integers(0, n_items, size=(len(targets), NEGATIVES))
    # The target itself is no other item; its neighbour is.
    drawn = np.where(drawn == targets[:, None], (drawn + 1) % n_items, drawn)
    items = np.concatenate([targets[:, None], drawn], axis=1).astype(np.int64)
    scores = np.empty(items.shape, dtype=np.float32)
    for low in range(0, len(items), _ROWS):
        rows = slice(low, low + _ROWS)
        scores[rows] = scorer.score(users[rows], histories[rows], items[rows])
        if progress is not None:
            progress.update(len(users[rows]))
    return scores


def calibrate_preferences(chosen: np.ndarray, other: np.ndarray, tau: float | None) -> dict[str, Any]:
    """How far an oracle can be believed that the chosen item is preferred to another one.

    Args:
        chosen: float [n], n ≥ 1, raw scores of targets.
        other: float [n, m], raw scores of other items of the same examples.
        tau: None fits it.

    Returns:
        tau, auc (ties half), calibration_error, validation_pairs, and `calibration` as in `sampling.epsilon`.
    """
    if tau is None:
        tau = float(fit_tau(chosen, other))
        if tau > 0.99 * TAU_BOUNDS[1]:
            echo(
                "  the oracle tells what users chose from other titles no better than chance: every epsilon will be"
                " near 1/2 and every target even, so that there is nothing to align with; train it longer"
                " (oracle.max_epochs), or give another one (oracle.kind)"
            )
    margins = (np.asarray(chosen, np.float64)[:, None] - other) / tau
    found = calibration(margins)
    return {
        "tau": tau,
        "auc": float((margins > 0).mean() + 0.5 * (margins == 0).mean()),
        "calibration_error": found["error"],
        "validation_pairs": int(margins.size),
        "calibration": found,
    }


def as_indexes(lists: pa.ChunkedArray, catalogue: Catalogue) -> pa.Array:
    """A column of lists of item ids as lists of item indexes, int32."""
    whole = lists.combine_chunks()
    items = catalogue.index(whole.flatten().to_numpy(zero_copy_only=False)).astype(np.int32)
    lengths = pc.list_value_length(whole).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, items)
