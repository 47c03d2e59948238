"""model.template.candidates: one setting, refused where it cannot hold."""

from __future__ import annotations

import pytest

from rosepo.config import load_config
from rosepo.errors import UserError

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
        ([*LISTING, "pairs.engine=vllm"], r"pairs\.engine=vllm writes freely.*leave pairs\.engine out"),
        ([*LISTING, "sft.validation_users=9"], r"sft\.validation_users=9 search the catalogue.*validation_loss"),
        ([*LISTING, "align.validation_users=9"], r"align\.validation_users=9 search the catalogue"),
        ([*LISTING, "evaluate.free_generation=9"], r"evaluate\.free_generation.*every example is answered freely"),
    ],
)
def test_settings_that_candidates_in_prompts_leave_no_meaning_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config(None, overrides)
