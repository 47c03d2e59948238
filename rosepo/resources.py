"""What each stage asks of the cluster, compared with what is there before anything starts.

Ray waits for ever for CPUs that a cluster does not have, and Ray Data for those that training holds: so the sums are
checked beforehand, here alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from rosepo.config import Config
from rosepo.errors import UserError

FEED_CPUS = 0.25
"""CPUs that the Ray Data actor feeding one training worker asks for."""
_COUNTS = {"sft": "workers", "align": "workers", "oracle": "workers", "pairs": "actors", "evaluate": "actors"}


@dataclass(frozen=True)
class Need:
    """Processes that a stage runs at once.

    Attributes:
        section: of the configuration.
        count_key, each_key: keys that say how many, and with how many CPUs each.
        count: processes.
        cpus_each: CPUs that each asks Ray for.
        data_each: CPUs for Ray Data beside each.
        gpu: auto, yes or no.
    """

    section: str
    count_key: str
    each_key: str
    count: int
    cpus_each: float
    data_each: float
    gpu: str

    @property
    def cpus(self) -> float:
        """CPUs that must be there at once."""
        return self.count * (self.cpus_each + self.data_each)


def need_of(config: Config, section: str) -> Need:
    """What a section of the configuration asks for: sft, oracle, pairs, align, evaluate, recommend or sweep."""
    if section == "sweep":
        return _sweep_need(config)
    settings = getattr(config, section)
    count_key = _COUNTS.get(section, "actors")
    each_key = "cpus_per_worker" if count_key == "workers" else "cpus_per_actor"
    data = FEED_CPUS if section in ("sft", "align") else 0.0
    return Need(
        section, count_key, each_key, getattr(settings, count_key), getattr(settings, each_key), data, settings.gpu
    )


def use_gpu(need: Need, cpus: float, gpus: float) -> bool:
    """Whether each process takes a GPU; refuses what the cluster (`cpus`, `gpus`) can never run.

    Raises:
        UserError: with the sum and the remedy.
    """
    if need.cpus > cpus + 1e-6:
        most = int(cpus / (need.cpus_each + need.data_each))
        beside = f", and {need.data_each:g} beside each for Ray Data" if need.data_each else ""
        remedy = f"set {need.section}.{need.count_key}={most}" if most else f"lower {need.section}.{need.each_key}"
        raise UserError(
            f"{need.section} needs {need.cpus:g} CPUs ({need.section}.{need.count_key}={need.count} × "
            f"{need.cpus_each:g}{beside}) and the cluster has {cpus:g}: {remedy}, or give Ray more CPUs "
            "(ray.num_cpus where it is started here)"
        )
    if need.gpu == "yes" and gpus < need.count:
        raise UserError(
            f"{need.section}.gpu=yes needs {need.count} GPUs, one each for {need.section}.{need.count_key}, "
            f"and the cluster has {gpus:g}: lower {need.section}.{need.count_key} or use {need.section}.gpu=auto"
        )
    return need.gpu != "no" and gpus >= need.count


def stage_use_gpu(config: Config, section: str) -> bool:
    """`use_gpu` of a section on the running session."""
    from rosepo.session import cluster_cpus, cluster_gpus

    return use_gpu(need_of(config, section), cluster_cpus(), cluster_gpus())


def _sweep_need(config: Config) -> Need:
    align, trials = need_of(config, "align"), config.sweep.concurrent
    if config.sweep.mode == "process":
        return Need("sweep", "concurrent", "concurrent", trials, align.cpus_each, 0.0, align.gpu)
    # Every trial holds half a CPU while its trainer's workers run.
    return Need("sweep", "concurrent", "concurrent", trials, 0.5 + align.cpus, 0.0, align.gpu)
