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

import rosepo
from rosepo.config import AlignConfig, Config
from rosepo.data.catalogue import ITEMS_FILE, Catalogue
from rosepo.data.example_shards import VALIDATION_FILE, planned_users, shards_of
from rosepo.lm.cards.record import ModelRecord, model_record
from rosepo.lm.model.model_folder import check_catalogue, load_builder, read_settings
from rosepo.run.manifest import read_manifest
from rosepo.run.paths import RunPaths, of_round
from rosepo.run.resources import stage_use_gpu
from rosepo.training.align_task import AlignTask, trie_targets_of
from rosepo.training.checkpoint.optimizer_state import kept_optimizer_state
from rosepo.training.checkpoint.saver import origin_of
from rosepo.training.feed.encoders import GroupEncoder, UserEncoder
from rosepo.training.feed.group_columns import columns_read, groups_table, user_offsets, users_of
from rosepo.training.feed.incremental_table import IncrementalTable, Maker, wanted_order
from rosepo.training.feed.micro_batching import most_tokens
from rosepo.training.feed.pair_epsilon import read_epsilon, smoothed, tracker_of
from rosepo.training.feed.plan import Encoder, FeedPlan
from rosepo.training.feed.reference_check import PROBED_GROUPS
from rosepo.training.feed.schedule import WINDOW
from rosepo.training.loop import Report
from rosepo.training.rank import fit_in_process
from rosepo.training.task import HeldOut
from rosepo.training.trainer import fit
from rosepo.training.validation import check_best, held_out
from rosepo.utils.console import echo


def align(
    config: Config, paths: RunPaths, out: Path, max_groups: int | None = None, maker: Maker | None = None
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
    if config.trajectories and config.prepare.window == "sliding":
        echo(
            "  align.rows=trajectory: under prepare.window=sliding prompts beyond max_history begin with another title "
            "each and share nothing; prepare.window=anchored keeps them prefixes of one another"
        )
    task = align_task(config, paths, max_groups, None if maker is None else maker.table)
    if maker is not None:
        maker.start(wanted_order(task.plan, maker.table))
    # Groups that cannot be made to the end leave the checkpoints of a training that has stopped early.
    beside, last = (None, None) if maker is None else (maker.told, maker.finish)
    figures = fit(task, out, gpu=use_gpu, label=of_round("align", paths.round), beside=beside, last=last)
    return figures | task.figures | _clamped(config.align, paths.groups)


def _clamped(train: AlignConfig, groups: Path) -> dict[str, Any]:
    """Share of pairs whose epsilon the clamp lowered, overall and by strategy."""
    if not train.clamps_epsilon:
        return {}
    return {"clamped": {name: round(share, 4) for name, share in read_epsilon(groups, train.epsilon_max)[2].items()}}


def align_in_process(
    config: Config,
    paths: RunPaths,
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
    task = align_task(config, paths, max_groups)
    return fit_in_process(task, out, report, gpu=gpu) | task.figures


def align_task(
    config: Config, paths: RunPaths, max_groups: int | None = None, growing: IncrementalTable | None = None
) -> AlignTask:
    """What the workers need for alignment; `growing`: the groups, where they are still being made."""
    read_settings(paths.policy)
    read_settings(paths.reference)
    train = config.align
    columns = columns_read(config)
    table = groups_table(columns, paths, train.loss) if growing is None else growing.open(columns)
    branchings = trie_targets_of(paths.reference) if config.learns_whole else None
    # Of groups, each a row, `micro_batch_size` bounds the tokens by itself; a user may bring any number of rows.
    encoder: Encoder = GroupEncoder(train.pack_tokens, branchings, train.micro_batch_tokens)
    rows, offsets, users_a_group = min(len(table), max_groups or len(table)), None, 1.0
    if config.trajectories:
        users = users_of(paths.groups) if growing is None else planned_users(paths.examples, config.pairs.newest)
        offsets = user_offsets(users)
        rows = max(1, (len(offsets) - 1) * rows // len(table))
        users_a_group = (len(offsets) - 1) / len(table)
        most = most_tokens(train, config.full_row("align"))
        encoder = UserEncoder(train.row_tokens, train.pack_tokens, branchings, most)
    plan = FeedPlan(
        folder=paths.groups,
        columns=tuple(table.columns or ()),
        encoder=encoder,
        n_rows=rows,
        batch_size=train.batch_size,
        micro_batch_size=train.micro_batch_size,
        seed=config.seed,
        epochs=train.epochs,
        offsets=offsets,
        window=_window(config, paths, rows / len(table), users_a_group),
        growing=growing,
    )
    # Of a table that grows, the first rows that training takes: they are made first.
    first = plan.table_rows(plan.schedule.indices(0), len(table))[:PROBED_GROUPS]
    probed = table.take(np.arange(min(PROBED_GROUPS, len(table)))) if growing is None else None
    plan, value = smoothed(plan, train)
    start, reference = paths.policy, paths.reference
    moments = kept_optimizer_state(start, _maker(paths.round)) if train.optimizer == "sft" else None
    # A table that is streamed has no manifest at first: what it is made from has.
    groups = (paths.oracle, paths.examples) if config.pairs.stream else (paths.groups,)
    sources = (paths.policy, paths.reference, *groups)
    made_from = [read_manifest(folder) for folder in sources]
    return AlignTask(
        train=train,
        seed=config.seed,
        record=_record(config, paths, value),
        start=start,
        reference=reference,
        plan=plan,
        probed=probed,
        probed_rows=first,
        round=paths.round,
        validation_file=validation_file(config, paths.groups, growing),
        learns_whole=config.learns_whole,
        epsilon_value=value,
        tracker=tracker_of(train),
        held_out=_searched(config, paths),
        origin=origin_of(train, rosepo.__version__, config.seed, paths.round, rows, *made_from),
        moments=moments,
    )


def _record(config: Config, paths: RunPaths, epsilon_value: float | None) -> ModelRecord:
    """What the model's folder says of how it was made."""
    figures = {} if epsilon_value is None else {"epsilon_value": epsilon_value}
    if paths.round == 1:
        return model_record(config, "align", figures=figures)
    reference = "the model of the round before" if paths.reference == paths.policy else "the SFT model"
    return model_record(config, "align", paths.round, figures, {"round": paths.round, "reference": reference})


def _maker(round: int) -> str:
    """The command that makes the model which a round starts from."""
    if round == 1:
        return "rosepo sft"
    return "rosepo align" if round == 2 else f"rosepo align --round {round - 1}"


def validation_file(config: Config, groups: Path, growing: IncrementalTable | None) -> Path | None:
    """The held-out groups that `pairs` makes beside the others, before them; None where there are none.

    Raises:
        UserError: `align.best_metric` or `align.validate_every` asks for what there are no groups for.
    """
    path = groups / VALIDATION_FILE
    there = path.exists() if growing is None else growing.held_out
    if not there:
        echo(f"  {groups} holds no groups of validation examples, so align shows no validation loss")
    check_best(config.align, "align", there, f"{path} is not there; run `rosepo pairs --overwrite`, or leave it out")
    return path if there else None


def _searched(config: Config, paths: RunPaths) -> HeldOut | None:
    users = config.align.validation_users
    if not users:
        return None
    # Groups carry tokens; examples carry item indexes, which mean the same titles in one catalogue alone.
    check_catalogue(paths.policy, Catalogue.load(paths.examples / ITEMS_FILE), "run `rosepo sft` again")
    return held_out(paths.examples, load_builder(paths.policy), users, "align.validation_users")


def _window(config: Config, paths: RunPaths, share: float, users_a_group: float) -> int:
    """Rows that are shuffled together, of a schedule with `share` times the rows of the table: with `pairs.stream` as
    many as a part file holds, so that the first steps need no more than a part; also where the table is finished.
    Else rows of about `WINDOW` groups, where one row is all groups of a user too."""
    if not config.pairs.stream:
        return max(1, round(WINDOW * users_a_group))
    return max(1, round(share * max(shard.count for shard in shards_of(config.pairs, paths.examples))))
