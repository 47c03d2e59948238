"""`results.md`: what `results.json` holds, as tables for people."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rosepo.report.text.format import as_shown, digits_of, number, sign
from rosepo.utils.console import duration

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
Means over examples and seeds, and 95 % intervals of a bootstrap over users (the same user of all seeds is one unit):
what other users would have given for these very models. How far models of other seeds would be from them is not in the
intervals: the values by seed tell that, as roughly as few seeds can.
HR and NDCG over the whole catalogue. log-popularity: mean log(1 + interactions in training) of the first ten; head
share: share of them among the most popular tenth; look-alike (semantic hallucination): by how much wrong titles are
more like the history than the right one. own: the time of a system's own stages (`pairs` and `align` of a variant),
all: with what it rests on, without the evaluation; tokens: those that its own training saw; all of them means over
seeds. **Bold**: the variant with the highest NDCG@10 on validation.
"""
_BY_SEED = "ndcg@10"


def as_markdown(results: Mapping[str, Any], out: Path) -> str:
    """The page."""
    lines = ["# Experiments", "", f"    {results['command']}", ""]
    used = [f"{name} {version}" for name, version in results["versions"].items()]
    used += [f"revision {' and '.join(results['revisions'])}"] if results["revisions"] else []
    lines += [" · ".join([results["made"], results["machine"], ", ".join(used), ", ".join(results["suites"])]), ""]
    if len(results["revisions"]) > 1:
        lines += [
            "**Stages were made by more than one revision of rosepo**: what is compared may differ in that too.",
            "",
        ]
    lines += [*_again(results, out), _EXPLAINED]
    if results["comparisons"]:
        lines += [
            f"{results['comparisons']} differences are measured below. Of twenty that are none, one is clear of zero "
            "by chance.",
            "",
        ]
    lines += _looks(results["test_looks"])
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


def _again(results: Mapping[str, Any], out: Path) -> list[str]:
    """The one command behind a row."""
    options = [part for override in results["overrides"] for part in ("--set", override)]
    command = shlex.join(["rosepo", "experiments", *results["suites"], *options])
    return [
        f"A row again, in another folder: `{command} --data DATA --seeds SEED --only SYSTEM --out DIR`, with `--test` "
        "for the test split; popular, markov, oracle and sft come with every system. The reports of these runs are "
        f"{out}/DATA/seed-SEED/SYSTEM/report.html (on test: SYSTEM.test).",
        "",
    ]


def _looks(looks: Mapping[str, Any]) -> list[str]:
    """When the test split was looked at, and what of it more than once."""
    if not looks:
        return []
    first = min(entry["first"] for entry in looks.values())
    again = [f"{label} ({entry['settings']} settings)" for label, entry in looks.items() if entry["settings"] > 1]
    told = f"more than once, with other settings: {', '.join(again)}" if again else "each with one setting"
    return [f"The test split was looked at for {len(looks)} runs, first at {first}; {told}.", ""]


def _section(data: str, split: str, section: Mapping[str, Any], about: Mapping[str, str]) -> list[str]:
    seeds = ", ".join(map(str, section["seeds"]))
    users = f"{section['n_examples']:,} examples of {section['n_users']:,} users"
    lines = [f"## {data}, {split} split: {users}, seeds {seeds}", ""]
    lines += _systems(section, about)
    if (base := base_of(section)) is not None:
        lines += [f"![{data}, {split}: every system minus {base}]({file_name(data, split)})", ""]
    for base, differences in section["against"].items():
        lines += [f"### Minus {base}", "", *_against(differences)]
    if any(contrast["metrics"] for contrast in section["contrasts"]):
        lines += ["### Questions", "", *_contrasts(section["contrasts"])]
    if section["evaluated_on_other_examples"]:
        lines += [f"Left out, evaluated on other examples: {'; '.join(section['evaluated_on_other_examples'])}.", ""]
    return lines


def base_of(section: Mapping[str, Any]) -> str | None:
    """What the picture of a data set and a split compares to: the first comparator; None where there is none."""
    return next((base for base, differences in section["against"].items() if any(differences.values())), None)


def file_name(data: str, split: str) -> str:
    """The picture's, beside the page."""
    return f"{data}-{split}.svg"


def _systems(section: Mapping[str, Any], about: Mapping[str, str]) -> list[str]:
    costs = ["own", "all", "tokens", "memory"]
    several = len(section["seeds"]) > 1
    by_seed = [f"{LABELS[_BY_SEED]} by seed"] if several else []
    header = ["system", "seeds", *LABELS.values(), *by_seed, *costs, "what it is"]
    rows = []
    for name, row in section["systems"].items():
        shown = f"**{name}**" if name == section["chosen"] else name
        figures = [_with_interval(row["metrics"][key]) for key in LABELS]
        times = [duration(row[key]) if row[key] else "" for key in ("own_seconds", "seconds")]
        tokens = f"{row['tokens'] / 1e6:.2f} M" if row["tokens"] else ""
        memory = f"{row['memory'] / 2**30:.1f} GiB" if row["memory"] else ""
        of_seeds = [" ".join(number(value) for value in row["by_seed"][_BY_SEED].values())] if several else []
        rows.append([shown, str(len(row["seeds"])), *figures, *of_seeds, *times, tokens, memory, about.get(name, "")])
    truth = [number(section["truth"][key]["value"]) if key in section["truth"] else "" for key in LABELS]
    rows.append(["what people chose", "", *truth, *("" for _ in (*by_seed, *costs)), ""])
    return [*_table(header, rows), ""]


def _against(differences: Mapping[str, Any]) -> list[str]:
    header = ["system", *(LABELS[key] for key in LABELS)]
    rows = []
    for name, figures in differences.items():
        if figures is not None:
            rows.append([name, *(_difference(figures[key]) for key in LABELS)])
    return [*_table(header, rows), "", "Set in bold: clear of zero, and of one sign in every seed.", ""]


def _contrasts(contrasts: Sequence[Mapping[str, Any]]) -> list[str]:
    header = ["question", "a − b", "metric", "difference", "by seed", "verdict on a"]
    rows = []
    for contrast in contrasts:
        for place, (key, figure) in enumerate(contrast["metrics"].items()):
            by_seed = " ".join(number(value, True, digits_of(figure)) for value in figure["by_seed"].values())
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
    found, (value, low, high) = sign(figure), as_shown(figure)
    agreed = all(one is None or one * found > 0 for one in figure["by_seed"].values())
    return f"**{value}** [{low}, {high}]" if found and agreed else f"{value} [{low}, {high}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], f"|{'---|' * len(header)}", *lines[1:]]
