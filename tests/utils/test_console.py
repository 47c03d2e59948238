"""What is told of work that goes on elsewhere."""

from __future__ import annotations

from pathlib import Path

from rosepo.utils.console import follow


def test_a_log_that_is_cut_back_and_grows_past_its_old_end_is_followed_on(tmp_path: Path) -> None:
    log, aside = tmp_path / "metrics.jsonl", tmp_path / "aside"
    log.write_text('{"step": 0}\n{"step": 1}\n')
    aside.write_text('{"step": 0}\n{"step": 1, "loss": 2.5, "margin": 0.1}\n{"step": 2}\n')
    seen: list[int] = []
    with follow(log, lambda figures: seen.append(figures["step"]), interval=0.05):
        aside.replace(log)  # between two looks, the old end in the middle of a line
        with log.open("a") as file:
            file.write('{"step": 3}\n')
    assert seen == [2, 3]
