"""The DeepSpeed engine: exact gradient sums, one cosine schedule, and weights back out at every ZeRO stage.

A step's gradient is that of ``sum over all units / number of units in the step`` (units: groups, or titles), however
its rows are split into micro-batches and over ranks: callers hand in sums, and the engine undoes DeepSpeed's averaging.
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rosepo.config import TrainConfig
from rosepo.utils.errors import StageError, UserError


@dataclass(frozen=True)
class StepFigures:
    """What one optimizer step did."""

    grad_norm: Tensor
    """Global norm of the gradient before clipping, a scalar wherever it was computed: to look at it is to wait for the
    step."""
    learning_rate: float


def learning_rate_at(step: int, steps: int, train: TrainConfig) -> float:
    """Linear warm-up over a share of the steps, then a cosine down to `min_learning_rate`; `step` counts from 0."""
    warmup = math.ceil(train.warmup_fraction * steps)
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    low = min(train.min_learning_rate, train.learning_rate)
    return low + (train.learning_rate - low) * 0.5 * (1.0 + math.cos(math.pi * progress))


def prepare_process(backend: str = "gloo") -> None:
    """Make DeepSpeed usable in this process without a compiler, in its process group or a new one of a single rank."""
    if backend == "gloo":
        os.environ["DS_ACCELERATOR"] = "cpu"
    deepspeed = _deepspeed()
    if not dist.is_initialized():
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}  # DeepSpeed asks for them by name
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=dist.get_backend())


def _deepspeed() -> ModuleType:
    """DeepSpeed without what it would compile: a shared-memory all-reduce for CPUs, which takes half a minute, wants
    ninja, waits for ever where a process was killed while compiling, and which training never calls."""
    # DeepSpeed calls collectives by names that torch is about to drop: thousands of lines, none of them for the user.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return cast(ModuleType, deepspeed)


class Engine:
    """One rank's DeepSpeed engine around a module.

    Weights are float32 masters at every stage. bfloat16 with ZeRO 1-3 computes in bfloat16 weights; with ZeRO 0 it
    computes under torch autocast, because DeepSpeed's own bfloat16 optimizer takes a wrong first step there.

    Args:
        module: float32 parameters, the same on every rank; those that do not require gradients stay as they are.
        train: stage, precision, clipping and learning rate.
        steps: optimizer steps of the whole run.

    Raises:
        UserError: quantized weights under ZeRO-3.
    """

    def __init__(self, module: nn.Module, train: TrainConfig, steps: int) -> None:
        if train.zero_stage == 3 and not all(parameter.is_floating_point() for parameter in module.parameters()):
            raise UserError(f"{train.section}.zero_stage=3 cannot divide quantized weights: use zero_stage=2")
        self.train, self.steps = train, steps
        self.world = dist.get_world_size()
        self.done = 0
        self.carried = 0  # steps that the optimizer's state had seen before the first of this training
        self._complete = False
        self._shapes = {name: list(parameter.shape) for name, parameter in module.named_parameters()}
        self._optimizer = torch.optim.AdamW(
            _parameter_groups(module, train.weight_decay), lr=train.learning_rate, fused=True
        )
        self._engine, *_ = _deepspeed().initialize(
            model=module,
            optimizer=self._optimizer,
            config=deepspeed_config(train, self.world, sum(map(math.prod, self._shapes.values()))),
        )

    @property
    def module(self) -> nn.Module:
        """The module, as wrapped."""
        wrapped: nn.Module = self._engine.module
        return wrapped

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that steps, inside DeepSpeed's."""
        return self._optimizer

    @property
    def deepspeed(self) -> Any:
        """DeepSpeed's engine."""
        return self._engine

    @property
    def device(self) -> torch.device:
        """Where batches must be."""
        return torch.device(self._engine.device)

    def forward(self, *inputs: Any) -> Any:
        """The module's result, in training mode."""
        return self._engine(*inputs)

    def accumulate(self, loss_sum: Tensor, units: float, last: bool = True) -> None:
        """Add the gradient of ``loss_sum / units``; all ranks call it equally often before a `step`.

        Args:
            loss_sum: scalar, the loss summed over this rank's units of a micro-batch (times zero where it has none).
            units: units of the whole step, over all micro-batches and ranks.
            last: whether it is the last micro-batch of the step: gradients are then reduced for good.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        # Gradients are averaged over ranks when they are reduced, hence the factor; scale_wrt_gas=False because the
        # division by all units of the step already covers its micro-batches.
        self._engine.backward(loss_sum * (self.world / units), scale_wrt_gas=False)
        self._complete = last

    def step(self) -> StepFigures:
        """Clip and update, after the last `accumulate` of a step."""
        if not self._complete:
            raise RuntimeError("a step before its last micro-batch")
        rate = learning_rate_at(self.done, self.steps, self.train)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        norm = self._plain_norm() if self.train.zero_stage == 0 else None
        self._engine.step()
        self.done += 1
        self._complete = False
        return StepFigures(torch.as_tensor(self._engine.get_global_grad_norm() if norm is None else norm), rate)

    def state_dict(self) -> dict[str, Tensor] | None:
        """All weights of the module on the CPU, float32 masters where there are, on rank 0; None on the others.

        Every rank must call it. Tied weights appear once under every name.

        Raises:
            StageError: a weight came out empty or with another shape.
        """
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        weights: dict[str, Tensor] = {}
        first: dict[int, str] = {}
        keeps = dist.get_rank() == 0
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            if id(parameter) in first:
                if keeps:
                    weights[name] = weights[first[id(parameter)]]
                continue
            first[id(parameter)] = name
            full = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
            if full is None and self.train.zero_stage == 3:
                with deepspeed.zero.GatheredParameters([parameter]):
                    full = parameter.detach().clone()
            full = parameter.detach() if full is None else full
            # What is frozen in four bits takes other shapes as it is used; it is not what is saved.
            whole = not full.is_floating_point() or list(full.shape) == self._shapes.get(name, list(full.shape))
            if full.numel() == 0 or not whole:
                raise StageError(f"weight {name} was gathered with shape {list(full.shape)}: nothing was saved")
            if keeps:
                weights[name] = full.to("cpu", copy=True)
        for name, buffer in _persistent_buffers(self.module):
            weights[name] = buffer.detach().to("cpu", copy=True)
        return weights if keeps else None

    def close(self) -> None:
        """Drop DeepSpeed's hooks and buffers."""
        self._engine.destroy()

    def _plain_norm(self) -> Tensor:
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)


def deepspeed_config(train: TrainConfig, world: int, parameters: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a section of ours, and a model of so many parameters."""
    # Buckets are allocated in full: on a small model the default of 2 × 10^9 bytes is all there would be.
    bucket = min(2**25, max(parameters, 2**10))
    config: dict[str, Any] = {
        # Of form alone: how many micro-batches a step has differs, and `accumulate` says which is the last.
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": 2,
        "train_batch_size": train.micro_batch_size * 2 * world,
        "gradient_clipping": train.max_grad_norm,
        "steps_per_print": None,
        # It would wait for the device before and behind every micro-batch.
        "timers": {"throughput": {"enabled": False}},
        "zero_optimization": {
            "stage": train.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": False,
        },
        # torch.optim.AdamW is passed in: by name it would mean FusedAdam, which is compiled on first use, and for
        # offloaded states DeepSpeedCPUAdam, which is too.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if train.offload != "none":
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    if train.offload == "parameters":
        config["zero_optimization"]["offload_param"] = {"device": "cpu"}
    if train.precision == "bfloat16" and train.zero_stage == 0:
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    elif train.precision == "bfloat16":
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
    return config


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases and the weights of norms do not."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _persistent_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    found = []
    for prefix, child in module.named_modules():
        for name, buffer in child.named_buffers(recurse=False):
            if name not in child._non_persistent_buffers_set:
                found.append((f"{prefix}.{name}" if prefix else name, buffer))
    return found
