"""What each stage asks of the cluster, compared with what is there before anything starts.

Ray waits for ever for CPUs that a cluster does not have, and Ray Data for those that training holds: so the sums are
checked beforehand, here alone.
"""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass, replace

from rosepo.config import Config
from rosepo.utils.errors import UserError

FEED_CPUS = 0.25
"""CPUs that the Ray Data actor feeding one training worker asks for."""
TRIAL_CPUS = 0.5
"""CPUs that a trial of a sweep asks for itself, while its trainer's workers run."""


@dataclass(frozen=True)
class ResourceRequest:
    """Processes that a stage runs at once.

    Attributes:
        section: of the configuration.
        count_key, each_key: dotted keys that say how many, and what each takes.
        count: processes.
        cpus_each: CPUs that each asks Ray for.
        data_each: CPUs for the Ray Data actor that feeds each.
        gpus_each: GPUs that each takes where it takes any.
        gpu_key: dotted key that says whether it does.
        gpu: auto, yes or no.
        vllm: the command that serves the models, or an address; None where they are in the processes.
        only_gpu: a setting that CPUs cannot follow, and what to set instead; None where there is none.
    """

    section: str
    count_key: str
    each_key: str
    count: int
    cpus_each: float
    data_each: float
    gpus_each: int
    gpu_key: str
    gpu: str
    vllm: str | None = None
    only_gpu: tuple[str, str] | None = None

    @property
    def cpus(self) -> float:
        """CPUs that must be there at once."""
        return self.count * (self.cpus_each + self.data_each)

    @property
    def told(self) -> str:
        """How many CPUs, for messages."""
        beside = f" and {self.data_each:g} beside each" if self.data_each else ""
        return f"{self.count_key}={self.count} × {self.cpus_each:g}{beside}"

    @property
    def gpus(self) -> int:
        """GPUs that must be there at once, where any are used."""
        return self.count * self.gpus_each


def request_of(config: Config, section: str) -> ResourceRequest:
    """What a section of the configuration asks for: sft, oracle, pairs, align, evaluate, recommend or sweep."""
    if section == "sweep":
        return _request_of_trials(config)
    settings, trains = getattr(config, section), section in ("sft", "align")
    count, each = ("workers", "cpus_per_worker") if trains or section == "oracle" else ("actors", "cpus_per_actor")
    flex = trains and settings.attention == "flex"  # FlexAttention has no backward pass on CPUs
    return ResourceRequest(
        section,
        count_key=f"{section}.{count}",
        each_key=f"{section}.{each}",
        count=getattr(settings, count),
        cpus_each=getattr(settings, each),
        data_each=FEED_CPUS if trains else 0.0,
        gpus_each=getattr(settings, "gpus_per_actor", 1),
        gpu_key=f"{section}.gpu",
        gpu=settings.gpu,
        vllm=settings.vllm if getattr(settings, "engine", None) == "vllm" else None,
        only_gpu=(f"{section}.attention=flex", f"{section}.attention=auto") if flex else None,
    )


def use_gpu(need: ResourceRequest, cpus: float, gpus: float) -> bool:
    """Whether the processes take GPUs; refuses what the cluster (`cpus`, `gpus`) can never run.

    Raises:
        UserError: with the sum and the remedy; or where there is no vLLM to serve models with.
    """
    if need.cpus > cpus + 1e-6:
        most = int(cpus / (need.cpus_each + need.data_each))
        remedy = f"set {need.count_key}={most}" if most else f"lower {need.each_key}"
        raise UserError(
            f"{need.section} needs {need.cpus:g} CPUs ({need.told}) and the cluster has {cpus:g}: {remedy}, or give "
            "Ray more CPUs (ray.num_cpus where it is started here)"
        )
    if need.vllm is not None:
        _check_command(f"{need.section}.vllm", need.vllm)
    if need.gpu == "no" or (need.gpu == "auto" and gpus == 0):
        if need.only_gpu is not None:
            setting, instead = need.only_gpu
            where = f"{need.gpu_key}=no" if need.gpu == "no" else "the cluster has none"
            raise UserError(f"{setting} needs a GPU, and {where}: use {instead}")
        return False
    if gpus < need.gpus:
        # Not quietly on the CPU: who has a GPU did not mean to train without it.
        remedy = f"set {need.count_key}={int(gpus) // need.gpus_each}" if gpus >= need.gpus_each else "add GPUs"
        raise UserError(
            f"{need.section} with {need.gpu_key}={need.gpu} needs {need.gpus} GPUs ({need.count_key}={need.count}) "
            f"and the cluster has {gpus:g}: {remedy}, or use {need.gpu_key}=no"
        )
    return True


def _check_command(key: str, vllm: str) -> None:
    """Refuse a command that is not there. All nodes have what this one has."""
    command = shlex.split(vllm)
    if not vllm.startswith(("http://", "https://")) and (not command or shutil.which(command[0]) is None):
        raise UserError(
            f"{key}={vllm} is no command here: give the path of vllm in an environment of its own on every node, or"
            " the http address of a server that serves the model (docs/method.md)"
        )


def check_together(config: Config, cpus: float, gpus: float) -> None:
    """Refuse `pairs.stream=true` where sampling and training do not fit the cluster (`cpus`, `gpus`) at once.

    Raises:
        UserError: with the sums and the remedies.
    """
    needs = [request_of(config, section) for section in ("pairs", "align")]
    with_gpus = [need for need in needs if use_gpu(need, cpus, gpus)]
    asked = sum(need.cpus for need in needs)
    if asked > cpus + 1e-6:
        sums = " + ".join(need.told for need in needs)
        raise UserError(
            f"pairs.stream=true runs pairs and align at once, which needs {asked:g} CPUs ({sums}), and the cluster has "
            f"{cpus:g}: lower {needs[0].each_key}, {needs[0].count_key} or {needs[1].count_key}, give Ray more CPUs "
            "(ray.num_cpus where it is started here), or use pairs.stream=false"
        )
    asked_gpus = sum(need.gpus for need in with_gpus)
    if asked_gpus > gpus:
        sums = " + ".join(f"{need.count_key}={need.count}" for need in with_gpus)
        raise UserError(
            f"pairs.stream=true runs pairs and align at once, which needs {asked_gpus} GPUs ({sums}), and the cluster "
            f"has {gpus:g}: lower them, set pairs.gpu=no, or use pairs.stream=false"
        )


def stage_use_gpu(config: Config, section: str) -> bool:
    """`use_gpu` of a section on the running session."""
    from rosepo.run.ray_session import cluster_size

    return use_gpu(request_of(config, section), *cluster_size())


def _request_of_trials(config: Config) -> ResourceRequest:
    align = request_of(config, "align")
    trials = replace(align, section="sweep", count_key="sweep.concurrent", count=config.sweep.concurrent, data_each=0.0)
    if config.sweep.mode == "process":
        return trials
    # Beside the workers of its trainer a trial holds half a CPU of its own.
    return replace(trials, each_key=align.count_key, cpus_each=TRIAL_CPUS + align.cpus, gpus_each=align.count)
