"""Finished runs as `rosepo compare` reads them: figures, settings, and what they measured of every example."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rosepo.data.catalogue import Catalogue, ranked_items
from rosepo.data.item_columns import items_of
from rosepo.evaluation.measured_examples import EXAMPLES_FILE
from rosepo.evaluation.rankings import RANKINGS_FOLDER, read_rankings
from rosepo.metrics import bias
from rosepo.metrics.ranking import accuracy
from rosepo.report.run_metadata import made_by, manifests_of
from rosepo.run.manifest import read_manifest
from rosepo.run.paths import RunPaths
from rosepo.utils.errors import UserError

EXAMPLE = ["example_id", "user_id", "target"]
"""What makes two examples the same."""


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
        revisions = sorted(made_by(self.manifests.values())["revisions"])
        return found | ({"revision": ", ".join(revisions)} if revisions else {})

    @property
    def kept(self) -> bool:
        """Whether tables and rankings of what was measured are still there."""
        return self._examples.is_file() and any(self._rankings.glob("part-*.parquet"))

    @cached_property
    def examples(self) -> pa.Table:
        """What was measured, by id: example_id, user_id, target (an item id: indexes differ between catalogues),
        the candidates that prompts list where they list any, as item indexes, and the `row` in the rankings."""
        names = [name for name in (*EXAMPLE, "candidates") if name in pq.read_schema(self._examples).names]
        table = pq.read_table(self._examples, columns=names)
        target = pa.array(self.catalogue.item_ids[items_of(table, "target")])
        table = table.set_column(names.index("target"), "target", target)
        return table.append_column("row", pa.array(np.arange(len(table)))).sort_by("example_id")

    @cached_property
    def catalogue(self) -> Catalogue:
        """Titles, and how often each was chosen in training."""
        paths = RunPaths(self.root)
        return Catalogue.load(ranked_items(paths.examples, paths.evaluation))

    @property
    def ranked(self) -> str:
        """What was ranked, in words."""
        listed = self.metrics["protocol"] == "candidates"
        return "the candidates that prompts list" if listed else "the whole catalogue"

    def series(self, popularity: bias.Popularity) -> dict[str, np.ndarray]:
        """Accuracy and popularity of its model on every example, float64 [N] each, in the order of `examples`.

        Args:
            popularity: of the titles, by item index: that of the run which others are held against.
        """
        ranks, items = read_rankings(self._rankings)
        series = accuracy(ranks) | bias.popularity_series(items[:, : bias.LIST], popularity)
        return {key: values[self.examples["row"].to_numpy()] for key, values in series.items()}

    @property
    def _examples(self) -> Path:
        return RunPaths(self.root).evaluation / EXAMPLES_FILE

    @property
    def _rankings(self) -> Path:
        return RunPaths(self.root).evaluation / RANKINGS_FOLDER / f"{self.model}.parquet"


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in the order given.

    Raises:
        UserError: fewer than two, one twice, a folder that is no evaluated run, or runs of different splits.
    """
    if len(folders) < 2:
        raise UserError("compare needs two runs at least: rosepo compare RUN_A RUN_B")
    paths = [folder.resolve() for folder in folders]
    twice = [folder for place, folder in enumerate(folders) if paths[place] in paths[:place]]
    if twice:
        raise UserError(f"{twice[0]} was given twice: name every run once")
    runs = [_read(folder, _mark(place), name) for place, (folder, name) in enumerate(zip(folders, _names(paths)))]
    first, split = runs[0].root, runs[0].metrics["split"]
    for run in runs:
        if run.metrics["split"] != split:
            raise UserError(
                f"{run.root} was evaluated on the {run.metrics['split']} split and {first} on the {split} split: "
                "evaluate both with the same evaluate.split"
            )
    return runs


def why_unpaired(run: Run, base: Run) -> str | None:
    """A sentence on why two runs cannot be compared example by example; None where they can."""
    both = f"{run.title} and {base.title}"
    if run.ranked != base.ranked:
        return f"{both} cannot be compared: {run.title} ranked {run.ranked}, {base.title} {base.ranked}."
    for one in (run, base):
        if not one.kept:
            return f"The rankings of {one.title} are not there any more, so its intervals stand alone."
    mine, theirs = (one.examples.drop_columns("row") for one in (run, base))
    if not mine.select(EXAMPLE).equals(theirs.select(EXAMPLE)):
        n = [f"{one.metrics['n_examples']:,} of {one.metrics['n_users']:,} users" for one in (run, base)]
        return (
            f"{both} were not measured on the same examples ({n[0]}, and {n[1]}), so there is no paired difference: "
            "what is higher may be the easier data."
        )
    if not np.array_equal(run.catalogue.item_ids, base.catalogue.item_ids):
        counts = f"{len(run.catalogue):,} and {len(base.catalogue):,}"
        return f"{both} ranked different catalogues ({counts} titles), so their figures cannot be compared."
    if not mine.equals(theirs):
        return f"{both} ranked different candidates of the same examples, so their figures cannot be compared."
    return None


def _read(folder: Path, mark: str, name: str) -> Run:
    paths = RunPaths(folder)
    evaluated = read_manifest(paths.evaluation)
    if evaluated is None:
        raise UserError(
            f"{folder} is no evaluated run (it has no finished {paths.evaluation.name}/): "
            f"run `rosepo evaluate --out {folder}` first"
        )
    metrics = json.loads((paths.evaluation / "metrics.json").read_text(encoding="utf-8"))
    if not {"sft", "aligned"} & set(metrics["models"]):
        raise UserError(f"{folder} evaluated no model of its own (sft or aligned), so there is nothing to compare")
    rounds = evaluated["settings"].get("pairs.rounds", 1)
    return Run(mark, name, folder, metrics, manifests_of(replace(paths, round=rounds)))


def _names(paths: Sequence[Path]) -> list[str]:
    """The end of each path, as long as it takes to tell them all apart."""
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _mark(place: int) -> str:
    letter = chr(ord("A") + place % 26)
    return letter if place < 26 else f"{letter}{place // 26 + 1}"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False).strip('"')
