"""model.template.candidates: one setting, refused where it cannot hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rosepo.cli.check import run_check
from rosepo.config import load_config
from rosepo.utils.errors import UserError
from tests.cli.test_check import write_log

LISTING = ("model.template.candidates=true", "prepare.candidates=20")


def test_prompts_list_candidates_by_one_setting() -> None:
    assert load_config(None, LISTING).reads_candidates
    assert not load_config(None, ["prepare.candidates=20"]).reads_candidates
    assert load_config(None, ["prepare.candidates=20", "pairs.strategies={candidates: 1}"]).reads_candidates


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (LISTING[:1], r"prepare\.candidates=0 writes none: set it to 20"),
        (["model.template.candidates_prefix=Of"], r"is used by model\.template\.candidates=true alone"),
        ([*LISTING, "align.rows=trajectory"], r"align\.rows=trajectory shares prompts.*use align\.rows=group"),
        ([*LISTING, "pairs.engine=vllm"], r"pairs\.engine=vllm searches the catalogue.*leave pairs\.engine out"),
        ([*LISTING, "evaluate.engine=vllm"], r"evaluate\.engine=vllm searches.*leave evaluate\.engine out"),
        ([*LISTING, "pairs.strategies={policy: 1}"], r"strategies\.policy draws from the whole catalogue.*self_hard"),
        ([*LISTING, "sft.validation_users=9"], r"sft\.validation_users=9 search the catalogue.*validation_loss"),
        ([*LISTING, "align.validation_users=9"], r"align\.validation_users=9 search the catalogue"),
        ([*LISTING, "evaluate.free_generation=9"], r"evaluate\.free_generation.*every example is answered freely"),
    ],
)
def test_settings_that_candidates_in_prompts_leave_no_meaning_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config(None, overrides)


def test_check_counts_an_example_a_row_and_leaves_room_for_the_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path, "Film H")
    files = [f"data.{kind}={tmp_path / name}.csv" for kind, name in (("interactions", "log"), ("items", "items"))]
    small = ["prepare.k_core=1", "pairs.negatives=1", "model.scratch.vocab_size=300", "model.max_length=128"]
    rows, items = {}, {}
    for name, listed in (("plain", []), ("listing", ["model.template.candidates=true", "prepare.candidates=3"])):
        run_check(load_config(None, [*files, *small, *listed]), tmp_path / "out")
        told = capsys.readouterr().err
        rows[name] = int(re.search(r"^ *sft +(\d+)", told, re.MULTILINE)[1])  # type: ignore[index]
        items[name] = int(re.search(r"about (\d+) items fit", told)[1])  # type: ignore[index]
    assert rows == {"plain": 8, "listing": 16}  # eight users, two training examples each
    assert items["listing"] < items["plain"]
