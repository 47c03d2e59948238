"""The one command that a newcomer types, on a log with structure, with no settings but paths."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rosepo.data.catalogue import ITEMS_FILE

pytestmark = pytest.mark.slow

N_USERS, N_SERIES, PARTS, LENGTH = 300, 8, 16, 14


def write_log(folder: Path) -> list[str]:
    """Everybody follows two series part by part, mostly in turns: what comes next is told by the item before the last
    one, which a Markov chain does not see."""
    rng = np.random.default_rng(0)
    titles = {
        series * PARTS + part: f"Series {series + 1}, part {part + 1}"
        for series in range(N_SERIES)
        for part in range(PARTS)
    }
    rows = []
    for user in range(N_USERS):
        at = {int(series): int(rng.integers(0, 4)) for series in rng.choice(N_SERIES, 2, replace=False)}
        turn = list(at)
        for time in range(LENGTH):
            if rng.random() < 0.9:
                turn.reverse()
            series = turn[0]
            rows.append((user, series * PARTS + at[series] % PARTS, 1000 * user + time))
            at[series] += 1
    for name, header, content in (
        ("ratings.csv", ("user_id", "item_id", "timestamp"), rows),
        ("items.csv", ("item_id", "title"), list(titles.items())),
    ):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([header, *content])
    return ["--interactions", str(folder / "ratings.csv"), "--items", str(folder / "items.csv")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("own")
    command = [sys.executable, "-m", "rosepo", "run", *write_log(folder), "--out", str(folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run", done.stderr


def test_the_aligned_model_is_above_the_baselines_that_need_no_training(finished: tuple[Path, str]) -> None:
    metrics = json.loads((finished[0] / "metrics.json").read_text())
    for baseline in ("popular", "markov"):
        difference = metrics["differences"][f"aligned-{baseline}"]["ndcg@10"]
        assert difference["low"] > 0, (
            baseline,
            {name: one["ndcg@10"]["value"] for name, one in metrics["models"].items()},
        )


def test_what_followed_from_the_data_is_told_and_kept(finished: tuple[Path, str]) -> None:
    run, said = finished
    chosen = json.loads((run / "manifest.json").read_text())["chosen"]
    items = len(pq.read_table(run / "examples" / ITEMS_FILE))
    assert items <= N_SERIES * PARTS
    assert chosen["model.scratch.whole_titles"]["value"] == items
    assert "settings that follow from the data" in said
    assert "sft.epochs=" in said
    assert "sweep" not in said
    # What was typed is kept, not what followed: another log under the same settings chooses anew.
    assert "whole_titles" not in (run / "config.yaml").read_text()


def test_the_end_fits_on_a_screen(finished: tuple[Path, str]) -> None:
    summary = finished[1][finished[1].index("  Data     ") :]
    assert len(summary.splitlines()) <= 30
    assert "  Chosen   model.scratch.whole_titles=" in summary
    assert "Alignment" in summary
