from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
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
    assert loaded.index(ids[::-1]).tolist() == [2, 1, 0]
    assert loaded.index(ids[[1]].tolist()).tolist() == [1]
    assert loaded.index([]).tolist() == []


def test_unknown_ids_are_named() -> None:
    catalogue = Catalogue(np.array([1, 2]), ["A", "B"], [(), ()], np.array([0, 0]))
    with pytest.raises(UserError, match=r"item id .*7.* is not one of the 2"):
        catalogue.index([1, 7])
    with pytest.raises(UserError, match="ids are integers"):
        catalogue.index(["1"])


def test_a_missing_or_foreign_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Catalogue.load(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        Catalogue.load(tmp_path / "text.parquet")


@pytest.mark.parametrize("lists", [[], [[]], [[11], [], [10, 12]]])
def test_every_list_of_a_column_comes_back_as_indexes(lists: list[list[int]]) -> None:
    catalogue = Catalogue(np.array([10, 11, 12]), ["A", "B", "C"], [()] * 3, np.zeros(3, dtype=np.int64))
    found = catalogue.index_lists(pa.chunked_array([pa.array(lists, pa.list_(pa.int64()))]))
    assert [part.tolist() for part in found] == [[item - 10 for item in items] for items in lists]
