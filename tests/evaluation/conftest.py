"""Ranking without processes of its own, for tests that are about what is ranked."""

from __future__ import annotations

import pytest

from tests.evaluation.runs import rank_in_process


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage's one actor works in this process; those on Ray have tests of their own."""
    rank_in_process(monkeypatch.setattr)
