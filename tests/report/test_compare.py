"""Several runs on one page: what is paired, what is not, what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rosepo.report.compare import compare, paired_differences, settings_table
from rosepo.report.run_reader import read_runs
from rosepo.report.text.format import sign
from rosepo.utils.errors import UserError
from rosepo.utils.files import write_json
from tests.manifests import OLD_VERSION, make_older
from tests.report.reports import shared_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of the same examples, whose alignments differ in a setting and in what they recommend."""
    return [shared_run(tmp_path_factory), shared_run(tmp_path_factory, seed=1, everything=True)]


@pytest.fixture
def copy(runs: list[Path], tmp_path: Path) -> Path:
    """A copy of the second run, to be changed."""
    return Path(shutil.copytree(runs[1], tmp_path / "copy"))


def means(run: Path) -> dict[str, float]:
    models = json.loads((run / "evaluation" / "metrics.json").read_text())["models"]["aligned"]
    return {key: figure["value"] for key, figure in models.items()}


def test_differences_are_paired_where_the_examples_are_the_same(runs: list[Path]) -> None:
    first, second = read_runs(runs)
    found, alone = paired_differences([first, second], first)
    assert alone == []
    assert set(found) == {"B"}
    for key, figure in found["B"].items():
        assert figure["value"] == pytest.approx(means(runs[1])[key] - means(runs[0])[key])
        assert figure["low"] <= figure["value"] <= figure["high"]
    turned, _ = paired_differences([first, second], second)
    assert turned["A"]["ndcg@10"]["value"] == pytest.approx(-found["B"]["ndcg@10"]["value"])
    assert turned["A"]["ndcg@10"]["low"] == pytest.approx(-found["B"]["ndcg@10"]["high"], abs=1e-9)


def test_the_same_recommendations_differ_by_nothing_whatever_the_order_of_examples(
    copy: Path, runs: list[Path]
) -> None:
    order = np.random.default_rng(0).permutation(24)
    examples, rankings = copy / "evaluation" / "_examples.parquet", copy / "evaluation" / "rankings" / "aligned.parquet"
    pq.write_table(pq.read_table(examples).take(order), examples)
    parts = sorted(rankings.glob("part-*.parquet"))
    whole = pa.concat_tables([pq.read_table(part, partitioning=None) for part in parts]).take(order)
    for part in parts[1:]:
        part.unlink()
    pq.write_table(whole, parts[0])
    first, second = read_runs([runs[1], copy])
    found, alone = paired_differences([first, second], first)
    assert alone == []
    for figure in found["B"].values():
        assert [figure[key] for key in ("low", "value", "high")] == pytest.approx([0.0] * 3, abs=1e-12)
        assert sign(figure) == 0


@pytest.mark.parametrize("lost", ["examples", "rankings"])
def test_other_examples_or_lost_rankings_leave_the_intervals_alone(
    copy: Path, runs: list[Path], lost: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "evaluation" / "_examples.parquet"
    if lost == "examples":
        pq.write_table(pq.read_table(path).slice(1), path)
    else:
        shutil.rmtree(copy / "evaluation" / "rankings")
    compare([runs[0], copy], tmp_path / "page.html")
    told = "not measured on the same examples" if lost == "examples" else "are not there any more"
    assert told in capsys.readouterr().err
    for suffix in (".html", ".md"):
        text = (tmp_path / "page").with_suffix(suffix).read_text().replace("\\", "")
        assert told in text
        assert "Paired differences" not in text


def test_the_page_shows_settings_figures_cost_and_verdicts_of_every_run(
    copy: Path, runs: list[Path], tmp_path: Path
) -> None:
    path = copy / "aligned" / "_manifest.json"
    settings = {"align.beta": 0.25, "align.loss": "dpo"}
    found = json.loads(path.read_text())
    write_json(path, found | {"seconds": 5490.0, "settings": settings, "figures": {"tokens": 1500}})
    page = tmp_path / "new" / "page.html"
    compare([runs[0], copy], page, base=copy)
    text, plain = page.read_text(), page.with_suffix(".md").read_text().replace("\\", "")
    for wanted in (
        "align.beta", "0.25", "dpo", "B · copy", "Against B · copy", "8,890,388", "1:31:30",
        "n = 24 examples of 24 users", "What people chose", "Alignment ", "Every model of every run",
    ):  # fmt: skip
        assert wanted in text, wanted
        assert wanted in plain, wanted
    assert text.count("data:image/svg+xml") == 4
    assert not re.search(r"url\(|@import|<link|<script", text)


def test_settings_that_are_equal_are_not_told(runs: list[Path]) -> None:
    assert settings_table(read_runs(runs)) is None


def test_runs_are_told_apart_by_as_much_of_their_path_as_it_takes(runs: list[Path], tmp_path: Path) -> None:
    folders = [Path(shutil.copytree(runs[0], tmp_path / name / "run")) for name in ("a", "b")]
    assert [run.title for run in read_runs(folders)] == ["A · a/run", "B · b/run"]


def _fewer_examples(copy: Path) -> None:
    path = copy / "evaluation" / "metrics.json"
    write_json(path, json.loads(path.read_text()) | {"n_examples": 1000, "n_users": 900})
    path = copy / "evaluation" / "_examples.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)


def _among_candidates(copy: Path) -> None:
    path = copy / "evaluation" / "metrics.json"
    write_json(path, json.loads(path.read_text()) | {"protocol": "candidates"})


def _another_title(copy: Path) -> None:
    path = copy / "examples" / "_items.parquet"
    items = pq.read_table(path)
    more = items.slice(0, 1).set_column(0, "item_id", pa.array([10**6], items.schema.field("item_id").type))
    pq.write_table(pa.concat_tables([items, more]), path)


def _another_first_title(copy: Path) -> None:
    """The same examples and targets, all of whose indexes are one higher."""
    path = copy / "examples" / "_items.parquet"
    items = pq.read_table(path)
    first = items.slice(0, 1).set_column(0, "item_id", pa.array([1], items.schema.field("item_id").type))
    pq.write_table(pa.concat_tables([first, items]), path)
    path = copy / "evaluation" / "_examples.parquet"
    rows = [row | {"target": row["target"] + 1} for row in pq.read_table(path).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(path)), path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_fewer_examples, r"not measured on the same examples \(1,000 of 900 users, and 24 of 24 users\)"),
        (
            _among_candidates,
            r"cannot be compared: B · copy ranked the candidates that prompts list, A · .* whole catal",
        ),
        (_another_title, r"ranked different catalogues \(31 and 30 titles\)"),
        (_another_first_title, r"ranked different catalogues \(31 and 30 titles\)"),
    ],
)
def test_runs_of_other_data_get_no_paired_difference_and_are_told_why(
    change: Any, words: str, copy: Path, runs: list[Path]
) -> None:
    change(copy)
    first, second = read_runs([runs[0], copy])
    found, alone = paired_differences([first, second], first)
    assert found == {}
    assert len(alone) == 1
    assert re.search(words, alone[0])


def _older(copy: Path, runs: list[Path]) -> list[Path]:
    make_older(copy / "evaluation")
    return [runs[0], copy]


def _split(copy: Path, runs: list[Path]) -> list[Path]:
    path = copy / "evaluation" / "metrics.json"
    write_json(path, json.loads(path.read_text()) | {"split": "validation"})
    return [runs[0], copy]


def _baselines(copy: Path, runs: list[Path]) -> list[Path]:
    path = copy / "evaluation" / "metrics.json"
    write_json(path, json.loads(path.read_text()) | {"models": {"popular": {}}})
    return [runs[0], copy]


def _empty(copy: Path, runs: list[Path]) -> list[Path]:
    (copy.parent / "empty").mkdir()
    return [runs[0], copy.parent / "empty"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda copy, runs: [runs[0]], "two runs at least"),
        (lambda copy, runs: [runs[0], runs[0] / "."], "given twice"),
        (lambda copy, runs: [runs[0], copy / "nowhere"], "nowhere is no evaluated run"),
        (_empty, r"is no evaluated run .*run `rosepo evaluate --out"),
        (_baselines, "no model of its own"),
        (_older, rf"evaluation was made by an older rosepo \({OLD_VERSION}\)"),
        (_split, "evaluated on the validation split .* same evaluate.split"),
    ],
)
def test_misuse_is_refused_in_a_sentence(given: Any, words: str, copy: Path, runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        compare(given(copy, runs), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_base_that_is_no_run_and_an_out_that_is_no_page_are_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--base .* is none of the runs"):
        compare(runs, tmp_path / "page.html", base=tmp_path)
    for out in (tmp_path, tmp_path / "page.pdf"):
        with pytest.raises(UserError, match=r"is no \.html file"):
            compare(runs, out)
    with pytest.raises(UserError, match="is the report of one of the runs"):
        compare(runs, runs[1] / "report.html")


def test_the_command_ends_with_2_on_misuse_and_says_what_it_takes(runs: list[Path]) -> None:
    from typer.testing import CliRunner

    from rosepo.cli.app import app

    runner = CliRunner()
    assert runner.invoke(app, ["compare", str(runs[0])]).exit_code == 2
    shown = runner.invoke(app, ["compare", "--help"])
    assert shown.exit_code == 0
    for word in ("--out", "--base", "RUNS"):
        assert word in shown.output
