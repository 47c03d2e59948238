"""What systems of others are called."""

from __future__ import annotations

import pytest

from rosepo.config import load_config
from rosepo.utils.errors import UserError


def names(**lists: str) -> list[str]:
    settings = load_config(None, [f"evaluate.{key}=[{entries}]" for key, entries in lists.items()]).evaluate
    return [f"{system.kind}:{name}:{system.location}" for name, system in settings.external.items()]


def test_a_system_is_called_by_its_location_or_by_the_name_in_front_of_it() -> None:
    assert names(models="runs/other/aligned-2/, Qwen/Qwen3-1.7B, base=Qwen/Qwen3-1.7B") == [
        "models:other_aligned_2:runs/other/aligned-2/",
        "models:Qwen3_1.7B:Qwen/Qwen3-1.7B",
        "models:base:Qwen/Qwen3-1.7B",
    ]
    assert names(predictions="'lists/My BPR.csv.gz', s3://b/top=20/x.parquet") == [
        "predictions:My_BPR:lists/My BPR.csv.gz",
        "predictions:x:s3://b/top=20/x.parquet",
    ]
    assert names(predictions="./my-bpr=1.csv, x=top=20.csv") == [
        "predictions:my_bpr_1:./my-bpr=1.csv",
        "predictions:x:top=20.csv",
    ]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"models": "a/bpr", "predictions": "bpr.csv"}, "would be called 'bpr', which is a/bpr, too: give it another"),
        ({"models": "sft"}, "would be called 'sft', which is the run's own"),
        ({"predictions": "aligned.csv"}, "'aligned', which is the run's own"),
        ({"predictions": "'*'"}, "tells no name"),
        ({"predictions": "s3://me:secret@b/x.csv"}, "carries credentials"),
        ({"predictions": "my-bpr=bpr.csv"}, r"'my-bpr=bpr.csv' is not NAME=LOCATION, with letters, digits"),
        ({"models": "=Qwen/Qwen3-1.7B"}, "is not NAME=LOCATION"),
        ({"models": "base="}, "is not NAME=LOCATION"),
    ],
)
def test_names_that_clash_or_are_none_are_refused(lists: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        names(**lists)
