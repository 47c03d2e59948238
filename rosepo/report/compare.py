"""`rosepo compare`: several finished runs on one page, differences paired where they measured the same examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rosepo.metrics.bias import Popularity
from rosepo.metrics.bootstrap import UserBootstrap, plain
from rosepo.report.cost import NOTE, amount, costs_of, total_of
from rosepo.report.pages import uri, write_pages
from rosepo.report.plots import comparison_plots as plots
from rosepo.report.run_reader import Run, read_runs, why_unpaired
from rosepo.report.tables import ACCURACY, BIAS, Cell, Table, figure_cell, measured_on
from rosepo.report.text.conclusions import Verdict, verdict
from rosepo.report.text.format import interval, number, outcome, sign
from rosepo.report.text.labels import label
from rosepo.utils.console import duration, echo, table
from rosepo.utils.errors import UserError
from rosepo.utils.files import now

PAIRED = (*ACCURACY, "log_popularity", "head_share")
SAID = (
    ("hr@10", "HR@10", "higher", "lower"),
    ("ndcg@10", "NDCG@10", "higher", "lower"),
    ("log_popularity", "mean log-popularity", "more popular titles", "less popular titles"),
)
"""Metrics that differences are told of in words."""

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
    page = {
        "created": now()[:16].replace("T", " ") + " UTC",
        "runs": runs,
        "base": against,
        "split": runs[0].metrics["split"],
        "verdicts": [(run, _verdict(run)) for run in runs],
        "said": [_said(run, against, differences[run.mark]) for run in runs if run.mark in differences],
        "alone": alone,
        "n_looked_at": len(differences) * len(PAIRED),
        "settings": settings_table(runs),
        "accuracy": _figures_table(runs, [(key, key.upper(), "") for key in ACCURACY], with_sft=True),
        "differences": _differences_table(runs, against, differences),
        "bias": _figures_table(runs, [one for one in BIAS if any(one[0] in run.figures for run in runs)]),
        "others": _others_table(runs),
        "cost": _cost_table(runs),
        "stages": _stages_table(runs),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_pages(out, "compare", page, _pictures(runs))
    _tell(runs, against, differences, alone, out)


def paired_differences(runs: Sequence[Run], base: Run) -> tuple[Differences, list[str]]:
    """Of every run's model minus the base's: by the run's mark and metric value, low and high, all under the same draws
    of users; and a sentence for each run that was not measured on the same examples."""
    others = [run for run in runs if run is not base]
    reasons = {run.mark: why_unpaired(run, base) for run in others}
    paired = [run for run in others if reasons[run.mark] is None]
    alone = list(dict.fromkeys(reason for reason in reasons.values() if reason is not None))
    if not paired or base.examples is None:
        return {}, alone
    settings = base.manifests.get("evaluate", {}).get("settings", {})
    bootstrap = UserBootstrap(
        base.examples["user_id"], int(settings.get("evaluate.bootstrap", 1000)), int(settings.get("seed", 0))
    )
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
    rows = []
    for key in keys:
        values = [run.settings.get(key, "–") for run in runs]
        if len(set(values)) > 1:
            rows.append([Cell(key, wide=True), *(Cell(value, wide=len(value) > 24) for value in values)])
    return Table(("Setting", *(run.title for run in runs)), rows) if rows else None


def _base(runs: Sequence[Run], base: Path | None) -> Run:
    if base is None:
        return runs[0]
    found = [run for run in runs if run.root.resolve() == base.resolve()]
    if not found:
        raise UserError(
            f"--base {base} is none of the runs ({', '.join(str(run.root) for run in runs)}): name one of them"
        )
    return found[0]  # fmt: skip


def _verdict(run: Run) -> Verdict:
    return verdict(run.metrics)


def _said(run: Run, base: Run, difference: dict[str, Any]) -> str:
    told = (f"{title} {interval(difference[key])}: {outcome(difference[key], up, down)}"
            for key, title, up, down in SAID)  # fmt: skip
    return f"{run.title} minus {base.title}: {'; '.join(told)}."  # fmt: skip


def _figures_table(runs: Sequence[Run], metrics: Sequence[tuple[str, str, str]], with_sft: bool = False) -> Table:
    """A row a run, of its model, and with `with_sft` one of the SFT model below it."""
    rows = []
    for run in runs:
        about = f"{label(run.model)}; {measured_on(run.metrics)}"
        cells = (figure_cell(run.figures.get(key)) for key, _, _ in metrics)
        rows.append([Cell(run.title, about, model=run.mark, wide=True), *cells])
        if with_sft and run.before is not None:
            before = (figure_cell(run.before.get(key)) for key, _, _ in metrics)
            rows.append([Cell(f"{run.mark}, before", label("sft")), *before])
    if not with_sft:
        keys = [key for key, _, _ in metrics]
        own = {key: {"value": 0.0} for key in keys if key.startswith("hallucination") or key == "out_of_catalogue"}
        marks: dict[str, list[Run]] = {}
        for run in runs:
            marks.setdefault(repr(run.metrics["truth"]), []).append(run)
        for alike in marks.values():
            cells = (figure_cell(alike[0].metrics["truth"].get(key, own.get(key))) for key in keys)
            rows.append([Cell("What people chose", ", ".join(run.mark for run in alike)), *cells])
    return Table(("Run", *(title for _, title, _ in metrics)), rows)


def _differences_table(runs: Sequence[Run], base: Run, differences: Differences) -> Table | None:
    names = {key: key.upper() for key in ACCURACY} | {"log_popularity": "Log-popularity", "head_share": "Head share"}
    rows = [
        [
            Cell(run.title, f"minus {base.mark}", model=run.mark, wide=True),
            *(figure_cell(found, bool(sign(found)), signed=True) for found in differences[run.mark].values()),
        ]
        for run in runs
        if run.mark in differences
    ]
    header = ("Run", *(names[key] for key in PAIRED))
    return Table(header, rows, n=measured_on(base.metrics)) if rows else None


def _others_table(runs: Sequence[Run]) -> Table:
    """Every model of every run."""
    rows = [
        [
            Cell(f"{run.mark} · {label(name, run.metrics)}", wide=True),
            *(figure_cell(entry.get(key)) for key in ACCURACY),
        ]
        for run in runs
        for name, entry in run.metrics["models"].items()
    ]  # fmt: skip
    return Table(("Model", *(key.upper() for key in ACCURACY)), rows)


def _cost_table(runs: Sequence[Run]) -> Table:
    totals = {run.mark: total_of(run.manifests) for run in runs}
    longest = max(total.seconds for total in totals.values()) or 1.0
    rows = []
    for run in runs:
        total = totals[run.mark]
        tokens = "–" if total.tokens is None else f"{total.tokens:,}"
        on_gpu = "" if total.gpu_memory is None else f"{amount(total.gpu_memory)} on a GPU"
        time = Cell(duration(total.seconds), share=total.seconds / longest)
        rows.append(
            [Cell(run.title, model=run.mark, wide=True), time, Cell(tokens), Cell(amount(total.memory), on_gpu)]
        )
    shared = " Stages that runs took over from one another count in each of them. "
    return Table(("Run", "Time", "Tokens", "Peak memory"), rows, note=shared.lstrip() + NOTE)


def _stages_table(runs: Sequence[Run]) -> Table:
    names = list(dict.fromkeys(name for run in runs for name in run.manifests))
    rows = []
    for run in runs:
        costs = {cost.name: cost for cost in costs_of(run.manifests)}
        cells = (Cell(duration(costs[name].seconds), amount(costs[name].memory)) if name in costs else Cell("–")
                 for name in names)  # fmt: skip
        rows.append([Cell(run.title, model=run.mark, wide=True), *cells])
    return Table(("Run", *names), rows)


def _pictures(runs: Sequence[Run]) -> dict[str, Any]:
    marks = {run.mark: run.title for run in runs}
    pictures: dict[str, Any] = {"colours": plots.run_colours(list(marks))}
    shown = (("hr@10", "HR@10"), ("ndcg@10", "NDCG@10"))
    pictures["accuracy"] = [(title, uri(plots.by_run(marks, _points(runs, key), key))) for key, title in shown]
    truths = {run.metrics["truth"].get("log_popularity", {}).get("value") for run in runs}
    truth = truths.pop() if len(truths) == 1 else None  # runs of other data have another
    pictures["tradeoff"] = [
        (
            title,
            uri(plots.tradeoff(marks, _points(runs, "log_popularity"), _points(runs, key), truth, title)),
        )
        for key, title in shown
    ]
    return pictures


def _points(runs: Sequence[Run], key: str) -> dict[str, plots.Point]:
    """By mark: the figure of the run's model, and that of its SFT model where it went on from one."""
    return {run.mark: (run.figures[key], None if run.before is None else run.before[key]) for run in runs}


def _tell(runs: Sequence[Run], base: Run, differences: Differences, alone: Sequence[str], out: Path) -> None:
    rows = []
    for run in runs:
        found = differences.get(run.mark, {}).get("ndcg@10")
        against = "base" if run is base else "–" if found is None else f"{outcome(found, 'above', 'below')} "
        shown = (f"{number(run.figures[key]['value'])}" for key in ("hr@10", "ndcg@10", "log_popularity"))
        rows.append([run.title, label(run.model), *shown, against.strip()])
    echo(table(rows, header=("run", "model", "HR@10", "NDCG@10", "log-popularity", f"NDCG@10 against {base.mark}")))
    for sentence in alone:
        echo(f"  {sentence}")
    echo(f"  Page  {out}  (and {out.with_suffix('.md').name} beside it)")
