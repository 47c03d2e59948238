"""`rosepo check`: what it refuses before a run begins, and what it says of the model."""

from __future__ import annotations

import re
from pathlib import Path

from tests.test_cli import call


def write_log(folder: Path, longest: str) -> list[str]:
    """Eight users who each saw five of eight items, one after the other; the last item's title is given."""
    walks = [(user, step, (user + step) % 8) for user in range(8) for step in range(5)]
    lines = ["user_id,item_id,timestamp", *(f"{user},{item},{100 * user + step}" for user, step, item in walks)]
    (folder / "log.csv").write_text("\n".join(lines))
    titles = [f"Film {chr(65 + item)}" for item in range(7)]
    rows = [f"{item},{title}" for item, title in enumerate([*titles, longest])]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *rows]))
    return ["--interactions", str(folder / "log.csv"), "--items", str(folder / "items.csv")]


def check(arguments: list[str], folder: Path, max_length: int) -> tuple[int, str]:
    settings = (
        f"model.max_length={max_length}",
        "prepare.k_core=1",
        "pairs.negatives=1",
        "model.scratch.vocab_size=300",
    )
    sets = [word for setting in settings for word in ("--set", setting)]
    result = call("check", *arguments, *sets, "--out", str(folder / "out"))
    return result.returncode, result.stdout + result.stderr


def test_a_title_that_cannot_fit_is_refused_with_the_length_that_it_needs(tmp_path: Path) -> None:
    title = " ".join(f"{number}th" for number in range(60))
    arguments = write_log(tmp_path, title)
    code, told = check(arguments, tmp_path, 32)
    needed = re.search(r"max_length=32 has no room for title '0th 1th.*; raise it to (\d+)", told)
    assert needed, told
    assert (code, "items fit" in told, "Traceback" in told) == (2, False, False)
    code, told = check(arguments, tmp_path, int(needed[1]))
    assert code == 0, told
    fit = re.search(r"about (\d+) items fit", told)
    assert fit, told
    assert int(fit[1]) >= 1
