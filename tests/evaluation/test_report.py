from __future__ import annotations

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rosepo.artifacts import Outputs, write_json
from rosepo.config import AlignConfig
from rosepo.console import Progress
from rosepo.data.catalogue import Catalogue
from rosepo.evaluation import evaluate as stage
from rosepo.evaluation.baselines import Popular, markov
from rosepo.evaluation.rankers import rank_by_batches
from rosepo.evaluation.rankings import write_examples
from rosepo.evaluation.report import write_report
from rosepo.evaluation.smoothing import shape_of
from rosepo.evaluation.verdict import number, verdict
from tests.evaluation import runs

EVIL = '<script>alert("x")</script> & <b>Friends</b>'


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a tiny run in which a title is HTML; scorers stand in for the two language models' files."""
    root = tmp_path_factory.mktemp("run")
    catalogue = runs.tiny_catalogue(30)
    catalogue = Catalogue(
        catalogue.item_ids, [EVIL + str(i) for i in range(30)], catalogue.categories, catalogue.train_count
    )
    runs.write_examples(root, catalogue)
    inputs, out = Outputs(root), root / "evaluation"
    (out / "rankings").mkdir(parents=True)
    config = runs.tiny_config("data.dataset=movietweetings-100k")
    write_examples(inputs.examples, "test", None, 8, out / "_examples.parquet")
    scorers = {"popular": Popular(catalogue.train_count), "markov": markov(inputs.examples, catalogue)}
    scorers |= {"sft": scorers["markov"], "aligned": Popular(-catalogue.train_count)}
    with Progress("rank", 1) as progress:
        for name, scorer in scorers.items():
            path = out / "rankings" / f"{name}.parquet"
            rank_by_batches(
                lambda batch, scorer=scorer: scorer.score_all(batch.histories),
                out / "_examples.parquet",
                catalogue,
                path,
                progress,
            )
    metrics, exposure = stage.measure(
        config, inputs, catalogue, out / "_examples.parquet", out / "rankings", list(scorers)
    )
    write_json(out / "metrics.json", metrics)
    pq.write_table(exposure, out / "exposure.parquet")
    inputs.groups.mkdir()
    groups = {"strategy": [["semantic", "popularity"]] * 5, "epsilon": [[0.1, 0.4]] * 5}
    pq.write_table(pa.table(groups), inputs.groups / "part-00000.parquet")
    inputs.aligned.mkdir()
    (inputs.aligned / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 0.7}\n{"step": 2, "loss": 0.6, "rows_per_second": 3}\n'
    )
    manifest = {"stage": "align", "seconds": 3.2, "figures": {}, "command": "rosepo run --set a='<i>'"}
    write_json(inputs.aligned / "_manifest.json", manifest)
    write_report(config, inputs, out, seconds=1.0)
    return out / "report.html"


class _Page(HTMLParser):
    """References and tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_the_page_needs_nothing_beside_itself(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    page = _Page(text)
    assert page.references
    assert all(reference.startswith("data:image/svg+xml;base64,") for reference in page.references)
    assert not re.search(r"url\(|@import|<link", text)
    for reference in page.references:
        svg = base64.b64decode(reference.partition(",")[2]).decode()
        assert not re.search(r'href="(?!#)', svg)


def test_titles_and_commands_are_text_not_markup(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    page = _Page(text)
    assert "script" not in page.tags
    assert "i" not in page.tags
    assert "&lt;script&gt;alert(" in text


def test_every_section_is_there(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    for name in ("verdict", "run", "results", "cases", "bias", "epsilon", "training", "cost", "reproduce"):
        assert f'id="{name}"' in text
    assert 'id="sweep"' not in text


@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_draws_the_page_without_errors(report: Path, tmp_path: Path, width: int) -> None:
    browsers = ("chromium", "chromium-browser", "google-chrome")
    browser = next((path for path in map(shutil.which, browsers) if path), None)
    if browser is None:
        pytest.skip("no Chromium on this machine: the report was not drawn")
    picture = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    paths = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}", f"--window-size={width},1600"]
    command = [browser, *flags, *paths, report.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert picture.stat().st_size > 20_000
    assert "CONSOLE" not in done.stderr


def _metrics(low: float, high: float) -> dict[str, object]:
    middle = (low + high) / 2
    keys = ("hr@10", "ndcg@10", "log_popularity", "hallucination")
    sft = {key: {"value": 1.0, "low": 0.9, "high": 1.1, "truth": 0.0} for key in keys}
    aligned = {key: {**figure, "value": 1.0 + middle} for key, figure in sft.items()}
    difference = {key: {"value": middle, "low": low, "high": high} for key in keys}
    return {"models": {"sft": sft, "aligned": aligned}, "differences": {"aligned-sft": difference}}


def test_the_verdict_calls_nothing_a_difference_that_may_be_none() -> None:
    said = str(verdict(_metrics(-0.1, 0.1)))
    assert said.count("no difference seen") == 4
    assert "changed nothing that can be seen in accuracy" in said


def test_the_verdict_says_what_is_better_and_what_is_worse() -> None:
    assert "more accurate" in verdict(_metrics(0.1, 0.2)).headline
    assert "raised popularity bias" in verdict(_metrics(0.1, 0.2)).headline
    worse = verdict(_metrics(-0.2, -0.1))
    assert "less accurate" in worse.headline
    assert "lowered popularity bias and lowered semantic hallucination" in worse.headline


@pytest.mark.parametrize(
    ("sft", "aligned", "words"),
    [
        (5.0, 5.5, "raised popularity bias"),
        (5.0, 4.5, "lowered popularity bias"),
        (5.0, 4.0, "lowered popularity bias"),
        (5.0, 3.0, "moved to less popular titles than people choose"),
        (4.0, 3.0, "moved to less popular titles than people choose"),
        (3.0, 4.0, "moved nearer to the popularity of what people choose"),
        (3.0, 4.5, "moved nearer to the popularity of what people choose"),
        (4.0, 5.0, "raised popularity bias"),
    ],
)
def test_popularity_bias_is_the_excess_over_what_people_choose(sft: float, aligned: float, words: str) -> None:
    metrics: Any = _metrics(-0.1, 0.1)
    models, difference = metrics["models"], metrics["differences"]["aligned-sft"]["log_popularity"]
    models["sft"]["log_popularity"] = {"value": sft, "truth": 4.2}
    models["aligned"]["log_popularity"] = {"value": aligned, "truth": 4.2}
    difference |= {"value": aligned - sft, "low": aligned - sft - 0.1, "high": aligned - sft + 0.1}
    said = verdict(metrics)
    assert said.headline.endswith(f"in accuracy and {words}")
    direction = "more" if aligned > sft else "less"
    nearer = "nearer to" if abs(aligned - 4.2) < abs(sft - 4.2) else "further from"
    assert f"{direction} popular titles, {nearer} what people chose." in str(said)


def test_numbers_are_written_with_a_true_minus_and_no_minus_zero() -> None:
    assert [number(value, True) for value in (-0.0123, -0.0001, 0.5, None)] == ["−0.012", "0.000", "+0.500", "–"]
    assert [number(value) for value in (12.344, -1.0)] == ["12.34", "−1.000"]


@pytest.mark.parametrize(
    ("align", "figures", "words"),
    [
        ({"epsilon_max": 0.3}, {}, "ε ≤ 0.3"),
        ({"epsilon": "shuffled"}, {}, "ε ≤ 0.4, shuffled over all pairs"),
        ({"epsilon": "constant"}, {"epsilon_value": 0.23456}, "one ε = 0.235 for all pairs"),
        ({"epsilon": "zero"}, {"epsilon_value": 0.0}, "ε = 0"),
        ({"epsilon": "spa"}, {"epsilon_value": 0.1}, "ε = 0.1 for the 10 % of pairs with the least margin"),
        ({"loss": "softmax"}, {}, "target ≥ 0.5"),
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
    assert shape_of(AlignConfig(**align), figures) == words
