"""The pages in a real browser: desk, phone and print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rosepo.report.compare import compare
from tests.report.browser import Browser, Drawn, browser, installed
from tests.report.reports import EXTRA, shared_run

PHONE, DESK = 360, 1200


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = installed()
    if path is None:
        pytest.skip("no Chromium on this machine: the pages were not drawn")
    with browser(path, tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages by name, with all that may be on them, long names and titles that are HTML among it."""
    full, plain = shared_run(tmp_path_factory, seed=1, everything=True), shared_run(tmp_path_factory)
    page = tmp_path_factory.mktemp("compare") / "compare.html"
    compare([plain, full], page)
    return {"report": full / "report.html", "compare": page}


def check(drawn: Drawn) -> None:
    assert drawn.said == []
    assert drawn.broken_images == 0
    assert drawn.scroll_width <= drawn.width, "the page can be moved sideways"
    assert drawn.png.startswith(b"\x89PNG")
    assert len(drawn.png) > 20_000
    assert drawn.pdf.startswith(b"%PDF")
    assert drawn.hidden_in_print == 0
    assert drawn.beyond_paper == 0


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_page_is_drawn_without_errors(chromium: Browser, pages: dict[str, Path], name: str, width: int) -> None:
    check(chromium.draw(pages[name], width))


def test_what_is_folded_away_opens_with_a_tap(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.draw(pages["report"], PHONE)
    chromium.call("Emulation.setEmulatedMedia", media="screen")
    height = "document.querySelector('#differences ~ .body').offsetHeight"
    assert chromium.value(height) == 0
    chromium.value("document.querySelector('label[for=differences]').click()")
    assert chromium.value(height) > 100


def test_what_alignment_changed_in_groups_fits_a_desk_whatever_else_was_measured(
    chromium: Browser, pages: dict[str, Path]
) -> None:
    chromium.draw(pages["report"], DESK)
    chromium.call("Emulation.setEmulatedMedia", media="screen")
    hidden = "[...document.querySelectorAll('#groups > .table > .scroll')].map(e => e.scrollWidth - e.clientWidth)"
    found = chromium.value(hidden)
    assert found
    assert max(found) <= 0
    headings = "[...document.querySelectorAll('#groups > .table th')].map(e => e.textContent)"
    assert EXTRA not in chromium.value(headings)


def test_in_the_dark_text_is_light_and_pictures_keep_a_white_ground(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.draw(pages["report"], DESK)
    ground = "getComputedStyle(document.querySelector('{}')).{}"
    colours = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        chromium.call("Emulation.setEmulatedMedia", media="screen", features=features)
        colours[scheme] = [
            chromium.value(ground.format(*of))
            for of in (("section", "backgroundColor"), ("td", "color"), ("figure img", "backgroundColor"))
        ]
    chromium.call("Emulation.setEmulatedMedia", media="screen", features=[])
    assert colours["light"][0] == "rgb(255, 255, 255)"
    assert colours["dark"] == ["rgb(27, 33, 42)", "rgb(228, 232, 238)", "rgb(255, 255, 255)"]


def test_the_browser_would_tell_of_errors_and_of_what_does_not_fit(chromium: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<meta name=viewport content='width=device-width'><img src=nothing.png>"
        "<div style='width:900px'>x</div><table style='width:2000px;height:9px'></table>"
        "<script>console.error('a'); throw new Error('b')</script>"
    )
    drawn = chromium.draw(page, PHONE)
    assert drawn.scroll_width > PHONE
    assert drawn.broken_images == 1
    assert drawn.beyond_paper == 1
    assert len(drawn.said) >= 2
