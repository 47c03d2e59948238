"""The tables of losses and of strategies: what their entries may not do, and where people read of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rosepo.config import LOSSES, STRATEGIES, AlignConfig, PairsConfig
from rosepo.utils.imports import find_callable

METHOD = Path(__file__).parents[2] / "docs" / "method.md"


@pytest.mark.parametrize("name", [*LOSSES, *STRATEGIES])
def test_the_document_tells_of_every_entry(name: str) -> None:
    assert f"`{name}`" in METHOD.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [*(loss.function for loss in LOSSES.values()),
                                  *(entry.maker for entry in STRATEGIES.values())])  # fmt: skip
def test_what_an_entry_names_is_there(path: str) -> None:
    assert find_callable(path, "table").__module__ == path.partition(":")[0]


def test_the_keys_of_entries_are_fields_or_options_and_never_both() -> None:
    taken = [(AlignConfig, [key for loss in LOSSES.values() for key in loss.settings])]
    taken += [(PairsConfig, [key for entry in STRATEGIES.values() for key in entry.keys])]
    for section, keys in taken:
        assert not set(section.options()) & set(section.model_fields)
        assert set(keys) <= set(section.known_keys())
        assert set(section.options()) <= set(keys)


def test_a_limit_or_a_variant_of_a_strategy_is_one_of_its_options() -> None:
    for entry in STRATEGIES.values():
        keys = {option.key: option for option in entry.options}
        assert entry.top is None or entry.top in keys
        assert (entry.variant_key is None) == (not entry.variants)
        if entry.variant_key is not None:
            assert set(keys[entry.variant_key].kind.__args__) == set(entry.variants)
    assert len({entry.colour for entry in STRATEGIES.values()}) == len(STRATEGIES)
