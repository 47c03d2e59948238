"""A training that may take so long and no longer."""

from __future__ import annotations

from pathlib import Path

from rosepo.run.paths import RunPaths
from rosepo.training.feed.feed import micro_batches
from rosepo.training.rank import fit_in_process, train_rank
from rosepo.training.sft import sft_task
from tests.training.ranks import two_ranks
from tests.training.tiny_run import lines, tiny_config


def test_time_that_is_over_ends_a_training_at_its_next_line_of_metrics_with_a_validation(
    tiny_run: RunPaths, tmp_path: Path
) -> None:
    config = tiny_config(epochs=4, log_every=2, max_seconds=1e-6, best_metric="validation_loss")
    figures = fit_in_process(sft_task(config, tiny_run), tmp_path)
    assert (figures["steps"], figures["best_step"], figures["out_of_time"]) == (2, 2, True)
    assert "stopped_early" not in figures
    assert "validation_loss" in lines(tmp_path)[-1]
    assert (tmp_path / "model.safetensors").is_file()


def test_time_that_is_not_over_ends_nothing(tiny_run: RunPaths, tmp_path: Path) -> None:
    figures = fit_in_process(sft_task(tiny_config(max_seconds=3600.0), tiny_run), tmp_path)
    assert "out_of_time" not in figures


def _train(rank: int, run: RunPaths, out: Path) -> None:
    limit = 1e-6 if rank else 3600.0  # rank 1 alone is out of time
    task = sft_task(tiny_config(epochs=4, log_every=2, max_seconds=limit), run)
    figures = train_rank(task, micro_batches(task.plan, rank, 2), out)
    (out / f"{rank}.txt").write_text(str(figures["steps"]))


def test_ranks_whose_clocks_differ_stop_at_the_same_step(tiny_run: RunPaths, tmp_path: Path) -> None:
    two_ranks(_train, tiny_run, tmp_path)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["2", "2"]
