"""TRL's DPOTrainer on a run's groups: its own training loop, without evaluation, saving, logging or progress bars.

A group of K rejected titles is K pairs. Token ids are given as they are in the groups table, so that nothing is
tokenised. What is timed goes from the start of `train()`'s loop to the end of its last step: data loading, collation,
policy forward, reference forward, backward, clipping and the optimizer's step.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any, NamedTuple

import torch

from benchmarks.groups_run import BETA, LEARNING_RATE, read_groups
from benchmarks.sides import Take, peak_mib
from rosepo.run.paths import RunPaths

MOST_PAIRS = 8
"""Pairs in one forward pass, TRL's default; more of them are accumulated to a step."""


class Setting(NamedTuple):
    """How DPOTrainer is set up."""

    precomputed: bool = False
    """Reference log-probabilities computed before training (untimed), not in every step."""
    checkpointing: bool = True
    """Activations recomputed in the backward pass: TRL's default."""


def make(outputs: RunPaths, steps: int, precision: str, setting: Setting, device: str = "cpu") -> Take:
    """A DPOTrainer whose every step takes all groups of the run; a turn is a `train()` of `steps` steps."""
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Clock(TrainerCallback):
        begun = ended = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.begun = _now(device)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ended = _now(device)

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset  # token ids already

    disable_progress_bars()
    groups = read_groups(outputs)
    pairs = [
        {"prompt_ids": prompt.tolist(), "chosen_ids": chosen.tolist(), "rejected_ids": ids.tolist()}
        for prompt, (chosen, *rejected) in zip(*groups, strict=True)
        for ids in rejected
    ]
    micro = max(size for size in range(1, MOST_PAIRS + 1) if len(pairs) % size == 0)
    config = DPOConfig(
        output_dir=tempfile.mkdtemp(prefix="rosepo-trl-"),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=len(pairs) // micro,
        precompute_ref_log_probs=setting.precomputed,
        gradient_checkpointing=setting.checkpointing,
        bf16=precision == "bfloat16",
        beta=BETA,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        use_cpu=device == "cpu",
        logging_strategy="steps",
        logging_steps=1,
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        model_init_kwargs={"dtype": torch.float32},
    )
    trainer = Trainer(
        str(outputs.sft), args=config, train_dataset=Dataset.from_list(pairs), processing_class=_tokenizer(outputs)
    )
    clock = Clock()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)

    def take() -> dict[str, Any]:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        gib = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
        return {"seconds": clock.ended - clock.begun, "losses": losses, "peak": peak_mib(), "gib": gib}

    return take


def _tokenizer(outputs: RunPaths) -> Any:
    from rosepo.lm.model.policy import load_tokenizer

    return load_tokenizer(outputs.sft)


def _now(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()
