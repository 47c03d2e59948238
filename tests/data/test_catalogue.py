from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rosepo.data.catalogue import Catalogue
from rosepo.utils.errors import UserError


@pytest.mark.parametrize("ids", [np.array([30, 4, 9]), np.array(["x", "a", "10"], dtype=object)])
def test_saved_and_loaded_catalogues_are_equal(tmp_path: Path, ids: np.ndarray) -> None:
    catalogue = Catalogue(ids, ["A", "B", "Ç"], [("x", "y"), (), ("z",)], np.array([3, 0, 1]))
    catalogue.save(tmp_path / "_items.parquet")
    loaded = Catalogue.load(tmp_path / "_items.parquet")
    assert loaded.item_ids.tolist() == ids.tolist()
    assert (loaded.titles, loaded.categories) == (catalogue.titles, catalogue.categories)
    assert loaded.train_count.tolist() == [3, 0, 1]
    assert loaded.same_items(catalogue)
    assert not loaded.same_items(replace(catalogue, item_ids=ids[::-1]))
    assert not loaded.same_items(replace(catalogue, titles=["A", "B", "C"]))


def test_a_missing_or_foreign_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Catalogue.load(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        Catalogue.load(tmp_path / "text.parquet")
