"""The `align` stage: the smoothed preference objective on groups, from the SFT model, which is also the reference.

In rounds after the first it starts from the model that the round before aligned; the reference stays the SFT model, or
moves along.

A group is one row: its prompt once, then the chosen and the rejected titles. The reference's log-probabilities come
with the table, so no reference model is held, for adapters either. The loss of a step is a sum over its groups divided
by their number over all micro-batches and ranks. Dropout is off: the policy is compared with a reference without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rosepo.artifacts import Outputs, of_round
from rosepo.config import AlignConfig, Config
from rosepo.errors import UserError
from rosepo.evaluation.smoothing import read_epsilon
from rosepo.models.policy import read_settings
from rosepo.resources import stage_use_gpu
from rosepo.sampling.plan import shards_of
from rosepo.training.align_task import PROBED_GROUPS, AlignTask
from rosepo.training.encoders import GROUP_COLUMNS, GroupEncoder
from rosepo.training.feed import FeedPlan, ParquetRows
from rosepo.training.growing import Growing, Maker, wanted_order
from rosepo.training.loop import Report, fit_in_process
from rosepo.training.schedule import WINDOW
from rosepo.training.smoothing import smoothed, tracker_of
from rosepo.training.trainer import fit


def align(
    config: Config, inputs: Outputs, out: Path, max_groups: int | None = None, maker: Maker | None = None
) -> dict[str, Any]:
    """Align `inputs.policy` (round 1: `<run>/sft`) on `inputs.groups` into the model folder `out`, with Ray Train.

    Args:
        max_groups: groups trained on, spread over the table; None takes all.
        maker: who makes the groups meanwhile; started when training is planned, and waited for at the end.

    Returns:
        Figures: steps, rows, groups, seconds, loss, margin, accuracy, … of the last line of metrics; where the loss
        smooths pairs, `epsilon_kind` and, where there is one, `epsilon_value`.

    Raises:
        UserError: no groups, or a cluster too small for the workers; before training starts.
        StageError: training failed or diverged, or the groups were made with another model or template.
    """
    use_gpu = stage_use_gpu(config, "align")
    task = align_task(config, inputs, max_groups, None if maker is None else maker.table)
    if maker is not None:
        maker.start(wanted_order(task.plan, maker.table))
    figures = fit(
        task, out, gpu=use_gpu, label=of_round("align", inputs.round), beside=None if maker is None else maker.told
    )
    if maker is not None:
        maker.finish()
    return figures | task.figures | _clamped(config.align, inputs.groups)


def _clamped(train: AlignConfig, groups: Path) -> dict[str, Any]:
    """Share of pairs whose epsilon the clamp lowered, overall and by strategy."""
    if train.loss != "pairwise" or not train.clamps_epsilon:
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


def align_task(
    config: Config, inputs: Outputs, max_groups: int | None = None, growing: Growing | None = None
) -> AlignTask:
    """What the workers need for alignment; `growing`: the groups, where they are still being made."""
    read_settings(inputs.policy)
    read_settings(inputs.reference)
    train = config.align
    table = _groups_table(inputs) if growing is None else growing.open(list(GROUP_COLUMNS))
    rows = min(len(table), max_groups or len(table))
    plan = FeedPlan(
        folder=inputs.groups.resolve(),
        columns=GROUP_COLUMNS,
        encoder=GroupEncoder(train.pack_tokens),
        n_rows=rows,
        batch_size=train.batch_size,
        micro_batch_size=train.micro_batch_size,
        seed=config.seed,
        epochs=train.epochs,
        window=_window(config, inputs, rows / len(table)),
        growing=growing,
    )
    # Of a table that grows, the first rows that training takes: they are made first.
    first = plan.table_rows(plan.schedule.indices(0), len(table))[:PROBED_GROUPS]
    probed = table.take(np.arange(min(PROBED_GROUPS, len(table)))) if growing is None else None
    plan, value = smoothed(plan, train)
    start, reference = inputs.policy.resolve(), inputs.reference.resolve()
    return AlignTask(
        config,
        start,
        reference,
        plan,
        probed,
        inputs.round,
        epsilon_value=value,
        tracker=tracker_of(train),
        probed_rows=first,
    )


def _groups_table(inputs: Outputs) -> ParquetRows:
    """The finished groups.

    Raises:
        UserError: there are none, or they are titles alone.
    """
    table = ParquetRows(inputs.groups, list(GROUP_COLUMNS))
    missing = [name for name in GROUP_COLUMNS if name not in table.names]
    if missing:
        raise UserError(
            f"{inputs.groups} has no column '{missing[0]}': groups of titles alone (pairs.score=false) cannot be "
            "trained on; run `rosepo pairs --overwrite` with --set pairs.score=true"
        )
    return table


def _window(config: Config, inputs: Outputs, share: float) -> int:
    """Rows that are shuffled together, of a schedule with `share` times the rows of the table: with `pairs.stream` as
    many as a part file holds, so that the first steps need no more than a part; also where the table is finished."""
    if not config.pairs.stream:
        return WINDOW
    return max(1, round(share * max(shard.count for shard in shards_of(config.pairs, inputs.examples))))
