"""What is told on screen when the work is done."""

from __future__ import annotations

from rosepo.cli.summary import candidates_table
from rosepo.evaluation.candidates.free_generation import SERIES


def test_the_table_names_every_rate_and_every_probe() -> None:
    figure = {"value": 0.25, "low": 0.2, "high": 0.31}
    shown = candidates_table(
        {
            "n_examples": 1200,
            "n_users": 700,
            "n_candidates": 20,
            "models": {"sft": dict.fromkeys(SERIES, figure) | {"hr@1_valid": dict.fromkeys(figure, None)}},
            "probes": {"slot": figure, "popularity": figure},
        }
    )
    assert "out of 20 candidates, 1,200 examples of 700 users" in shown
    assert "0.250 [0.200, 0.310]" in shown
    assert "probe: slot" in shown
    assert "ValidRatio" in shown
