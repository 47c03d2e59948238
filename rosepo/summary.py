"""What a person reads when the work is done: results, times, where things are, what to run next."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from rosepo.artifacts import read_manifest
from rosepo.console import duration, say, table
from rosepo.evaluation.verdict import no_baseline
from rosepo.stages import STAGES

SHOWN = ("hr@1", "hr@10", "ndcg@10")
NAMES = {
    "popular": "most popular",
    "markov": "Markov chain",
    "oracle": "oracle",
    "sft": "SFT",
    "aligned": "aligned",
}
_NEXT = {
    "prepare": ("sft", "oracle"),
    "sft": ("oracle", "pairs"),
    "oracle": ("pairs",),
    "pairs": ("align", "sweep"),
    "align": ("evaluate",),
    "sweep": ("evaluate",),
}


def print_summary(root: Path) -> None:
    """Results, seconds a stage, paths and next commands of a finished run."""
    metrics = json.loads((root / "metrics.json").read_text(encoding="utf-8"))
    say("")
    say(results_table(metrics))
    say("")
    say(_times(root))
    say("")
    say(f"  Report   {root / 'report.html'}  (self-contained: open it in a browser)")
    say(f"  Metrics  {root / 'metrics.json'}")
    say(f"  Model    {root / 'aligned'}  (loads in plain Transformers)")
    say("")
    say("  Try next:")
    for command in _suggestions(root):
        say(f"    {command}")


def results_table(metrics: dict[str, Any]) -> str:
    """Models against metrics, each with its 95 % interval, as text."""
    title = (
        f"{metrics['split']} split, {metrics['n_examples']:,} examples of {metrics['n_users']:,} users, 95 % intervals"
    )
    rows = []
    for name, figures in metrics["models"].items():
        cells = [_interval(figures[key]) for key in SHOWN]
        kind = f" ({metrics['oracle']})" if name == "oracle" and metrics.get("oracle") else ""
        rows.append([NAMES.get(name, name) + kind, *cells])
    notes = "".join(f"\n  {sentence}" for sentence in no_baseline(metrics))
    return f"  {title}\n" + table(rows, header=("model", *(key.upper() for key in SHOWN))) + notes


def print_next(root: Path, stage: str) -> None:
    """After a single stage: the commands that go on from it."""
    if stage == "evaluate":
        say(results_table(json.loads((root / "metrics.json").read_text(encoding="utf-8"))))
        say(f"  Report  {root / 'report.html'}")
        return
    following = " or ".join(f"`rosepo {name} --out {shlex.quote(str(root))}`" for name in _NEXT[stage])
    say(f"  Next: {following}")


def _interval(figure: dict[str, float]) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _times(root: Path) -> str:
    rows = []
    for stage in STAGES.values():
        manifest = read_manifest(root / stage.folder)
        if manifest is not None:
            rows.append([stage.name, duration(manifest["seconds"]), str(root / stage.folder)])
    total = sum((read_manifest(root / stage.folder) or {"seconds": 0.0})["seconds"] for stage in STAGES.values())
    return table([*rows, ["all", duration(total), str(root)]], header=("stage", "time", "output"))


def _suggestions(root: Path) -> list[str]:
    from rosepo.data.catalogue import Catalogue

    catalogue = Catalogue.load(root / "examples" / "_items.parquet")
    popular = catalogue.train_count.argsort(kind="stable")[::-1][:2]
    titles = " ".join(f"--history {shlex.quote(catalogue.titles[item])}" for item in popular)
    out = shlex.quote(str(root))
    commands = [f"rosepo recommend --model {out}/aligned {titles}"]
    if (root / "sweep" / "best.yaml").is_file():
        commands.append(f"rosepo run --config {out}/sweep/best.yaml --out {out} --overwrite")
    commands.append(f"rosepo run --interactions LOG --items ITEMS --out {shlex.quote(str(root.parent))}/mine")
    return commands
