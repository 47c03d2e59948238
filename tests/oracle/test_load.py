"""What an oracle's folder says of itself: which kind it holds, and for which catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rosepo.data.catalogue import Catalogue
from rosepo.oracle.load import load_scorer, write_kind
from rosepo.oracle.sasrec import catalogue_digest
from rosepo.utils.errors import UserError
from tests.helpers import tiny_catalogue

N_ITEMS = 7


def distance(catalogue: Catalogue) -> Any:
    """A scorer of one's own: minus the distance to the newest item."""
    return lambda users, histories, items: -np.abs(items - np.array([history[-1] for history in histories])[:, None])


def test_an_oracle_folder_says_what_it_holds_and_for_which_catalogue(tmp_path: Path) -> None:
    catalogue = tiny_catalogue(N_ITEMS)
    with pytest.raises(UserError, match="not an oracle folder"):
        load_scorer(tmp_path, catalogue)
    about = {"scorer": "tests.oracle.test_load:distance", "tau": 0.3}
    write_kind(tmp_path, "scorer", **about, catalogue_digest=catalogue_digest(catalogue.item_ids))
    scorer = load_scorer(tmp_path, catalogue)
    assert scorer.tau == 0.3
    assert scorer.score([0], [np.array([1])], np.array([[4]])).tolist() == [[-3.0]]
    with pytest.raises(UserError, match="made for another catalogue"):
        load_scorer(tmp_path, tiny_catalogue(N_ITEMS + 1))


@pytest.mark.parametrize("kind", ["table", "oracle of Delphi"])
def test_a_folder_of_a_kind_that_is_not_known_is_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    write_kind(tmp_path, kind, tau=1.0)
    message = rf"oracle\.json names the kind of oracle '{kind}', and known are sasrec and scorer: run `rosepo oracle"
    with pytest.raises(UserError, match=message):
        load_scorer(tmp_path, tiny_catalogue(N_ITEMS))
