"""Reports of runs whose rankings were made without processes of their own."""

from __future__ import annotations

from tests.evaluation.conftest import in_process as in_process
