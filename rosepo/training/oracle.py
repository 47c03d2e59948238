"""Training SASRec, the preference oracle, on Ray Train: cross-entropy over the full catalogue at every training target.

A catalogue's sequences are a few integers an interaction, so every worker holds them all. Which users a step takes
follows from (seed, epoch) alone and each rank takes its stride of them: all ranks make the same number of steps by
construction, and a step's loss is the mean over all its targets, however many workers share it.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from rosepo.config import Config, OracleConfig
from rosepo.console import Progress, follow, say
from rosepo.data.catalogue import Catalogue
from rosepo.data.seen import read_split
from rosepo.errors import StageError, UserError
from rosepo.evaluation.metrics import hit_ratio, ndcg
from rosepo.models.sasrec import Oracle, SASRec, SASRecConfig
from rosepo.resources import stage_use_gpu
from rosepo.sampling.epsilon import fit_tau
from rosepo.training.metrics import METRICS_FILE, MetricLog
from rosepo.training.sequences import (
    NextItemLoss,
    Sequences,
    batch_tensors,
    epoch_batches,
    follow_average,
    ranks_of,
)
from rosepo.training.trainer import root_cause, trainer_class

if TYPE_CHECKING:
    from rosepo.artifacts import Outputs

WARMUP_STEPS = 100
AVERAGE = 0.99
"""Decay of the running mean of weights, a step: the mean is what is validated and kept. It ranks better, sooner."""
TAU_NEGATIVES = 20
"""Items drawn beside each validation target to fit tau on."""


def train_oracle(config: Config, inputs: Outputs, out: Path) -> dict[str, Any]:
    """The stage: train, keep the weights that were best on validation, fit tau there, write the oracle folder.

    Raises:
        UserError: no validation examples, or more workers than the cluster has CPUs for.
        StageError: training failed.
    """
    started = time.monotonic()
    use_gpu = stage_use_gpu(config, "oracle")
    catalogue = Catalogue.load(inputs.examples / "_items.parquet")
    train = _training_table(inputs.examples / "_trajectories", catalogue)
    validation = _validation_table(inputs.examples, catalogue)
    if not len(train) or not len(validation):
        raise UserError(
            f"{inputs.examples} has no {'training' if not len(train) else 'validation'} examples for the oracle"
        )
    say(f"  SASRec: {len(train):,} sequences, {len(catalogue):,} items, {len(validation):,} validation examples")
    _fit(config, train, validation, catalogue, out, use_gpu)
    best, last = _best_line(out / METRICS_FILE)
    trained = Oracle.load(out, catalogue.item_ids)
    trained.tau = _fit_tau(trained, validation, len(catalogue), config.seed)
    trained.model.save(out, catalogue.item_ids, trained.tau)
    figures = {name: best[name] for name in ("hr@10", "ndcg@10")}
    say(f"  best after epoch {best['step']} of {last['step']}: validation HR@10 {figures['hr@10']:.3f}, "
        f"NDCG@10 {figures['ndcg@10']:.3f}, tau {trained.tau:.2f}")  # fmt: skip
    return {
        "split": "validation",
        **figures,
        "tau": trained.tau,
        "epoch": best["step"],
        "epochs": last["step"],
        "training_seconds": last["seconds"],
        "seconds": round(time.monotonic() - started, 2),
        "sequences": len(train),
        "targets": int(train["n_targets"].to_numpy().sum()),
        "validation_examples": len(validation),
    }


def _fit(config: Config, train: pa.Table, validation: pa.Table, catalogue: Catalogue, out: Path, use_gpu: bool) -> None:
    import ray.data
    from ray.train import DataConfig, RunConfig, ScalingConfig, TrainingFailedError

    oracle = config.oracle
    longest = int(max(_longest(train, "items") - 1, _longest(validation, "history"), 1))
    network = SASRecConfig(len(catalogue), longest, oracle.hidden_size, oracle.layers, oracle.heads, oracle.dropout)
    # In memory from the start and whole for every worker: no read task asks for a CPU that the workers hold.
    blocks = {"train": train, "validation": validation}
    trainer = trainer_class()(
        _worker,
        train_loop_config={
            "oracle": oracle,
            "network": network,
            "seed": config.seed,
            "out": str(out.resolve()),
            "item_ids": catalogue.item_ids,
        },
        scaling_config=ScalingConfig(
            num_workers=oracle.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": oracle.cpus_per_worker} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RunConfig(name="oracle", storage_path=str((out / "_train").resolve())),
        datasets={name: ray.data.from_arrow(table) for name, table in blocks.items()},
        dataset_config=DataConfig(datasets_to_split=[]),
    )
    with Progress("oracle", oracle.max_epochs, "epochs") as progress:

        def show(line: dict[str, Any]) -> None:
            progress.update(
                int(line["step"]) - progress.done, **{name: line[name] for name in ("loss", "hr@10", "ndcg@10")}
            )

        try:
            with follow(out / METRICS_FILE, show):
                trainer.fit()
        except TrainingFailedError as error:
            raise StageError(root_cause("oracle", oracle.workers, error)) from error
    shutil.rmtree(out / "_train", ignore_errors=True)


def _worker(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs; rank 0 writes the metric lines and the best weights."""
    import ray.train
    import ray.train.torch

    oracle: OracleConfig = settings["oracle"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    train = Sequences.from_table(_whole("train"))
    histories, seen, targets = _examples(_whole("validation"))
    device = ray.train.torch.get_device()
    torch.manual_seed(settings["seed"])
    model = SASRec(settings["network"])
    wrapped = ray.train.torch.prepare_model(NextItemLoss(model))
    # Masks of dropout differ from rank to rank, weights do not.
    torch.manual_seed(settings["seed"] * 1_000_003 + rank)
    run = _Run(oracle, model, wrapped, rank, world, device, settings["seed"])
    out = Path(settings["out"])
    best, waited, started = -1.0, 0, time.monotonic()
    with MetricLog(out) if rank == 0 else contextlib.nullcontext() as log:
        for epoch in range(1, oracle.max_epochs + 1):
            loss = run.epoch(train, epoch)
            if not math.isfinite(loss):
                raise StageError(
                    f"oracle diverged: the loss of epoch {epoch} is {loss}; "
                    f"lower oracle.learning_rate ({oracle.learning_rate:g})"
                )
            late = run.agree(oracle.max_seconds is not None and time.monotonic() - started > oracle.max_seconds)
            last = late or epoch == oracle.max_epochs
            if epoch % oracle.evaluate_every and not last:
                continue
            figures = run.validate(histories[rank::world], seen[rank::world], targets[rank::world])
            better = figures["ndcg@10"] > best
            best, waited = (figures["ndcg@10"], 0) if better else (best, waited + 1)
            if log is not None:
                if better:
                    run.average.save(out, settings["item_ids"])
                seconds = time.monotonic() - started
                log.write(epoch, {"loss": loss, **figures, "best": float(better), "seconds": seconds})
            if last or waited >= oracle.patience:
                break


@dataclass
class _Run:
    """One rank's share of the training."""

    oracle: OracleConfig
    model: SASRec
    wrapped: nn.Module
    rank: int
    world: int
    device: torch.device
    seed: int

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.oracle.learning_rate, weight_decay=self.oracle.weight_decay, fused=True
        )
        self.average = copy.deepcopy(self.model).eval()
        self.steps = 0

    def epoch(self, train: Sequences, epoch: int) -> float:
        """One pass; the mean loss a target over all ranks."""
        self.wrapped.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for rows in epoch_batches(train.lengths, self.oracle.batch_size, self.seed, epoch):
            mine = rows[self.rank :: self.world]
            history, targets = batch_tensors(train, mine, self.model.config.max_length)
            loss = self.wrapped(history.to(self.device), targets.to(self.device))
            self.optimizer.zero_grad(set_to_none=True)
            # DDP averages gradients over ranks; this makes the average that of all the step's targets.
            (loss * (self.world / max(int(train.n_targets[rows].sum()), 1))).backward()
            self.steps += 1
            for group in self.optimizer.param_groups:
                group["lr"] = self.oracle.learning_rate * min(1.0, self.steps / WARMUP_STEPS)
            self.optimizer.step()
            follow_average(self.average, self.model, self.steps, AVERAGE)
            total += loss.detach()
        return float(self._summed(total[None])[0]) / int(train.n_targets.sum())

    def validate(self, histories: list[np.ndarray], seen: list[np.ndarray], targets: np.ndarray) -> dict[str, float]:
        """HR@10 and NDCG@10 over all ranks' validation examples."""
        ranks = ranks_of(self.average, histories, targets, seen)
        sums = torch.tensor([hit_ratio(ranks, 10).sum(), ndcg(ranks, 10).sum(), len(ranks)], dtype=torch.float64)
        hits, gains, count = self._summed(sums.to(self.device)).tolist()
        return {"hr@10": hits / count, "ndcg@10": gains / count}

    def agree(self, flag: bool) -> bool:
        """Whether any rank says so: clocks differ, and ranks that stop apart wait for each other for ever."""
        return bool(self._summed(torch.tensor([float(flag)], dtype=torch.float64, device=self.device))[0] > 0)

    def _summed(self, values: Tensor) -> Tensor:
        if self.world > 1:
            torch.distributed.all_reduce(values)
        return values


def _whole(name: str) -> pa.Table:
    import ray.train

    shard = ray.train.get_dataset_shard(name)
    return pa.concat_tables(list(shard.iter_batches(batch_size=None, batch_format="pyarrow")))


def _examples(table: pa.Table) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Histories, what was seen, and targets, as item indexes."""
    histories, seen = ([row.values.to_numpy() for row in table[name]] for name in ("history", "seen"))
    return histories, seen, table["target"].to_numpy()


def _training_table(folder: Path, catalogue: Catalogue) -> pa.Table:
    table = pq.read_table(folder, columns=["items", "n_targets"])
    return pa.table({"items": _as_indexes(table["items"], catalogue), "n_targets": table["n_targets"]})


def _validation_table(folder: Path, catalogue: Catalogue) -> pa.Table:
    table = pa.concat_tables(read_split(folder, "validation"))
    target = catalogue.index(table["target"].to_numpy()).astype(np.int32)
    lists = {name: _as_indexes(table[name], catalogue) for name in ("history", "seen")}
    return pa.table({**lists, "target": target})


def _as_indexes(lists: pa.ChunkedArray, catalogue: Catalogue) -> pa.Array:
    whole = lists.combine_chunks()
    items = catalogue.index(whole.flatten().to_numpy(zero_copy_only=False)).astype(np.int32)
    lengths = pa.compute.list_value_length(whole).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, items)


def _longest(table: pa.Table, column: str) -> int:
    return int(pa.compute.max(pa.compute.list_value_length(table[column])).as_py() or 0)


def _fit_tau(oracle: Oracle, validation: pa.Table, n_items: int, seed: int) -> float:
    """Tau from targets against items drawn evenly: `fit_tau` minimises the log-loss of sigmoid(difference / tau)."""
    histories, _, targets = _examples(validation)
    rng = np.random.default_rng([seed, len(targets)])
    drawn = rng.integers(0, n_items, size=(len(targets), TAU_NEGATIVES))
    # The target itself is no other item; its neighbour is.
    drawn = np.where(drawn == targets[:, None], (drawn + 1) % n_items, drawn)
    items = np.concatenate([targets[:, None], drawn], axis=1)
    scores = np.concatenate(
        [oracle.score_items(histories[i : i + 512], items[i : i + 512]) for i in range(0, len(items), 512)]
    )
    return float(fit_tau(scores[:, 0], scores[:, 1:]))


def _best_line(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return next(line for line in reversed(lines) if line["best"]), lines[-1]
