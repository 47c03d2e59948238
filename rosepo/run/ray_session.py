"""One Ray session around the work: join the cluster that is named, or start one here and take it down again."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from rosepo.config import RayConfig
from rosepo.run.joining import check_session, joining, joins_cluster, unreachable
from rosepo.run.signals import handlers_kept
from rosepo.utils.errors import UserError
from rosepo.utils.quiet import quiet_libraries

if TYPE_CHECKING:
    from ray.data import Dataset

RESTARTS = 3
"""Times that a lost actor or process is started again, and that what it was at is given to one again."""
LOCAL_CPUS = 4
"""CPUs that a local Ray schedules at least: two training workers, and Ray Data beside them on the same real cores."""


def local_cpus(config: RayConfig) -> int:
    """CPUs that a Ray started on this machine may schedule."""
    return config.num_cpus or max(LOCAL_CPUS, os.cpu_count() or 1)


@contextmanager
def ray_session(config: RayConfig, debug: bool = False) -> Iterator[None]:
    """Ray, ready for the body. What was started here is shut down after it; a session that was there before stays.

    Raises:
        UserError: the named cluster cannot be reached, or num_cpus is given for a cluster that has its own.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    joins = joins_cluster(config)
    if joins and config.num_cpus is not None:
        raise UserError("ray.num_cpus is used where Ray is started here, and a cluster is being joined: leave it out")
    # How often the controller looks at its workers: at the default of two seconds, start and end of a small training
    # wait for it.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    check_session(config)
    if not joins:
        # Watches for nodes that a cloud takes away; costs five seconds a trainer, and this machine is the only node.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not debug:
        quiet_libraries()
        # Ray's core prints stack dumps at SIGTERM, and a line about restarts at every pool of Ray Data actors
        # (https://github.com/ray-project/ray/issues/53727), on the user's own screen.
        os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # Ray Tune's newer output prints a banner whatever its verbosity; the older one keeps quiet.
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Ray's own handler of SIGTERM, which leaves with another exit code, is for programs that have none.
    own = [signal.SIGTERM] if callable(signal.getsignal(signal.SIGTERM)) else []
    try:
        with (
            joining(config) if joins else nullcontext(),
            nullcontext() if debug else _core_muted(),
            handlers_kept(*own),
        ):
            if joins:
                ray.init(address=config.address, log_to_driver=debug)
            else:
                # The dashboard stays on (and on loopback): Ray Train cleans its placement groups up through it.
                ray.init(
                    address="local",
                    num_cpus=local_cpus(config),
                    dashboard_host="127.0.0.1",
                    log_to_driver=debug,
                )
    except ConnectionError as error:
        raise unreachable(config, error) from error
    _quiet_ray_data(debug)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _core_muted() -> Iterator[None]:
    """Ray's core says on stderr, below Python, that it found its log level; errors come as exceptions."""
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def cluster_size() -> tuple[float, float]:
    """CPUs and GPUs of the running session."""
    import ray

    there = ray.cluster_resources()
    return there.get("CPU", 0.0), there.get("GPU", 0.0)


def work_dataset(rows: Sequence[dict[str, Any]]) -> Dataset:
    """A Ray data set of one block a row, for plans that actors carry out.

    The blocks are made in this process: tasks that read or measured them would need CPUs that actors and training
    workers hold, and would start processes only for that.
    """
    import ray.data

    return ray.data.from_items(list(rows), override_num_blocks=len(rows))


def map_by_actors(dataset: Dataset, actor: type[Any], **options: Any) -> Dataset:
    """`dataset.map_batches` by actors; one that is lost is started again `RESTARTS` times.

    By itself Ray Data restarts for ever: work that kills whoever takes it would never end.
    """
    with warnings.catch_warnings():
        # Ray 2.60 warns that extra arguments will go, and has no other way to bound restarts.
        warnings.simplefilter("ignore", DeprecationWarning)
        return dataset.map_batches(actor, max_restarts=RESTARTS, max_task_retries=RESTARTS, **options)


def answers_of_actors(
    work: Sequence[dict[str, Any]],
    actor: type[Any],
    settings: Any,
    *,
    actors: int,
    cpus_per_actor: float,
    gpus_per_actor: int,
) -> Iterator[dict[str, Any]]:
    """Send rows of work through a pool of actors that write their results themselves; what each answers to a row.

    Args:
        actor: made of `settings`; called with an Arrow table of one row, it returns columns of one answer.
        gpus_per_actor: 0 where actors use none.
    """
    from ray.data import ActorPoolStrategy

    plan = work_dataset(work)
    plan.context.execution_no_progress_timeout_s = -1  # by itself Ray 2.60 ends it where a row takes half an hour
    done = map_by_actors(
        plan,
        actor,
        fn_constructor_args=(settings,),
        compute=ActorPoolStrategy(size=min(actors, len(work))),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=cpus_per_actor,
        num_gpus=float(gpus_per_actor),
    )
    return iter(done.iter_rows())


def _quiet_ray_data(debug: bool) -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = debug
    context.print_on_execution_start = debug
