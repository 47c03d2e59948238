"""Groups of validation examples: what `align` looks at while it trains."""

from __future__ import annotations

VALIDATION_FILE = "_validation.parquet"
"""In the folder of the groups; its name is passed over by readers of Parquet folders."""
