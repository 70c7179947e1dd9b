"""A report as one HTML page that needs nothing else, and as Markdown.

Completions are untrusted text and never become markup: the template escapes them, the data are JSON that cannot end its
element, the script inserts text and never HTML, and the page's policy forbids any other script and any request.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from meetlm.report.examples import ShownPair
from meetlm.report.sections import Section
from meetlm.report.summary import Summary
from meetlm.report.wording import NO_VALUE


@dataclass(frozen=True, slots=True)
class ExampleGroup:
    """Examples of one evaluation.

    Attributes:
        heading: Empty in a report about one evaluation.
        address: Address of the page with all completions; empty where this is that page.
        examples: Some pairs.
    """

    heading: str
    address: str
    examples: Sequence[ShownPair]


@dataclass(frozen=True, slots=True)
class Report:
    """The content of a report: the view model of the page and of its Markdown version.

    Attributes:
        title: Its heading.
        details: The date and the version, below the heading.
        summary: The results in words.
        sections: Tables and charts.
        examples: Examples of each evaluation.
        settings: YAML by heading.
        data: All pairs, as :func:`meetlm.report.examples.page_data` returns them; empty for a page without them.
    """

    title: str
    details: str
    summary: Summary
    sections: Sequence[Section]
    examples: Sequence[ExampleGroup]
    settings: Mapping[str, str]
    data: str = ""


def to_html(report: Report) -> str:
    """Return the page."""
    # Only our own files, and JSON that is escaped for a script element, are inserted unescaped.
    style, script = (Markup(_LOADER.get_source(_TEMPLATES, name)[0]) for name in ("report.css", "report.js"))
    return _TEMPLATES.get_template("report.html").render(
        report=report,
        data=Markup(report.data),
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        no_value=NO_VALUE,
    )


def to_markdown(report: Report) -> str:
    """Return the report as Markdown: the text and the tables of the page, and the alternative texts of its charts."""
    return _TEMPLATES.get_template("report.md").render(report=report)


def _unbroken(text: str) -> str:
    """Return text in which no line can end inside an interval, a p or a Δ."""
    figure = r"\[[^\[\] ]+, [^\[\] ]+\]|(?:p )?[<=] [\d.]+|Δ [+−\d]"
    return re.sub(figure, lambda match: match[0].replace(" ", "\xa0"), text)


def escaped(text: str) -> str:
    """Return text on one line that Markdown shows as it is: no HTML, emphasis, link or table cell in it."""
    line = re.sub(r"&(?=#?\w+;)", "&amp;", " ".join(text.split()))
    line = re.sub(r"([\\`*|~#]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|^[>+=-])", r"\\\1", line)
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line)


def fenced(text: str) -> str:
    """Return text in a fence longer than any fence within it, so that it is not read as Markdown."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


_LOADER = PackageLoader("meetlm.report")
_TEMPLATES = Environment(
    loader=_LOADER,
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {"unbroken": _unbroken, "line": escaped, "fenced": fenced}
