"""`rosepo compare`: several finished runs on one page, differences paired where they measured the same examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rosepo.metrics.bias import Popularity
from rosepo.metrics.bootstrap import UserBootstrap, plain
from rosepo.report.cells import Cell, Row, Table, changes_table, figures_table, measured_on
from rosepo.report.cost import COLUMNS, NOTE, amount, costs_of, total_of
from rosepo.report.pages import uri, write_pages
from rosepo.report.plots import intervals
from rosepo.report.run_reader import Run, read_runs, why_unpaired
from rosepo.report.tables import ACCURACY, BIAS, ZERO_FOR_TRUTH
from rosepo.report.text.conclusions import minus, verdict
from rosepo.report.text.format import interval, number, outcome
from rosepo.report.text.labels import label
from rosepo.utils.console import duration, echo, table
from rosepo.utils.errors import UserError
from rosepo.utils.files import now

PAIRED = ACCURACY | {"log_popularity": "Log-popularity", "head_share": "Head share"}
"""Titles of metrics of which there are paired differences."""
SHOWN = {"hr@10": "HR@10", "ndcg@10": "NDCG@10"}
"""The same of those that are drawn."""

Differences = dict[str, dict[str, dict[str, float | None]]]


def compare(folders: Sequence[Path], out: Path, base: Path | None = None) -> None:
    """Write the page of several runs to `out` (HTML), and the same as Markdown beside it.

    Args:
        base: the run that others are held against, one of `folders`; None takes the first.

    Raises:
        UserError: see `read_runs`; a base that is none of them; an `out` that is no .html file, or a run's own report.
    """
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise UserError(f"--out {out} is no .html file: name one, e.g. --out compare.html")
    runs = read_runs(folders)
    if any(out.resolve().parent == run.root.resolve() and out.stem == "report" for run in runs):
        raise UserError(f"--out {out} is the report of one of the runs: name another file, e.g. --out compare.html")
    against = _base(runs, base)
    differences, alone = paired_differences(runs, against)
    paired = [run for run in runs if run.mark in differences]
    n = measured_on(against.metrics)
    page = {
        "created": now()[:16].replace("T", " ") + " UTC",
        "runs": runs,
        "base": against,
        "split": against.metrics["split"],
        "verdicts": [(run, verdict(run.metrics)) for run in runs],
        "said": [_said(run, against, differences[run.mark]) for run in paired],
        "alone": alone,
        "n_looked_at": len(differences) * len(PAIRED),
        "settings": settings_table(runs),
        "accuracy": figures_table(ACCURACY, _with_sft(runs), "Run"),
        "differences": changes_table(
            PAIRED, [(_name(run, f"minus {against.mark}"), differences[run.mark]) for run in paired], "Run", n=n
        ),
        "bias": _bias_table(runs),
        "others": figures_table(ACCURACY, _every_model(runs)),
        "cost": _cost_table(runs),
        "stages": _stages_table(runs),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_pages(out, "compare", page, _pictures(runs))
    _tell(runs, against, differences, alone, out)


def paired_differences(runs: Sequence[Run], base: Run) -> tuple[Differences, list[str]]:
    """Of every run's model minus the base's: by the run's mark and metric value, low and high, all under the same draws
    of users; and a sentence for each run that was not measured on the same examples."""
    reasons = {run.mark: why_unpaired(run, base) for run in runs if run is not base}
    paired = [run for run in runs if run is not base and reasons[run.mark] is None]
    alone = [reason for reason in dict.fromkeys(reasons.values()) if reason is not None]
    if not paired:
        return {}, alone
    settings = base.manifests["evaluate"]["settings"]
    users = base.examples["user_id"].to_numpy()
    bootstrap = UserBootstrap(users, settings.get("evaluate.bootstrap", 1000), settings.get("seed", 0))
    popularity = Popularity.of(base.catalogue.train_count)
    drawn = bootstrap.resample(
        ((run.mark, key), values)
        for run in (base, *paired)
        for key, values in run.series(popularity).items()
        if key in PAIRED
    )
    return {
        run.mark: {key: plain(drawn.difference((run.mark, key), (base.mark, key))) for key in PAIRED} for run in paired
    }, alone


def settings_table(runs: Sequence[Run]) -> Table | None:
    """Settings in which the runs differ, a row each; None where they differ in none."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    values = {key: [run.settings.get(key, "–") for run in runs] for key in keys}
    rows = [
        [Cell(key, wide=True), *(Cell(value, wide=len(value) > 24) for value in found)]
        for key, found in values.items()
        if len(set(found)) > 1
    ]
    return Table(("Setting", *(run.title for run in runs)), rows) if rows else None


def _base(runs: Sequence[Run], base: Path | None) -> Run:
    if base is None:
        return runs[0]
    found = next((run for run in runs if run.root.resolve() == base.resolve()), None)
    if found is None:
        given = ", ".join(str(run.root) for run in runs)
        raise UserError(f"--base {base} is none of the runs ({given}): name one of them")
    return found


def _said(run: Run, base: Run, difference: dict[str, Any]) -> str:
    popularity = difference["log_popularity"]
    more = outcome(popularity, "more popular titles", "less popular titles")
    return minus(run.title, base.title, difference, f"mean log-popularity {interval(popularity)}: {more}")


def _name(run: Run, below: str = "") -> Cell:
    return Cell(run.title, below, model=run.mark, wide=True)


def _about(run: Run) -> str:
    return f"{label(run.model)}; {measured_on(run.metrics)}"


def _with_sft(runs: Sequence[Run]) -> list[Row]:
    """Of every run its model, and below it the SFT model that this went on from."""
    rows: list[Row] = []
    for run in runs:
        rows.append((_name(run, _about(run)), run.figures))
        if run.before is not None:
            rows.append((Cell(f"{run.mark}, before", label("sft")), run.before))
    return rows


def _every_model(runs: Sequence[Run]) -> list[Row]:
    return [
        (Cell(f"{run.mark} · {label(name, run.metrics)}", wide=True), entry)
        for run in runs
        for name, entry in run.metrics["models"].items()
    ]


def _bias_table(runs: Sequence[Run]) -> Table:
    """A row a run, of its model, and below them what people chose, once for all runs of the same."""
    columns = {key: title for key, (title, _) in BIAS.items() if any(key in run.figures for run in runs)}
    rows = [(_name(run, _about(run)), run.figures) for run in runs]
    truths = {repr(run.metrics["truth"]): run.metrics["truth"] for run in runs}
    for text, truth in truths.items():
        marks = ", ".join(run.mark for run in runs if repr(run.metrics["truth"]) == text)
        rows.append((Cell("What people chose", marks), truth | {key: {"value": 0.0} for key in ZERO_FOR_TRUTH}))
    return figures_table(columns, rows, "Run")


def _cost_table(runs: Sequence[Run]) -> Table:
    totals = {run.mark: total_of(run.manifests) for run in runs}
    longest = max(total.seconds for total in totals.values())
    rows = [[_name(run), *totals[run.mark].cells(longest)] for run in runs]
    shared = "Stages that runs took over from one another count in each of them. "
    return Table(("Run", *COLUMNS), rows, note=shared + NOTE)


def _stages_table(runs: Sequence[Run]) -> Table:
    costs = {run.mark: costs_of(run.manifests) for run in runs}
    names = list(dict.fromkeys(name for of_run in costs.values() for name in of_run))
    rows = [
        [
            _name(run),
            *(
                Cell(duration(cost.seconds), amount(cost.memory)) if (cost := costs[run.mark].get(name)) else Cell("–")
                for name in names
            ),
        ]
        for run in runs
    ]
    return Table(("Run", *names), rows)


def _pictures(runs: Sequence[Run]) -> dict[str, Any]:
    marks = {run.mark: run.title for run in runs}
    popularity = _points(runs, "log_popularity")
    truths = {run.metrics["truth"].get("log_popularity", {}).get("value") for run in runs}
    truth = truths.pop() if len(truths) == 1 else None  # runs of other data have another
    points = {title: _points(runs, key) for key, title in SHOWN.items()}
    return {
        "colours": intervals.run_colours(list(marks)),
        "accuracy": [(title, uri(intervals.by_run(marks, of, title))) for title, of in points.items()],
        "tradeoff": [(title, uri(intervals.tradeoff(popularity, of, truth, title))) for title, of in points.items()],
    }


def _points(runs: Sequence[Run], key: str) -> dict[str, intervals.Point]:
    """By mark: the figure of the run's model, and that of its SFT model where it went on from one."""
    return {run.mark: (run.figures[key], None if run.before is None else run.before[key]) for run in runs}


def _tell(runs: Sequence[Run], base: Run, differences: Differences, alone: Sequence[str], out: Path) -> None:
    rows = []
    for run in runs:
        against = "base" if run is base else "–"
        if run.mark in differences:
            against = outcome(differences[run.mark]["ndcg@10"], "above", "below")
        shown = (number(run.figures[key]["value"]) for key in ("hr@10", "ndcg@10", "log_popularity"))
        rows.append([run.title, label(run.model), *shown, against])
    echo(table(rows, header=("run", "model", "HR@10", "NDCG@10", "log-popularity", f"NDCG@10 against {base.mark}")))
    for sentence in alone:
        echo(f"  {sentence}")
    echo(f"  Page  {out}  (and {out.with_suffix('.md').name} beside it)")
