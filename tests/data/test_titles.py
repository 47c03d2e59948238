from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosepo.data.titles import distinct_titles, normalised
from rosepo.utils.errors import UserError


def test_case_width_and_white_space_do_not_tell_titles_apart() -> None:
    assert len({normalised(t) for t in ("Straße", "STRASSE", " strasse ", "ｓｔｒａｓｓｅ", "stra\u00dfe")}) == 1
    unseen = ("Café\u200b", "\ufeffCafé", "Ca\u00adfé", "Ca\u200dfé", "Café\x00", "Caf\u0065\u0301", "\u202aCafé\u202c")
    assert {normalised(title) for title in unseen} == {"café"}
    assert normalised("a \u200b b") == normalised("a b")


def test_refusing_names_both_items_and_the_remedy() -> None:
    with pytest.raises(UserError, match=r"items 7 \('Heat'\) and 9 \('HEAT'\).*duplicate_titles=disambiguate"):
        distinct_titles(["Heat", "Ronin", "HEAT"], [7, 8, 9], "refuse")


def test_numbers_pass_over_titles_that_exist() -> None:
    titles, changed = distinct_titles(["Heat", "Heat (2)", "heat", "Heat"], [1, 2, 3, 4], "disambiguate")
    assert titles == ["Heat", "Heat (2)", "heat (3)", "Heat (4)"]
    assert changed == 2


def test_thousands_of_equal_titles_are_numbered_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counting(title: str) -> str:
        calls.append(title)
        return normalised(title)

    monkeypatch.setattr("rosepo.data.titles.normalised", counting)
    found, changed = distinct_titles(["Heat"] * 2_000, list(range(2_000)), "disambiguate")
    assert found == ["Heat", *(f"Heat ({number})" for number in range(2, 2_001))]
    assert changed == 1_999
    assert len(calls) < 4 * 2_000


@given(st.lists(st.sampled_from(["a", "A", "a (2)", "A (2)", "a (2) (2)", "b", "a (3)"]), max_size=12))
def test_disambiguated_titles_are_always_distinct(titles: list[str]) -> None:
    found, changed = distinct_titles(titles, list(range(len(titles))), "disambiguate")
    assert len({normalised(title) for title in found}) == len(titles)
    assert changed == sum(a != b for a, b in zip(found, titles))
    assert changed == len(titles) - len({normalised(title) for title in titles})
