"""SASRec on Ray Train: the models of all users, then, for each fold, those without its users, in one start of workers.

A catalogue's sequences are a few integers an interaction, so every worker reads and holds them all. Which users a step
takes follows from (seed, epoch) alone and each rank takes its stride of them: all ranks make the same number of steps
by construction, and a step's loss is the mean over all its targets, however many workers share it.
"""

from __future__ import annotations

import contextlib
import copy
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rosepo.config import Config, OracleConfig
from rosepo.data.catalogue import Catalogue
from rosepo.metrics.ranking import hit_ratio, ndcg
from rosepo.oracle.crossfit import oracle_models
from rosepo.oracle.log import Sequences, Validation, read_sequences, read_validation, rows_without
from rosepo.oracle.measured import Measured, read_measured, write_measured
from rosepo.oracle.sasrec import SASRec, SASRecConfig
from rosepo.oracle.sasrec_data import NextItemLoss, batch_tensors, epoch_batches, ranks_of
from rosepo.run.signals import run_trainer
from rosepo.run.training_progress import ProgressTeller, TrainingProgress
from rosepo.training.ema import follow_mean
from rosepo.training.metric_log import MetricLog
from rosepo.training.trainer import root_cause, take_cores
from rosepo.training.validation import Best
from rosepo.utils.console import Progress
from rosepo.utils.errors import StageError
from rosepo.utils.quiet import quiet_worker

TRAINING = "_train"
MEASURED = f"{TRAINING}/measured"
"""What is there while workers are, in the oracle's folder."""
WARMUP_STEPS = 100
AVERAGE = 0.99
"""Decay of the running mean of weights, a step: the mean is what is validated and kept. It ranks better, sooner."""


def fit_oracles(
    config: Config, examples: Path, validation: int, longest: int, catalogue: Catalogue, out: Path, use_gpu: bool
) -> Measured:
    """Train every model of `oracle_models`; each folder gets its best weights, `metrics.jsonl` and `tensorboard/`.

    Args:
        examples: folder of the examples table. A model stops early on the users that it trained on.
        validation: number of its validation examples.
        longest: history that is read.

    Returns:
        What the models say of validation.

    Raises:
        StageError: a worker failed, or the loss is no longer a number.
    """
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    oracle = config.oracle
    network = SASRecConfig(len(catalogue), longest, oracle.hidden_size, oracle.layers, oracle.heads, oracle.dropout)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "oracle": oracle,
            "network": network,
            "seed": config.seed,
            "examples": str(examples),
            "out": str(out),
            "item_ids": catalogue.item_ids,
        },
        scaling_config=ScalingConfig(
            num_workers=oracle.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": oracle.cpus_per_worker} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RunConfig(name="oracle", storage_path=str(out / TRAINING)),
    )
    for model in oracle_models(oracle, out):
        model.folder.mkdir(exist_ok=True)
    try:
        with TrainingProgress(Progress("oracle", None, "users"), out, oracle.workers) as progress:
            progress.starting()
            run_trainer(trainer)
        return read_measured(out / MEASURED, validation)
    except TrainingFailedError as error:
        raise StageError(root_cause("oracle", oracle.workers, error)) from error
    finally:
        shutil.rmtree(out / TRAINING, ignore_errors=True)


def _worker(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs; rank 0 writes the metric lines and the best weights."""
    import ray.train
    from ray.train.torch import get_device

    quiet_worker()
    take_cores()
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    oracle, out, examples = settings["oracle"], Path(settings["out"]), Path(settings["examples"])
    train, folds = read_sequences(examples, oracle.folds, settings["seed"])
    validation = read_validation(examples, oracle.folds, settings["seed"])
    models = list(oracle_models(oracle, out))
    left = [oracle.max_epochs * len(rows_without(folds, model.fold)) for model in models]
    count = _Count(ProgressTeller(out if rank == 0 else None), sum(left))
    count.told.begin(0, count.total)
    for number, model in enumerate(models):
        own = {**settings, "seed": model.seed(settings["seed"])}
        sequences = train if model.fold is None else train.take(rows_without(folds, model.fold))
        looked_at = rows_without(validation.folds, model.fold)[rank::world]
        count.model = number + 1
        _train_one(own, sequences, validation, looked_at, model.folder, rank, world, count)
        count.total = count.done + sum(left[number + 1 :])  # one that stopped early leaves users out
    count.told.doing("measuring")
    if world > 1:
        torch.distributed.barrier()  # the first rank writes the models that all of them read now
    write_measured(
        oracle, out, settings["item_ids"], validation, settings["seed"], out / MEASURED, rank, world, get_device()
    )


def _train_one(
    settings: dict[str, Any],
    train: Sequences,
    validation: Validation,
    looked_at: np.ndarray,
    out: Path,
    rank: int,
    world: int,
    count: _Count,
) -> None:
    """One model, from its first epoch to the last one or until validation, of which this rank has the rows `looked_at`,
    gets no better."""
    import ray.train.torch

    oracle: OracleConfig = settings["oracle"]
    device = ray.train.torch.get_device()
    torch.manual_seed(settings["seed"])
    model = SASRec(settings["network"])
    wrapped = ray.train.torch.prepare_model(NextItemLoss(model))
    # Masks of dropout differ from rank to rank, weights do not.
    torch.manual_seed(settings["seed"] * 1_000_003 + rank)
    run = _Run(oracle, model, wrapped, rank, world, device, settings["seed"])
    best, started = Best("ndcg@10", oracle.patience, oracle.min_gain), time.monotonic()
    with MetricLog(out) if rank == 0 else contextlib.nullcontext() as log:
        for epoch in range(1, oracle.max_epochs + 1):
            loss = run.epoch(train, epoch, count)
            if not math.isfinite(loss):
                raise StageError(
                    f"oracle diverged: the loss of epoch {epoch} is {loss}; "
                    f"lower oracle.learning_rate ({oracle.learning_rate:g})"
                )
            late = run.agree(oracle.max_seconds is not None and time.monotonic() - started > oracle.max_seconds)
            last = late or epoch == oracle.max_epochs
            if epoch % oracle.evaluate_every and not last:
                continue
            count.told.doing("validating")
            figures = run.validate(validation, looked_at)
            count.tell(epoch, {"loss": loss, **figures})
            better = best.update(epoch, figures)
            if run.steps <= WARMUP_STEPS:
                # A few steps an epoch, as on small data: no reason to give up before the rate is what it should be.
                best.waited = 0
            if log is not None:
                if better:
                    run.average.save(out, settings["item_ids"])
                seconds = time.monotonic() - started
                log.write(epoch, {"loss": loss, **figures, "best": float(better), "seconds": seconds})
            if last or best.exhausted:
                break


@dataclass
class _Count:
    """Users whose sequences were trained on, of all models together, for the progress line."""

    told: ProgressTeller
    total: int
    done: int = 0
    model: int = 0

    def tell(self, epoch: int, figures: dict[str, float] | None = None) -> None:
        """Half a second after the last time, or with figures of a validation."""
        self.told.step(self.done, {"model": self.model, "epoch": epoch, **figures} if figures else None, self.total)


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

    def epoch(self, train: Sequences, epoch: int, count: _Count) -> float:
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
            follow_mean([*self.average.parameters()], [*self.model.parameters()], self.steps, AVERAGE)
            total += loss.detach()
            count.done += len(rows)
            count.tell(epoch)
        return float(self._summed(total[None])[0]) / int(train.n_targets.sum())

    def validate(self, validation: Validation, rows: np.ndarray) -> dict[str, float]:
        """HR@10 and NDCG@10 over all ranks' validation examples, of which this one has `rows`."""
        ranks = ranks_of(self.average, validation.histories, validation.targets, validation.seen, rows)
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
