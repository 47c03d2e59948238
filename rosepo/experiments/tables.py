"""`results.md`: what `results.json` holds, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rosepo.console import duration
from rosepo.evaluation.words import number, sign

LABELS = {
    "hr@1": "HR@1",
    "hr@10": "HR@10",
    "ndcg@10": "NDCG@10",
    "log_popularity": "log-popularity",
    "head_share": "head share",
    "hallucination": "look-alike",
}
_MEASURED = ("hr@10", "ndcg@10")
"""Of a sweep's trials."""
_EXPLAINED = """\
Means over examples and seeds, and 95 % intervals of a bootstrap over users (the same user of all seeds is one unit).
HR and NDCG over the whole catalogue. log-popularity: mean log(1 + interactions in training) of the first ten; head
share: share of them among the most popular tenth; look-alike (semantic hallucination): by how much wrong titles are
more like the history than the right one. own: the time of a system's own stages (`pairs` and `align` of a variant),
all: with what it rests on, without the evaluation; tokens: those that its own training saw; all of them means over
seeds. **Bold**: the variant with the highest NDCG@10 on validation.
"""


def as_markdown(results: Mapping[str, Any], out: Path) -> str:
    """The page."""
    lines = ["# Experiments", "", f"    {results['command']}", ""]
    revision = f", revision {results['revision']}" if results["revision"] else ""
    used = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines += [f"{results['made']} · {results['machine']} · {used}{revision} · {', '.join(results['suites'])}", ""]
    lines += [f"A single run again: `rosepo run --out {out}/DATA/seed-SEED/VARIANT` (on test: `VARIANT.test`).", ""]
    lines += [_EXPLAINED]
    for data, splits in results["data"].items():
        for split, section in splits.items():
            lines += _section(data, split, section, results["variants"])
    for label, sweep in results["sweeps"].items():
        lines += [f"## Sweep of {label}", "", *_trials(sweep)]
    for title, labels in (("Not made yet", results["missing"]), ("Failed", results["failed"])):
        if labels:
            told = {name: f": {' '.join(labels[name].split())}" for name in labels} if title == "Failed" else {}
            lines += [f"## {title}", "", *(f"- {name}{told.get(name, '')}" for name in labels), ""]
    return "\n".join(lines)


def _section(data: str, split: str, section: Mapping[str, Any], about: Mapping[str, str]) -> list[str]:
    seeds = ", ".join(map(str, section["seeds"]))
    users = f"{section['n_examples']:,} examples of {section['n_users']:,} users"
    lines = [f"## {data}, {split} split: {users}, seeds {seeds}", ""]
    lines += _systems(section, about)
    for base, differences in section["against"].items():
        lines += [f"### Minus {base}", "", *_against(differences)]
    if any(contrast["metrics"] for contrast in section["contrasts"]):
        lines += ["### Questions", "", *_contrasts(section["contrasts"])]
    if section["evaluated_on_other_examples"]:
        lines += [f"Left out, evaluated on other examples: {'; '.join(section['evaluated_on_other_examples'])}.", ""]
    return lines


def _systems(section: Mapping[str, Any], about: Mapping[str, str]) -> list[str]:
    costs = ["own", "all", "tokens", "memory"]
    header = ["system", "seeds", *LABELS.values(), *costs, "what it is"]
    rows = []
    for name, row in section["systems"].items():
        shown = f"**{name}**" if name == section["chosen"] else name
        figures = [_with_interval(row["metrics"][key]) for key in LABELS]
        times = [duration(row[key]) if row[key] else "" for key in ("own_seconds", "seconds")]
        tokens = f"{row['tokens'] / 1e6:.2f} M" if row["tokens"] else ""
        memory = f"{row['memory'] / 2**30:.1f} GiB" if row["memory"] else ""
        rows.append([shown, str(len(row["seeds"])), *figures, *times, tokens, memory, about.get(name, "")])
    truth = [number(section["truth"][key]["value"]) if key in section["truth"] else "" for key in LABELS]
    rows.append(["what people chose", "", *truth, *("" for _ in costs), ""])
    return [*_table(header, rows), ""]


def _against(differences: Mapping[str, Any]) -> list[str]:
    header = ["system", *(LABELS[key] for key in LABELS)]
    rows = []
    for name, figures in differences.items():
        if figures is not None:
            rows.append([name, *(_difference(figures[key]) for key in LABELS)])
    return [*_table(header, rows), "", "Set in bold: clear of zero.", ""]


def _contrasts(contrasts: Sequence[Mapping[str, Any]]) -> list[str]:
    header = ["question", "a − b", "metric", "difference", "by seed", "verdict on a"]
    rows = []
    for contrast in contrasts:
        for place, (key, figure) in enumerate(contrast["metrics"].items()):
            by_seed = " ".join(number(value, True) for value in figure["by_seed"].values())
            question = [contrast["question"], f"{contrast['a']} − {contrast['b']}"] if place == 0 else ["", ""]
            rows.append([*question, LABELS[key], _difference(figure), by_seed, figure["verdict"]])
        if not contrast["metrics"]:
            rows.append([contrast["question"], f"{contrast['a']} − {contrast['b']}", "", "", "", "not measured yet"])
    return [*_table(header, rows), ""]


def _trials(sweep: Mapping[str, Any]) -> list[str]:
    """All trials of a sweep, the best first, and the SFT model that they start from."""
    keys = list(sweep["trials"][0]["settings"])
    done = [trial for trial in sweep["trials"] if "error" not in trial]
    rows = [["SFT, before", *("" for _ in keys), *(number(sweep["sft"][key]) for key in _MEASURED), ""]]
    for trial in sorted(done, key=lambda trial: -trial[sweep["metric"]]):
        settings = [str(trial["settings"][key]) for key in keys]
        figures = [number(trial[key]) for key in _MEASURED]
        rows.append([f"trial {trial['trial']}", *settings, *figures, duration(trial["seconds"])])
    rows += [
        [f"trial {trial['trial']}", *(str(trial["settings"][key]) for key in keys), "failed", trial["error"], ""]
        for trial in sweep["trials"]
        if "error" in trial
    ]
    return [*_table(["validation", *keys, *(LABELS[key] for key in _MEASURED), "time"], rows), ""]


def _with_interval(figure: Mapping[str, Any]) -> str:
    if figure["low"] is None:
        return number(figure["value"])
    return f"{number(figure['value'])} [{number(figure['low'])}, {number(figure['high'])}]"


def _difference(figure: Mapping[str, Any]) -> str:
    text = number(figure["value"], True)
    text = f"**{text}**" if sign(figure) else text
    return f"{text} [{number(figure['low'], True)}, {number(figure['high'], True)}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], f"|{'---|' * len(header)}", *lines[1:]]
