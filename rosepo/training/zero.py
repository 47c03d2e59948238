"""Where DeepSpeed keeps masters and moments, by ZeRO stage: found, and followed by the weights.

The one module that knows DeepSpeed's wrappers of an optimizer from within.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rosepo.lm.rows.partitioned import is_part

if TYPE_CHECKING:
    from rosepo.training.engine import Engine

WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")
"""Parts of the state of a parameter."""


class Divider:
    """Divides weights among the ranks before there is an engine, as ZeRO-3 will hold them: nothing is sent, each rank
    keeps its part of what it has read itself.

    Args:
        config: DeepSpeed's.
        dtype: that is computed with.
    """

    def __init__(self, config: dict[str, Any], dtype: torch.dtype) -> None:
        import deepspeed

        # Around no module: only its own call also makes DeepSpeed's linear layers, which save memory.
        self._init = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=config)
        self.dtype = dtype

    def take(self, parameter: nn.Parameter) -> None:
        """Keep this rank's part of a parameter alone; not of quantized ones, which an engine refuses."""
        if parameter.is_floating_point() and not is_part(parameter):
            parameter.data = parameter.data.to(self._init.local_device, self.dtype)
            self._init._convert_to_deepspeed_param(parameter)
            parameter.partition()  # type: ignore[attr-defined]

    def take_all(self, module: nn.Module) -> None:
        """What is still whole in a module."""
        for parameter in module.parameters():
            self.take(parameter)


def master_shares(engine: Engine) -> list[Tensor]:
    """What the optimizer steps on: this rank's flat float32 partitions, or at ZeRO-0 the parameters themselves."""
    wrapper = engine.deepspeed.optimizer
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(wrapper, name):
            return list(getattr(wrapper, name))
    return [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]


class Fragment(NamedTuple):
    """Consecutive numbers of a parameter that this rank steps on.

    Attributes:
        name: of the parameter.
        share: which of `master_shares` they lie in.
        offset: of the first of them in that share.
        start: of the first of them in the flattened parameter.
        size: how many there are.
    """

    name: str
    share: int
    offset: int
    start: int
    size: int

    def of(self, shares: Sequence[Tensor]) -> Tensor:
        """Its numbers in the masters, or in what is laid out as they are: a view, [size]."""
        return shares[self.share].detach().view(-1)[self.offset : self.offset + self.size]


def fragments(engine: Engine, once: bool = False) -> list[Fragment]:
    """Where this rank's masters are, and with them its moments.

    Args:
        once: every number on one rank alone. At ZeRO-0 every rank holds all of them; this takes an equal part of each.
    """
    found, rank = [], dist.get_rank()
    trained: dict[str, Any] = trained_parameters(engine)
    wrapper, stage = engine.deepspeed.optimizer, engine.train.zero_stage
    places = {id(share): place for place, share in enumerate(master_shares(engine))}
    for name, parameter in trained.items():
        if stage == 0:
            size = -(-parameter.numel() // engine.world) if once else parameter.numel()
            start = size * rank if once else 0
            real = min(size, parameter.numel() - start)
            found.append(Fragment(name, places[id(parameter)], start, start, real))
        elif stage == 3:
            share, offset, size = wrapper.grad_position[wrapper.get_param_id(parameter)]
            start = size * rank  # the last rank's part is padded
            found.append(Fragment(name, share, offset, start, min(size, parameter.ds_numel - start)))
        elif (mapped := parameter._hp_mapping) is not None:
            place, size = mapped.hp_fragment_address.start, mapped.hp_fragment_address.numel
            found.append(Fragment(name, mapped.param_group_index, place, mapped.lp_fragment_address.start, size))
    return [fragment for fragment in found if fragment.size > 0]


def moment_shares(engine: Engine) -> dict[str, list[Tensor]]:
    """Both moments of Adam, each laid out as `master_shares` is."""
    state = engine.optimizer.state
    return {part: [state[share][part] for share in master_shares(engine)] for part in MOMENTS}


@torch.no_grad()
def publish_masters(engine: Engine) -> None:
    """Let the weights that are computed with follow the float32 masters, which have changed; every rank calls it."""
    if engine.train.zero_stage == 0:
        return  # they are the masters
    from deepspeed.utils import safe_get_full_fp32_param

    trained: dict[str, Any] = trained_parameters(engine)
    whole = trained
    if engine.train.zero_stage == 3:
        shares = master_shares(engine)
        for fragment in fragments(engine):
            trained[fragment.name].ds_tensor.data.view(-1)[: fragment.size].copy_(fragment.of(shares))
        whole = {name: parameter for name, parameter in trained.items() if parameter.ds_persist}
    for parameter in whole.values():
        value = safe_get_full_fp32_param(parameter)
        if parameter.data.numel() == value.numel():  # small parameters stay whole on every rank, once they were used
            parameter.data.copy_(value.view_as(parameter.data))


def create_moments(engine: Engine, steps: int) -> None:
    """Adam's state as it is after `steps` steps, of zeros: it comes into being with the first step only."""
    optimizer = engine.optimizer
    fused = bool(optimizer.defaults.get("fused"))
    for parameter in master_shares(engine):
        count = torch.tensor(float(steps), dtype=torch.float32, device=parameter.device if fused else "cpu")
        optimizer.state[parameter] = {"step": count} | {part: torch.zeros_like(parameter) for part in MOMENTS}
    link_moments(engine)


def link_moments(engine: Engine) -> None:
    """Tell ZeRO 1 and 2 where the moments are. DeepSpeed does that by itself once the first of its parameter groups has
    made its first step, when the others have no moments yet."""
    wrapper = engine.deepspeed.optimizer
    if hasattr(wrapper, "_lazy_init_hp_params_optimizer_state"):
        wrapper._hp_optimizer_states_linked = False
        wrapper._lazy_init_hp_params_optimizer_state()


def trained_parameters(engine: Engine) -> dict[str, Tensor]:
    """Those that take gradients, by name."""
    return {name: parameter for name, parameter in engine.module.named_parameters() if parameter.requires_grad}
