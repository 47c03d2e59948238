"""Finished runs as `rosepo compare` reads them: figures, settings, and what they measured of every example."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from rosepo.artifacts import read_manifest
from rosepo.data.catalogue import Catalogue
from rosepo.errors import UserError
from rosepo.evaluation import bias
from rosepo.evaluation.metrics import accuracy
from rosepo.evaluation.rankings import read_rankings

_EXAMPLES = ("example_id", "user_id", "target")


@dataclass(frozen=True)
class Run:
    """A run that was evaluated.

    Attributes:
        mark: one or two letters, what pictures call it.
        name: as much of its path as tells it from the others.
        metrics: of `metrics.json`.
        manifests: by stage, in the order of work.
    """

    mark: str
    name: str
    root: Path
    metrics: dict[str, Any]
    manifests: dict[str, dict[str, Any]]

    @property
    def title(self) -> str:
        return f"{self.mark} · {self.name}"

    @property
    def model(self) -> str:
        """The model that stands for the run: the aligned one, or SFT where there is none."""
        return "aligned" if "aligned" in self.metrics["models"] else "sft"

    @property
    def figures(self) -> dict[str, Any]:
        """The figures of that model."""
        return dict(self.metrics["models"][self.model])

    @property
    def before(self) -> dict[str, Any] | None:
        """The figures of the SFT model that an alignment went on from; None where there is none."""
        found: dict[str, Any] | None = self.metrics["models"].get("sft") if self.model == "aligned" else None
        return found

    @cached_property
    def settings(self) -> dict[str, str]:
        """Every setting that its results depend on, and the digests of its data files, as text."""
        found: dict[str, str] = {}
        for stage, manifest in self.manifests.items():
            if stage != "sweep":
                found |= {key: _plain(value) for key, value in manifest.get("settings", {}).items()}
                found |= {f"file {name}": digest for name, digest in manifest.get("files", {}).items()}
        revisions = {str(manifest["revision"]) for manifest in self.manifests.values() if manifest.get("revision")}
        return found | ({"revision": ", ".join(sorted(revisions))} if revisions else {})

    @cached_property
    def examples(self) -> dict[str, np.ndarray] | None:
        """Ids, users and targets of what was measured, by id; None where the tables are not there any more."""
        path = self.root / "evaluation" / "_examples.parquet"
        if not path.is_file() or not (self.root / "examples" / "_items.parquet").is_file():
            return None
        table = pq.read_table(path, columns=list(_EXAMPLES))
        columns = {name: table[name].to_numpy() for name in _EXAMPLES}
        order = np.argsort(columns["example_id"].astype(str), kind="stable")
        return {name: column[order] for name, column in columns.items()} | {"order": order}

    def series(self) -> dict[str, np.ndarray]:
        """Accuracy and popularity of its model on every example, float64 [N] each, in the order of `examples`.

        Raises:
            UserError: the rankings are not there any more.
        """
        folder = self.root / "evaluation" / "rankings" / f"{self.model}.parquet"
        if self.examples is None or not any(folder.glob("part-*.parquet")):
            raise UserError(f"{folder} holds no rankings: run `rosepo evaluate --out {self.root} --overwrite` again")
        catalogue = Catalogue.load(self.root / "examples" / "_items.parquet")
        ranks, items = read_rankings(folder, catalogue)
        popularity = bias.popularity_series(items[:, : bias.LIST], bias.Popularity.of(catalogue.train_count))
        return {key: values[self.examples["order"]] for key, values in (accuracy(ranks) | popularity).items()}


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in the order given.

    Raises:
        UserError: fewer than two, one twice, a folder that is no evaluated run, or runs of different splits.
    """
    if len(folders) < 2:
        raise UserError("compare needs two runs at least: rosepo compare RUN_A RUN_B")
    for place, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:place]]:
            raise UserError(f"{folder} was given twice: name every run once")
    names = _names(folders)
    runs = [_read(folder, _mark(place), names[place]) for place, folder in enumerate(folders)]
    for run in runs[1:]:
        if run.metrics["split"] != runs[0].metrics["split"]:
            raise UserError(
                f"{run.root} was evaluated on the {run.metrics['split']} split and {runs[0].root} on the "
                f"{runs[0].metrics['split']} split: evaluate both with the same evaluate.split"
            )
    return runs


def why_unpaired(run: Run, base: Run) -> str | None:
    """A sentence on why two runs cannot be compared example by example; None where they can."""
    for one in (run, base):
        if one.examples is None or not any((one.root / "evaluation/rankings" / f"{one.model}.parquet").glob("part-*")):
            return f"The rankings of {one.title} are not there any more, so its intervals stand alone."
    mine, theirs = run.examples, base.examples
    assert mine is not None
    assert theirs is not None
    if all(np.array_equal(mine[name], theirs[name]) for name in _EXAMPLES):
        return None
    return (
        f"{run.title} and {base.title} were not measured on the same examples ({len(mine['order']):,} and "
        f"{len(theirs['order']):,}), so there is no paired difference: compare their intervals with care."
    )


def _read(folder: Path, mark: str, name: str) -> Run:
    path = folder / "evaluation" / "metrics.json"
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give the --out folders of runs")
    if not path.is_file():
        raise UserError(
            f"{folder} is no evaluated run (it has no {path.relative_to(folder)}): "
            f"run `rosepo evaluate --out {folder}` first"
        )
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        models, _ = metrics["models"], (metrics["split"], metrics["n_users"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is no metrics.json of rosepo: `rosepo evaluate --out {folder} --overwrite` again"
        ) from None
    if not {"sft", "aligned"} & set(models):
        raise UserError(f"{folder} evaluated no model of its own (sft or aligned), so there is nothing to compare")
    return Run(mark, name, folder, metrics, _manifests(folder))  # fmt: skip


def _manifests(folder: Path) -> dict[str, dict[str, Any]]:
    """Manifests of the stages that belong to the run now, in order."""
    try:
        stages = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, KeyError):
        return {}
    found = {name: read_manifest((folder / entry["manifest"]).parent) for name, entry in stages.items()}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def _names(folders: Sequence[Path]) -> list[str]:
    """The end of each path, as long as it takes to tell them all apart."""
    paths = [folder.resolve() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _mark(place: int) -> str:
    letter = chr(ord("A") + place % 26)
    return letter if place < 26 else f"{letter}{place // 26 + 1}"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False).strip('"')
