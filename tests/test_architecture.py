"""The house: who may import whom, how full a folder may be, and that docs/architecture.md says the same."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
DOZEN = 12
WITH_RAY = {
    "data": {"prepare/counting", "prepare/log", "readers/interactions"},
    "evaluation": {"recommend"},
    "oracle": {"fit"},
    "pipeline": {"streaming"},
    "run": {"ray_session"},
    "training": {"feed/feed", "trainer"},
    "tuning": {"sweep", "trial_progress"},
}
"""Files that import Ray, by folder; docs/architecture.md names them too."""


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """The import contract on the package in `root`."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env={"PYTHONPATH": str(root), "PATH": ""})


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package's code to plant imports in."""
    shutil.copytree(ROOT / "rosepo", tmp_path / "rosepo", ignore=shutil.ignore_patterns("*.parquet", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def plant(root: Path, file: str, line: str) -> None:
    path = root / "rosepo" / file
    path.write_text(path.read_text() + f"\n\ndef _planted() -> None:\n    {line}\n")


def test_the_contract_holds_and_a_planted_upward_import_breaks_it(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    plant(copy, "metrics/bias.py", "from rosepo.report import tables")
    done = lint(copy)
    assert done.returncode == 1
    assert "rosepo.metrics.bias -> rosepo.report.tables" in done.stdout


def test_a_planted_circle_between_two_files_of_a_folder_breaks_it(copy: Path) -> None:
    plant(copy, "training/engine.py", "from rosepo.training import loop")
    done = lint(copy)
    assert done.returncode == 1
    assert "No cycles are allowed in rosepo.training" in done.stdout


def test_the_document_names_the_floors_of_the_contract() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)/` \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    told: dict[int, set[str]] = {}
    for floor, folder in rows:
        told.setdefault(int(floor), set()).add(folder)
    held = [set(floor.split(" | ")) for floor in reversed(FLOORS) if floor != "__main__"]
    assert told == dict(enumerate(held, 1))


def test_ray_is_imported_where_the_document_says() -> None:
    found: dict[str, set[str]] = {}
    for path in (ROOT / "rosepo").rglob("*.py"):
        if re.search(r"^\s*(import|from) ray\b", path.read_text(), re.MULTILINE):
            folder, *rest = path.relative_to(ROOT / "rosepo").with_suffix("").parts
            found.setdefault(folder, set()).add("/".join(rest))
    assert found == WITH_RAY
    text = (ROOT / "docs" / "architecture.md").read_text()
    for folder, files in WITH_RAY.items():
        row = next(line for line in text.splitlines() if re.match(rf"\| \d+ \| `{folder}/`", line))
        assert all(f"`{file}`" in row for file in files), f"{folder}/ names other files than {files}"


def test_a_folder_fits_a_screen_and_the_top_level_holds_folders_alone() -> None:
    assert {path.name for path in (ROOT / "rosepo").glob("*.py")} == {"__init__.py", "__main__.py"}
    for folder in {path.parent for path in (ROOT / "rosepo").rglob("*.py")}:
        files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= DOZEN, f"{folder} holds {len(files)} files: {sorted(files)}"
