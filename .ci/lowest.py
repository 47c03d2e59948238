"""Print the lowest versions that pyproject.toml allows as constraints: what `make test-lowest` installs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

for requirement in PROJECT["dependencies"]:
    found = re.match(r"([\w-]+)(?:\[[^]]*\])?>=([\w.]+)", requirement)
    if found is None:
        raise SystemExit(f"pyproject.toml: the dependency {requirement} states no lower bound: begin its range with >=")
    print(f"{found[1]}=={found[2]}")
