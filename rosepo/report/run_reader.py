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

from rosepo.data.catalogue import Catalogue
from rosepo.evaluation.rankings import read_rankings
from rosepo.metrics import bias
from rosepo.metrics.ranking import accuracy
from rosepo.run.manifest import read_manifest
from rosepo.utils.errors import UserError
from rosepo.utils.files import digest

_EXAMPLES = ("example_id", "user_id", "target")
_LISTED = "candidates"
_NEEDED = ("hr@1", "hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20", "log_popularity", "head_share")
"""Figures that the page cannot do without."""


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
        """Ids, users and targets of what was measured, by id, and the candidates that prompts list; None where the
        tables are not there any more."""
        path = self.root / "evaluation" / "_examples.parquet"
        if not path.is_file() or not (self.root / "examples" / "_items.parquet").is_file():
            return None
        listed = _LISTED in pq.read_schema(path).names
        table = pq.read_table(path, columns=[*_EXAMPLES, *([_LISTED] if listed else [])])
        columns = {name: table[name].to_numpy() for name in _EXAMPLES}
        order = np.argsort(columns["example_id"].astype(str), kind="stable")
        found = {name: column[order] for name, column in columns.items()} | {"order": order}
        if listed:
            found[_LISTED] = np.array([digest(row) for row in table[_LISTED].to_pylist()], dtype=object)[order]
        return found

    @cached_property
    def catalogue(self) -> Catalogue:
        """Titles, and how often each was chosen in training."""
        return Catalogue.load(self.root / "examples" / "_items.parquet")

    @property
    def ranked(self) -> str:
        """What was ranked, in words."""
        listed = self.metrics.get("protocol") == "candidates"
        return "the candidates that prompts list" if listed else "the whole catalogue"

    def series(self, popularity: bias.Popularity) -> dict[str, np.ndarray]:
        """Accuracy and popularity of its model on every example, float64 [N] each, in the order of `examples`.

        Args:
            popularity: of the titles, by item index: that of the run which others are held against.

        Raises:
            UserError: the rankings are not there any more.
        """
        folder = self.root / "evaluation" / "rankings" / f"{self.model}.parquet"
        if self.examples is None or not any(folder.glob("part-*.parquet")):
            raise UserError(f"{folder} holds no rankings: run `rosepo evaluate --out {self.root} --overwrite` again")
        ranks, items = read_rankings(folder, self.catalogue)
        series = accuracy(ranks) | bias.popularity_series(items[:, : bias.LIST], popularity)
        return {key: values[self.examples["order"]] for key, values in series.items()}


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
    both = f"{run.title} and {base.title}"
    if run.ranked != base.ranked:
        return f"{both} cannot be compared: {run.title} ranked {run.ranked}, {base.title} {base.ranked}."
    n = tuple(tuple(one.metrics[key] for key in ("n_examples", "n_users")) for one in (run, base))
    if n[0] != n[1]:
        return _of_other_data(both, n)
    for one in (run, base):
        if one.examples is None or not any((one.root / "evaluation/rankings" / f"{one.model}.parquet").glob("part-*")):
            return f"The rankings of {one.title} are not there any more, so its intervals stand alone."
    mine, theirs = run.examples, base.examples
    assert mine is not None
    assert theirs is not None
    if not all(np.array_equal(mine[name], theirs[name]) for name in _EXAMPLES):
        return _of_other_data(both, n)
    if not np.array_equal(run.catalogue.item_ids, base.catalogue.item_ids):
        counts = f"{len(run.catalogue):,} and {len(base.catalogue):,}"
        return f"{both} ranked different catalogues ({counts} titles), so their figures cannot be compared."
    if _LISTED in mine and not np.array_equal(mine[_LISTED], theirs.get(_LISTED, ())):
        return f"{both} ranked different candidates of the same examples, so their figures cannot be compared."
    return None


def read_metrics(path: Path) -> dict[str, Any]:
    """An evaluation's `metrics.json`; what older ones call `given` is called `external`."""
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "given" in metrics:
        metrics["external"] = metrics.pop("given")
    return metrics


def _of_other_data(both: str, n: Sequence[tuple[int, int]]) -> str:
    (mine, my_users), (theirs, their_users) = n
    return (
        f"{both} were not measured on the same examples ({mine:,} of {my_users:,} users, and {theirs:,} of "
        f"{their_users:,}), so there is no paired difference: what is higher may be the easier data."
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
        metrics = read_metrics(path)
        models, _ = metrics["models"], (metrics["split"], metrics["n_users"], metrics["n_examples"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is no metrics.json of rosepo: `rosepo evaluate --out {folder} --overwrite` again"
        ) from None
    if not {"sft", "aligned"} & set(models):
        raise UserError(f"{folder} evaluated no model of its own (sft or aligned), so there is nothing to compare")
    run = Run(mark, name, folder, metrics, _manifests(folder))
    missing = [key for key in _NEEDED if key not in run.figures or (run.before is not None and key not in run.before)]
    if missing or not {"truth", "differences"} <= set(metrics):
        raise UserError(
            f"{path} lacks {', '.join(missing) or 'figures'}, so another version of rosepo wrote it: "
            f"`rosepo evaluate --out {folder} --overwrite` again"
        )
    return run


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
