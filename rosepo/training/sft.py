"""The `sft` stage: supervised fine-tuning on next titles, every title of a trajectory in one row.

The loss of a step is the summed negative log-likelihood of its completions' tokens divided by the number of completions
(over all micro-batches and ranks): every next title weighs the same, however long, as in ``max log pi(y_w | x)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

import rosepo
from rosepo.config import Config, ModelConfig, TrainConfig
from rosepo.config.training import SftConfig
from rosepo.data.catalogue import ITEMS_FILE, Catalogue
from rosepo.data.prompts import PromptBuilder
from rosepo.data.seen import TRAJECTORIES
from rosepo.lm.cards.record import ModelRecord, model_record
from rosepo.lm.model.dropout import training_dropout
from rosepo.lm.model.policy import initial_policy, load_tokenizer, save_policy
from rosepo.lm.model.quantized import check_quantization
from rosepo.lm.model.scratch import train_tokenizer
from rosepo.lm.rows.logps import LogpsModel
from rosepo.run.manifest import read_manifest
from rosepo.run.paths import RunPaths
from rosepo.run.resources import stage_use_gpu
from rosepo.training.checkpoint.saver import origin_of
from rosepo.training.feed.candidate_rows import COLUMNS, ExampleEncoder, check_room, example_rows, training_rows
from rosepo.training.feed.encoders import TrajectoryEncoder, collated
from rosepo.training.feed.micro_batching import most_tokens
from rosepo.training.feed.parquet_rows import ParquetRows
from rosepo.training.feed.plan import Arrays, Encoder, FeedPlan
from rosepo.training.task import HeldOut, Loss
from rosepo.training.trainer import fit
from rosepo.training.validation import check_best, held_out

VALIDATION_EXAMPLES = 256
"""Validation examples behind the validation loss during training; a sample keeps it cheap."""


def sft(config: Config, paths: RunPaths, out: Path) -> dict[str, Any]:
    """Fine-tune `model` on the train trajectories of `<run>/examples` into the model folder `out`; where prompts list
    candidates, on its training examples one by one.

    Returns:
        Figures: steps, rows, examples (titles trained on, an epoch), tokens, seconds, loss (a title, nats), token_loss,
        validation_loss.

    Raises:
        UserError: no trajectories, or a cluster too small for the workers; before training starts.
        StageError: training failed or diverged.
    """
    use_gpu = stage_use_gpu(config, "sft")
    task = sft_task(config, paths)
    figures = fit(task, out, gpu=use_gpu)
    listed = task.plan.places is not None
    return figures | {"examples": task.plan.n_rows if listed else _count_targets(paths.examples / TRAJECTORIES)}


def sft_task(config: Config, paths: RunPaths) -> SftTask:
    """What the workers need for supervised fine-tuning."""
    catalogue = Catalogue.load(paths.examples / ITEMS_FILE)
    check_quantization("none" if config.model.lora is None else config.model.lora.quantize)
    if config.model.path is None:
        scratch = config.model.scratch_config
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(
            catalogue.titles, catalogue.train_count, scratch, config.model.template
        )
    else:
        tokenizer = load_tokenizer(config.model.path, config.model.revision)
    builder = PromptBuilder(tokenizer, catalogue.titles, config.model.template, config.model.max_length)
    plan = _plan(config, paths, builder)
    extra = ("candidates",) if builder.lists_candidates else ()
    examples = sample_examples(paths.examples, "validation", VALIDATION_EXAMPLES, config.seed, extra)
    validation = validation_batches(examples, builder, config.sft)
    check_best(config.sft, "sft", bool(validation), f"{paths.examples} holds no validation examples; leave it out")
    held = held_out(paths.examples, builder, config.sft.validation_users, "sft.validation_users")
    made_from = [config.model.model_dump(mode="json"), plan.n_rows, read_manifest(paths.examples)]
    origin = origin_of(config.sft, rosepo.__version__, config.seed, *made_from)
    return SftTask(config.sft, config.seed, model_record(config, "sft"), catalogue, plan, validation, held, origin)


def _plan(config: Config, paths: RunPaths, builder: PromptBuilder) -> FeedPlan:
    """Rows of whole trajectories or, where prompts list candidates, of one example each."""
    sft = config.sft
    most = most_tokens(sft, config.full_row("sft"))
    encoder: Encoder
    columns: tuple[str, ...]
    if builder.lists_candidates:
        check_room(paths.examples, builder)
        folder, columns, places = paths.examples, COLUMNS, training_rows(paths.examples)
        n_rows, encoder = len(places), ExampleEncoder(builder, sft.pack_tokens, most)
    else:
        folder, columns, places = paths.examples / TRAJECTORIES, ("items", "n_targets"), None
        n_rows, encoder = len(ParquetRows(folder)), TrajectoryEncoder(builder, sft.pack_tokens, most)
    return FeedPlan(
        folder=folder,
        columns=columns,
        encoder=encoder,
        n_rows=n_rows,
        batch_size=sft.batch_size,
        micro_batch_size=sft.micro_batch_size,
        seed=config.seed,
        epochs=sft.epochs,
        places=places,
    )


@dataclass
class SftTask:
    """Supervised fine-tuning, as the training loop knows it."""

    train: SftConfig
    seed: int
    record: ModelRecord
    catalogue: Catalogue
    plan: FeedPlan
    validation: list[Arrays]
    held_out: HeldOut | None = None
    origin: str = ""
    name: ClassVar[str] = "sft"
    validated: ClassVar[tuple[str, ...]] = ("loss",)
    metric_names: ClassVar[tuple[str, ...]] = ("token_loss",)
    tracker: ClassVar[None] = None
    moments: ClassVar[None] = None
    _built: Any = None

    @property
    def keeps_moments(self) -> bool:
        return self.train.keep_optimizer

    @property
    def stored(self) -> torch.dtype:
        return storage_dtype(self.record.model, self.train)

    def build(self) -> nn.Module:
        train, model_config = self.train, self.record.model
        self._built = model, _ = initial_policy(model_config, self.catalogue, self.seed, compute_dtype(train))
        if model_config.path is None:
            training_dropout(model, model_config.scratch_config.dropout)
        checkpointing = train.activation_checkpointing
        return LogpsModel(model, attention=train.attention, activation_checkpointing=checkpointing).train()

    def verify(self, logps: Callable[[Arrays], Tensor]) -> None:
        """Nothing to hold a first model to."""

    def loss(self, logps: Tensor, counts: Tensor, arrays: Arrays) -> Loss:
        total = -logps.sum()
        return Loss(total, float(len(logps)), {"token_loss": (total.detach(), counts.sum())})

    def save(self, weights: dict[str, Tensor], folder: Path, figures: dict[str, Any]) -> None:
        model, tokenizer = self._built
        figures = card_figures(figures)
        save_policy(folder, model, tokenizer, self.catalogue, self.record, state_dict=weights, figures=figures)


def validation_batches(examples: pa.Table, builder: PromptBuilder, train: TrainConfig) -> list[Arrays]:
    """Examples (columns as `example_rows` reads them) as micro-batches, one completion a row."""
    rows = example_rows(examples, builder) if len(examples) else []
    parts = -(-len(rows) // train.micro_batch_size)
    return collated(rows, parts, train.pack_tokens, train.micro_batch_tokens) if rows else []


def sample_examples(folder: Path, split: str, count: int, seed: int, extra: tuple[str, ...] = ()) -> pa.Table:
    """At most `count` examples of a split (example_id, history, target, `extra`), from row groups in random order."""
    table = ds.dataset([str(path) for path in sorted(folder.glob("part-*.parquet"))], format="parquet")
    columns = ["example_id", "history", "target", *extra]
    groups = [part for fragment in table.get_fragments() for part in fragment.split_by_row_group()]
    rng = np.random.default_rng([seed, count])
    found = [table.schema.empty_table().select(columns)]
    for place in rng.permutation(len(groups)):
        # Of a large table a few row groups are read, with more rows than are wanted, so that users mix.
        if sum(map(len, found)) >= 16 * count:
            break
        found.append(groups[place].to_table(columns=columns, filter=ds.field("split") == split))
    rows = pa.concat_tables(found)
    return rows.take(np.sort(rng.permutation(len(rows))[:count]))


def compute_dtype(train: TrainConfig) -> torch.dtype | None:
    """What a quantized base is multiplied in; None: in float32."""
    return torch.bfloat16 if train.precision == "bfloat16" else None


def storage_dtype(model: ModelConfig, train: TrainConfig) -> torch.dtype:
    """That weights are stored in: float32, but bfloat16 for a pretrained model trained in it, as such models come."""
    return torch.float32 if model.path is None or train.precision == "float32" else torch.bfloat16


def card_figures(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures that the model card shows."""
    names = ("steps", "loss", "validation_loss", "accuracy", "margin", "hr@10", "ndcg@10", "best_step")
    return {name: figures[name] for name in names if name in figures}


def _count_targets(folder: Path) -> int:
    table = ds.dataset([str(path) for path in sorted(folder.glob("*.parquet"))], format="parquet")
    return sum(pc.sum(batch["n_targets"]).as_py() or 0 for batch in table.to_batches(columns=["n_targets"]))
