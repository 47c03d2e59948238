"""Pages from templates: one HTML file that needs nothing beside itself, and the same as Markdown."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from rosepo.report.text.format import number
from rosepo.utils.files import write_text

PACKAGE = "rosepo.report"


def write_pages(path: Path, template: str, page: Mapping[str, Any], pictures: Mapping[str, Any]) -> None:
    """Write `path` (HTML) from `<template>.html.j2` and, beside it, `.md` from `<template>.md.j2`.

    Args:
        page: what both show.
        pictures: data URIs by place, which the HTML alone shows.
    """
    text = _environment(PACKAGE, markup=True).get_template(f"{template}.html.j2").render(**page, pictures=pictures)
    write_text(path, text)
    write_markdown(path.with_suffix(".md"), template, page)


def write_markdown(path: Path, template: str, page: Mapping[str, Any], package: str = PACKAGE) -> None:
    """Write `path` from `<template>.md.j2` of a package."""
    plain = _environment(package, markup=False).get_template(f"{template}.md.j2").render(**page)
    write_text(path, re.sub(r"\n{3,}", "\n\n", plain).strip() + "\n")


def uri(svg: str) -> str:
    """A picture of its own keeps its ids to itself; twelve of them in one document would clash."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def markdown(text: object) -> str:
    """Any text as one line of Markdown that shows it as it is, also inside a table."""
    escaped = re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", str(text))
    return " ".join(escaped.split())


def _environment(package: str, markup: bool) -> Environment:
    # Titles come from anywhere: everything is escaped but the pictures made here.
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(PACKAGE)]),
        autoescape=markup,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "md": markdown}
    return environment
