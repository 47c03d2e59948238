"""`results.md` and its pictures: what `results.json` holds, for people."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rosepo.report.cells import Cell, Table, figure_cell
from rosepo.report.cost import amount
from rosepo.report.pages import write_markdown
from rosepo.report.plots.intervals import differences
from rosepo.report.tables import sweep_table
from rosepo.report.text.format import digits_of, number, sign
from rosepo.utils.console import duration
from rosepo.utils.files import write_text

MARKDOWN_FILE = "results.md"
LABELS = {
    "hr@1": "HR@1",
    "hr@10": "HR@10",
    "ndcg@10": "NDCG@10",
    "log_popularity": "log-popularity",
    "head_share": "head share",
    "hallucination": "look-alike",
}
DRAWN = ("ndcg@10", "hr@10", "log_popularity")
"""A column of the picture each."""
JUDGED = ("ndcg@10", "hr@10")
"""Those in which more is better."""
LEFT_OUT = ("popular", "markov")
"""Baselines so far from all others that these would not be told apart in a picture."""
BY_SEED = "ndcg@10"


def write_page(results: Mapping[str, Any], out: Path) -> None:
    """Write `results.md`, and a picture of every data set and split in which there is something to compare."""
    sections = []
    for data, splits in results["data"].items():
        for split, section in splits.items():
            sections.append(_section(data, split, section, results["variants"]))
            if (base := _base(section)) is not None:
                write_text(out / sections[-1]["picture"], picture(section["against"][base], base))
    options = [part for override in results["overrides"] for part in ("--set", override)]
    made_by = [f"{name} {version}" for name, version in results["versions"].items()]
    made_by += [f"revision {' and '.join(results['revisions'])}"] if results["revisions"] else []
    looks = {label: look["settings"] for label, look in results["test_looks"].items()}
    page = {
        "results": results,
        "out": out,
        "made_by": ", ".join(made_by),
        "again": shlex.join(["rosepo", "experiments", *results["suites"], *options]),
        "again_on_test": [f"{label} ({settings} settings)" for label, settings in looks.items() if settings > 1],
        "sections": sections,
        "sweeps": {label: sweep_table(sweep, sweep["max_examples"]) for label, sweep in results["sweeps"].items()},
    }
    write_markdown(out / MARKDOWN_FILE, "results", page, package="rosepo.experiments")


def picture(against: Mapping[str, Any], base: str) -> str:
    """Paired differences to `base` as SVG text, a row a system and a column a metric."""
    systems = {name: figures for name, figures in against.items() if figures is not None and name not in LEFT_OUT}
    titles = {metric: f"{LABELS[metric]} − that of {base}" for metric in DRAWN}
    columns = {titles[metric]: [figures[metric] for figures in systems.values()] for metric in DRAWN}
    judged = [titles[metric] for metric in JUDGED]
    return differences(columns, list(systems), width=10.0, opaque=True, judged=judged)


def agreed(difference: Mapping[str, Any]) -> bool:
    """Whether a difference is clear of zero, and of one sign in every seed."""
    found = sign(difference)
    return bool(found) and all(value is None or value * found > 0 for value in difference.get("by_seed", {}).values())


def _base(section: Mapping[str, Any]) -> str | None:
    """What the picture compares to: the first comparator that was compared to anything; None where there is none."""
    return next((base for base, rows in section["against"].items() if any(rows.values())), None)


def _section(data: str, split: str, section: Mapping[str, Any], about: Mapping[str, str]) -> dict[str, Any]:
    n = f"{section['n_examples']:,} examples of {section['n_users']:,} users"
    seeds = ", ".join(map(str, section["seeds"]))
    answered = any(contrast["metrics"] for contrast in section["contrasts"])
    base = _base(section)
    return {
        "picture": None if base is None else f"{data}-{split}.svg",
        "picture_title": f"{data}, {split}: every system minus {base}",
        "title": f"{data}, {split} split: {n}, seeds {seeds}",
        "systems": _systems(section, about),
        "against": [_against(base, rows) for base, rows in section["against"].items()],
        "questions": _questions(section) if answered else None,
        "elsewhere": section["evaluated_on_other_examples"],
    }


def _systems(section: Mapping[str, Any], about: Mapping[str, str]) -> Table:
    several = len(section["seeds"]) > 1
    by_seed = [f"{LABELS[BY_SEED]} by seed"] if several else []
    header = ["system", "seeds", *LABELS.values(), *by_seed, "own", "all", "tokens", "memory", "what it is"]
    rows = []
    for name, row in section["systems"].items():
        cells = [Cell(name, strong=name == section["chosen"]), Cell(str(len(row["seeds"])))]
        cells += [figure_cell(row["metrics"][key]) for key in LABELS]
        texts = [" ".join(number(value) for value in row["by_seed"][BY_SEED].values())] if several else []
        texts += [duration(row[key]) if row[key] else "" for key in ("own_seconds", "seconds")]
        texts.append(f"{row['tokens'] / 1e6:.2f} M" if row["tokens"] else "")
        texts += [amount(row["memory"]) if row["memory"] else "", about.get(name, "")]
        rows.append([*cells, *map(Cell, texts)])
    truth = [figure_cell(section["truth"].get(key)) for key in LABELS]
    rows.append([Cell("what people chose"), Cell(""), *truth, *(Cell("") for _ in header[2 + len(LABELS) :])])
    return Table(header, rows)


def _against(base: str, rows: Mapping[str, Any]) -> Table:
    cells = [
        [Cell(name), *(figure_cell(figures[key], agreed(figures[key]), signed=True) for key in LABELS)]
        for name, figures in rows.items()
        if figures is not None
    ]
    note = "Set in bold: clear of zero, and of one sign in every seed."
    return Table(("system", *LABELS.values()), cells, f"Minus {base}", note=note)


def _questions(section: Mapping[str, Any]) -> Table:
    rows = []
    for contrast in section["contrasts"]:
        asked = [contrast["question"], f"{contrast['a']} − {contrast['b']}"]
        for key, figure in contrast["metrics"].items():
            by_seed = " ".join(number(value, True, digits_of(figure)) for value in figure["by_seed"].values())
            difference = figure_cell(figure, agreed(figure), signed=True)
            rows.append([*map(Cell, (*asked, LABELS[key])), difference, Cell(by_seed), Cell(figure["verdict"])])
            asked = ["", ""]
        if not contrast["metrics"]:
            rows.append([Cell(text) for text in (*asked, "", "", "", "not measured yet")])
    return Table(("question", "a − b", "metric", "difference", "by seed", "verdict on a"), rows, "Questions")
