"""The `align` stage: a preference objective on groups, from the SFT model, which is also the reference.

In rounds after the first it starts from the model that the round before aligned; the reference stays the SFT model, or
moves along.

A group is one row: its prompt once, then the chosen and the rejected titles; or all groups of a user are, where their
prompts begin alike. The reference's log-probabilities come with the table, so no reference model is held, for adapters
either. The loss of a step is a sum over its groups divided by their number over all micro-batches and ranks. Dropout is
off: the policy is compared with a reference without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import rosepo
from rosepo.artifacts import Outputs, of_round, read_manifest
from rosepo.config import AlignConfig, Config
from rosepo.console import say
from rosepo.data.catalogue import Catalogue
from rosepo.errors import UserError
from rosepo.evaluation.smoothing import read_epsilon
from rosepo.models.folder import CATALOGUE, load_builder, read_settings
from rosepo.objectives.registry import OBJECTIVES
from rosepo.resources import stage_use_gpu
from rosepo.sampling.plan import VALIDATION_FILE
from rosepo.training.align_task import PROBED_GROUPS, AlignTask
from rosepo.training.encoders import (
    GROUP_COLUMNS,
    SPANS_COLUMN,
    USER_COLUMN,
    GroupEncoder,
    UserEncoder,
    run_bounds,
)
from rosepo.training.feed import Arrays, Encoder, FeedPlan, ParquetRows
from rosepo.training.loop import Report, fit_in_process
from rosepo.training.saving import origin_of
from rosepo.training.smoothing import smoothed, tracker_of
from rosepo.training.trainer import fit
from rosepo.training.validation import HeldOut, check_best, held_out


def align(config: Config, inputs: Outputs, out: Path, max_groups: int | None = None) -> dict[str, Any]:
    """Align `inputs.policy` (round 1: `<run>/sft`) on `inputs.groups` into the model folder `out`, with Ray Train.

    Args:
        max_groups: groups trained on, spread over the table; None takes all.

    Returns:
        Figures: steps, rows, groups, seconds, loss, margin, accuracy, … of the last line of metrics; where the loss
        smooths pairs, `epsilon_kind` and, where there is one, `epsilon_value`.

    Raises:
        UserError: no groups, or a cluster too small for the workers; before training starts.
        StageError: training failed or diverged, or the groups were made with another model or template.
    """
    use_gpu = stage_use_gpu(config, "align")
    if config.align.rows == "trajectory" and config.prepare.window == "sliding":
        say(
            "  align.rows=trajectory: under prepare.window=sliding prompts beyond max_history begin with another title "
            "each and share nothing; prepare.window=anchored keeps them prefixes of one another"
        )
    task = align_task(config, inputs, max_groups)
    figures = fit(task, out, gpu=use_gpu, label=of_round("align", inputs.round))
    return figures | task.figures | _clamped(config.align, inputs.groups)


def _clamped(train: AlignConfig, groups: Path) -> dict[str, Any]:
    """Share of pairs whose epsilon the clamp lowered, overall and by strategy."""
    if not train.clamps_epsilon:
        return {}
    return {"clamped": {name: round(share, 4) for name, share in read_epsilon(groups, train.epsilon_max)[2].items()}}


def align_in_process(
    config: Config,
    inputs: Outputs,
    out: Path,
    max_groups: int | None = None,
    gpu: bool = False,
    report: Report | None = None,
) -> dict[str, Any]:
    """The same training by one rank in the calling process, without Ray Train; see `align`.

    Args:
        gpu: train on this process's GPU.
        report: called with step and figures at every line of metrics.
    """
    task = align_task(config, inputs, max_groups)
    return fit_in_process(task, out, report, gpu=gpu) | task.figures


def align_task(config: Config, inputs: Outputs, max_groups: int | None = None) -> AlignTask:
    """What the workers need for alignment."""
    read_settings(inputs.policy)
    read_settings(inputs.reference)
    train = config.align
    table = _groups_table(train, inputs)
    encoder: Encoder = GroupEncoder(train.pack_tokens)
    rows, offsets = min(len(table), max_groups or len(table)), None
    if train.rows == "trajectory":
        offsets = user_offsets(inputs.groups)
        users = len(offsets) - 1
        rows = max(1, users * rows // len(table))
        titles = train.sft_on == "row"
        suffix = len(load_builder(inputs.reference).tail) if titles else 0
        encoder = UserEncoder(train.row_tokens, train.pack_tokens, titles, suffix)
    plan = FeedPlan(
        folder=inputs.groups.resolve(),
        columns=tuple(table.columns or ()),
        encoder=encoder,
        n_rows=rows,
        batch_size=train.batch_size,
        micro_batch_size=train.micro_batch_size,
        seed=config.seed,
        epochs=train.epochs,
        offsets=offsets,
    )
    probed = table.take(np.arange(min(PROBED_GROUPS, len(table))))
    plan, value = smoothed(plan, train)
    start, reference = inputs.policy.resolve(), inputs.reference.resolve()
    made_from = [read_manifest(folder) for folder in (inputs.policy, inputs.reference, inputs.groups)]
    return AlignTask(
        config,
        start,
        reference,
        plan,
        probed,
        inputs.round,
        validation_groups(config, inputs.groups),
        value,
        tracker_of(train),
        _searched(config, inputs),
        origin_of(train, rosepo.__version__, config.seed, inputs.round, rows, *made_from),
    )


def validation_groups(config: Config, groups: Path) -> list[Arrays]:
    """The held-out groups that `pairs` made beside the others, as micro-batches; none where there are none.

    Raises:
        UserError: `align.best_metric` goes by a loss that has no groups to be measured on.
    """
    train, path = config.align, groups / VALIDATION_FILE
    batches: list[Arrays] = []
    if path.exists():
        table = pq.read_table(path)
        parts = -(-len(table) // train.micro_batch_size)
        batches = [part for part in GroupEncoder(train.pack_tokens)(table, parts) if part]
    else:
        say(f"  {groups} holds no groups of validation examples, so align shows no validation loss")
    check_best(train, "align", batches, f"{path} is not there; run `rosepo pairs --overwrite`, or leave it out")
    return batches


def _searched(config: Config, inputs: Outputs) -> HeldOut | None:
    users = config.align.validation_users
    if not users:
        return None
    catalogue = Catalogue.load(inputs.policy / CATALOGUE)
    return held_out(inputs.examples, load_builder(inputs.policy), catalogue, users, "align.validation_users")


def user_offsets(groups: Path) -> np.ndarray:
    """Where the rows of each user begin in a groups table, int64 [n_users + 1], read a row group at a time.

    A user is a run of rows of one `user_id`.
    """
    parts, before, last = [np.zeros(1, dtype=np.int64)], 0, None
    for chunk in ParquetRows(groups, [USER_COLUMN]).chunks():
        column = chunk[USER_COLUMN]
        begins = np.array(run_bounds(column)[:-1], dtype=np.int64) + before
        parts.append(begins[1:] if last is None or last == column[0] else begins)
        before, last = before + len(column), column[-1]
    return np.concatenate([*parts, [before]])


def _groups_table(train: AlignConfig, inputs: Outputs) -> ParquetRows:
    """The groups with the columns that training reads.

    Raises:
        UserError: one of them is not there.
    """
    free = OBJECTIVES[train.loss].reference_free
    columns = [name for name in GROUP_COLUMNS if not (free and name == "ref_logps")]
    columns += [USER_COLUMN] if train.rows == "trajectory" else []
    columns += [SPANS_COLUMN] if train.sft_on == "row" else []
    table = ParquetRows(inputs.groups, columns)
    missing = [name for name in columns if name not in table.names]
    if missing == [SPANS_COLUMN]:
        raise UserError(
            f"{inputs.groups} has no column '{SPANS_COLUMN}', which align.sft_on=row reads: these groups are of an "
            "earlier version, run `rosepo pairs --overwrite` again"
        )
    if missing:
        raise UserError(
            f"{inputs.groups} has no column '{missing[0]}': groups of titles alone (pairs.score=false) cannot be "
            "trained on; run `rosepo pairs --overwrite` with --set pairs.score=true"
        )
    return table
