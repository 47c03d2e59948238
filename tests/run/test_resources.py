"""What stages ask of a cluster, and what is refused before Ray would wait for ever."""

from __future__ import annotations

import pytest

from rosepo.config import load_config
from rosepo.run.resources import check_together, request_of, use_gpu
from rosepo.utils.errors import UserError


def ask(section: str, cpus: float, gpus: float, *overrides: str) -> bool:
    return use_gpu(request_of(load_config(None, list(overrides)), section), cpus, gpus)


def test_more_workers_than_cpus_beside_ray_data_are_refused_with_what_would_fit() -> None:
    with pytest.raises(UserError, match=r"sft needs 5 CPUs \(sft.workers=4 .*: set sft.workers=3"):
        ask("sft", 4, 0, "sft.workers=4")
    assert not ask("sft", 4, 0, "sft.workers=3")


def test_two_workers_fit_two_cpus_when_ray_data_gets_its_share() -> None:
    assert not ask("sft", 2, 0, "sft.workers=2", "sft.cpus_per_worker=0.75")


@pytest.mark.parametrize(("gpus", "setting", "answer"), [(0, "auto", False), (2, "auto", True), (2, "no", False)])
def test_gpus_are_taken_where_they_are(gpus: int, setting: str, answer: bool) -> None:
    assert ask("align", 16, gpus, "align.workers=2", f"align.gpu={setting}") is answer


@pytest.mark.parametrize("setting", ["auto", "yes"])
def test_too_few_gpus_are_refused_rather_than_left_idle(setting: str) -> None:
    with pytest.raises(UserError, match=r"needs 4 GPUs .* has 2: set sft.workers=2, or use sft.gpu=no"):
        ask("sft", 16, 2, "sft.workers=4", f"sft.gpu={setting}")


def test_gpus_asked_for_must_be_there() -> None:
    with pytest.raises(UserError, match=r"needs 1 GPUs .* has 0: add GPUs, or use oracle.gpu=no"):
        ask("oracle", 4, 0, "oracle.gpu=yes")


def test_trials_of_a_sweep_take_gpus_as_alignment_does() -> None:
    assert ask("sweep", 4, 2, "sweep.concurrent=2")
    assert not ask("sweep", 4, 2, "sweep.concurrent=2", "align.gpu=no")
    with pytest.raises(UserError, match=r"needs 4 GPUs \(sweep.concurrent=2\) .*: set sweep.concurrent=1"):
        ask("sweep", 16, 3, "sweep.concurrent=2", "sweep.mode=trainer", "align.workers=2")


def test_a_sweep_of_trainers_names_the_workers_that_are_too_many() -> None:
    with pytest.raises(UserError, match=r"lower align.workers"):
        ask("sweep", 4, 0, "sweep.mode=trainer", "align.workers=4")


def together(cpus: float, gpus: float, *overrides: str) -> None:
    check_together(load_config(None, ["pairs.stream=true", *overrides]), cpus, gpus)


def test_streaming_needs_room_for_sampling_and_training_at_once() -> None:
    workers = ("align.workers=2", "pairs.actors=2")
    with pytest.raises(
        UserError,
        match=r"needs 4.5 CPUs \(pairs.actors=2 × 1 \+ align.workers=2 × 1 and 0.25 beside each\), and the cluster has"
        r" 4: .*pairs.stream=false",
    ):
        together(4, 0, *workers)
    together(4, 0, *workers, "pairs.cpus_per_actor=0.75")


def test_streaming_needs_gpus_for_sampling_and_training_at_once() -> None:
    with pytest.raises(UserError, match=r"needs 2 GPUs \(pairs.actors=1 \+ align.workers=1\), and the cluster has 1:"):
        together(8, 1)
    together(8, 1, "pairs.gpu=no")
    together(8, 2)
