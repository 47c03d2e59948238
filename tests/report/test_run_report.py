from __future__ import annotations

import base64
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rosepo.config import STRATEGIES, Config, parse_config
from rosepo.config.root import shape_of
from rosepo.report.plots.curves import ends, pictures
from rosepo.report.plots.distributions import histograms
from rosepo.report.plots.intervals import bars
from rosepo.report.run_metadata import reproduction, run_metadata
from rosepo.report.tables import bias_tables
from rosepo.report.text.labels import colours_of, short, split_pair
from rosepo.run.paths import RunPaths
from rosepo.utils.redaction import command_line
from tests.report.reports import EXTRA, shared_run


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a tiny run in which titles and commands are HTML."""
    return shared_run(tmp_path_factory) / "report.html"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with all that an evaluation may measure beside it."""
    return shared_run(tmp_path_factory, seed=1, everything=True) / "report.html"


class Page(HTMLParser):
    """References, tags and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text += " " + " ".join(data.split())


def test_the_page_needs_nothing_beside_itself(report: Path) -> None:
    page = Page(report)
    assert page.references
    assert all(reference.startswith("data:image/svg+xml;base64,") for reference in page.references)
    assert not re.search(r"url\(|@import|<link", report.read_text(encoding="utf-8"))
    for reference in page.references:
        svg = base64.b64decode(reference.partition(",")[2]).decode()
        assert not re.search(r'href="(?!#)', svg)


def test_titles_names_and_commands_are_text_not_markup(report: Path) -> None:
    page = Page(report)
    assert not {"script", "i", "beta"} & set(page.tags)
    assert '<script>alert("x")</script> & <b>Friends</b>' in page.text
    assert EXTRA in page.text


def test_every_section_is_there_and_none_that_was_not_measured(plain: Path, report: Path) -> None:
    always = ("verdict", "run", "results", "cases", "bias", "epsilon", "training", "cost", "reproduce")
    measured = ("candidates", "groups")
    for path, names, missing in ((plain, always, (*measured, "sweep")), (report, (*always, *measured), ("sweep",))):
        text = path.read_text(encoding="utf-8")
        assert all(f'id="{name}"' in text for name in names)
        assert not any(f'id="{name}"' in text for name in missing)


@pytest.mark.parametrize("kind", ["html", "md"])
def test_both_reports_have_every_figure_with_its_interval_and_n(report: Path, kind: str) -> None:
    text = Page(report).text if kind == "html" else (report.with_suffix(".md")).read_text().replace("\\", "")
    for wanted in (
        "n = 24 examples of 24 users", "n = 24 examples of 23 users", "12 users, 13 examples", "up to 5",
        "HR@1, substring rule", "Probe: slot only", "Probe: popularity only",
        "0.125 to 0.375", "0.987", "+0.050 to +0.200",
        "1,234,567", "7,654,321", "3.0 GiB", "5 processes", "8,888,888", "fedcba9876543210", "0123456789ab",
        "print-of-sft",
        "rosepo run --set a='<i>'", "Reward margin", "0.625", "Validation loss", "from 0.750", "movietweetings-100k",
        "What people chose", "Change", "Clamped at 0.4", EXTRA, f"{EXTRA} − Aligned",
    ):  # fmt: skip
        assert wanted in text, wanted


def test_markdown_tables_have_as_many_cells_as_their_heads(report: Path) -> None:
    lines = report.with_suffix(".md").read_text().splitlines()
    rules = [place for place, line in enumerate(lines) if line.startswith("| :---")]
    assert len(rules) >= 10
    for rule in rules:
        rows = lines[rule - 1 : rule + 2]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, rows
    assert not re.search(r"(?<!\\)<(script|b|beta)", "\n".join(lines))


def test_a_picture_shows_any_name_and_no_interval_where_there_is_none() -> None:
    def picture(name: str, low: float | None) -> str:
        figure = {"hr@10": {"value": 0.25, "low": low, "high": None if low is None else 0.5}}
        return bars({"sft": (name, figure)}, "hr@10")

    assert "<svg" in picture("$\\frac$ 100 $ off", 0.125)
    whole, alone = (picture("SFT", low).count("LineCollection") for low in (0.125, None))
    assert (whole, alone) == (1, 0)


def test_the_page_names_its_run_and_the_command_that_made_it(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"<title>{report.parent.name} · rosepo report</title>" in report.read_text()
    for given, expected in (
        (["/x/bin/rosepo", "evaluate", "--out", "my runs/a"], "rosepo evaluate --out 'my runs/a'"),
        (["jobs/run.py", "--set", "a=[1, 2]"], "python jobs/run.py --set 'a=[1, 2]'"),
        (["rosepo", "s3://user:word@bucket/log"], "rosepo 's3://***@bucket/log'"),
    ):
        monkeypatch.setattr(sys, "argv", given)
        assert command_line() == expected
        assert expected in reproduction(Config(), {"sft": {"fingerprint": "", "command": "rosepo sft"}})["commands"]


def test_versions_that_differ_between_stages_are_all_told() -> None:
    told = reproduction(Config(), {"sft": {"fingerprint": "", "versions": {"torch": "0.1"}}})["versions"]["torch"]
    assert told.startswith("0.1 and ")


def test_a_strategy_has_one_colour_whatever_stands_beside_it() -> None:
    def drawn(*names: str) -> set[str]:
        counts = {name: np.ones(4, dtype=np.int64) for name in ("all strategies", *names)}
        picture = histograms(counts, np.linspace(0.0, 0.5, 5), None)
        return {colour for colour in re.findall(r"fill: (#\w{6})", picture) if colour in colours}

    colours = {entry.colour: name for name, entry in STRATEGIES.items()}
    assert {colours[found] for found in drawn("popularity")} == {"popularity"}
    assert {colours[found] for found in drawn("mine:newest", "popularity", "self_hard")} == {"popularity", "self_hard"}


def test_models_of_any_name_have_colours_of_their_own() -> None:
    colours = colours_of(["sft", "a", "b", "aligned"])
    assert len({colours[name] for name in ("sft", "aligned", "a", "b")}) == 4
    assert split_pair("a-b-sft", ["a-b", "sft", "a"]) == ("a-b", "sft")
    assert len(short(EXTRA)) == 22
    assert short(EXTRA).startswith("Some-Other")
    assert short(EXTRA).endswith("picture")


@pytest.mark.parametrize(
    ("align", "figures", "words"),
    [
        ({"loss": "pairwise", "epsilon_max": 0.3}, {}, "ε ≤ 0.3"),
        ({"loss": "pairwise", "epsilon": "shuffled"}, {}, "ε ≤ 0.4, shuffled over all pairs"),
        ({"loss": "pairwise", "epsilon": "constant"}, {"epsilon_value": 0.23456}, "one ε = 0.235 for all pairs"),
        ({"loss": "pairwise", "epsilon": "zero"}, {"epsilon_value": 0.0}, "ε = 0"),
        (
            {"loss": "pairwise", "epsilon": "spa"},
            {"epsilon_value": 0.1},
            "ε = 0.1 for the 10 % of pairs with the least margin",
        ),
        ({}, {}, "targets from the oracle"),
        ({"target_min": 0.5}, {}, "targets from the oracle, the chosen one's ≥ 0.5"),
        ({"target_mix": 0.5}, {}, "targets from the oracle, 50 % of them from the reference"),
        ({"loss": "dpo"}, {}, "ε = 0"),
        ({"loss": "robust"}, {"epsilon_value": 0.1}, "one ε = 0.1 for all pairs"),
        ({"loss": "cdpo", "epsilon_value": 0.2}, {}, "one ε = 0.2 for all pairs"),
        ({"loss": "spa"}, {"epsilon_value": 0.1}, "ε = 0.1 for the 10 % of pairs with the least margin"),
        ({"loss": "ipo", "ipo_average": True}, {}, "log-ratios a token"),
        ({"loss": "simpo"}, {}, "γ = 0.5, no reference"),
        ({"loss": "rpo"}, {}, "ε = 0, SFT weight 1"),
        ({"loss": "sdpo"}, {}, "one-hot target"),
        ({"loss": "dmpo"}, {}, "the mean of the rejected titles' rewards"),
        ({"loss": "ada_dpo"}, {}, "τ from 0.1 to 5, ρ = -0.5931"),
    ],
)
def test_the_kind_of_smoothing_is_named(align: dict[str, Any], figures: dict[str, Any], words: str) -> None:
    assert shape_of(parse_config({"align": align}), figures) == words


def test_what_distillation_aims_at_is_named() -> None:
    for whole, words in ((False, "titles drawn from the oracle"), (True, "the oracle's whole distribution")):
        pairs = {"strategies": {"oracle": 1}, "oracle_whole": whole}
        assert shape_of(parse_config({"align": {"loss": "distill"}, "pairs": pairs}), {}) == words


def test_a_training_that_went_astray_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": NaN}\n')
    table = ends(RunPaths(tmp_path))
    assert table is not None
    assert [table.rows[0][2].text, table.rows[0][2].below] == ["nan", "from 2.500"]


@pytest.mark.parametrize("least", [0.0, 0.5])
def test_the_distance_from_the_targets_is_told_where_it_is_not_the_loss_itself(tmp_path: Path, least: float) -> None:
    (tmp_path / "aligned").mkdir()
    lines = [{"step": step, "loss": loss, "target_kl": loss - least} for step, loss in enumerate([2.0, 1.0], 1)]
    (tmp_path / "aligned" / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    table, titles = ends(RunPaths(tmp_path)), [title for title, _ in pictures(RunPaths(tmp_path))]
    assert table is not None
    assert ("Above its least" in table.header) == (least > 0)
    assert any("least" in title for title in titles) == (least > 0)
    if least:
        cell = table.rows[0][table.header.index("Above its least")]
        assert [cell.text, cell.below] == ["0.500", "from 1.500"]


def test_a_bias_figure_of_fewer_examples_says_of_how_many() -> None:
    entry = {"out_of_catalogue": {"value": 0.1, "low": 0.0, "high": 0.2, "n_examples": 200, "n_users": 150}}
    metrics = {"models": {"sft": entry}, "truth": {}, "differences": {}, "n_examples": 900, "n_users": 800}
    first = bias_tables(metrics)[0].rows[0][0]
    assert first.below.endswith("n = 200 examples of 150 users")


def test_a_run_without_fine_tuning_does_not_tell_of_any(tmp_path: Path) -> None:
    metrics = {"split": "test", "protocol": "catalogue", "n_examples": 5, "n_users": 5}
    found = [{}, {"sft": {"figures": {}}}]
    names = [list(run_metadata(Config(), RunPaths(tmp_path), metrics, manifests)) for manifests in found]
    assert names == [["Data", "Split", "Measured"], ["Data", "Split", "Measured", "Model", "Fine-tuning"]]
