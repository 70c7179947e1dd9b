"""A report as one HTML page that needs nothing else, and as Markdown.

Completions are anybody's text, so nothing of them is ever markup: the template escapes, the data are JSON that cannot
end its element, the script sets text and never HTML, and the page's policy forbids any other script and any request.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from meetlm.report.examples import Example
from meetlm.report.sections import Section
from meetlm.report.summary import Summary
from meetlm.report.tables import Cell, Table
from meetlm.report.wording import NO_VALUE


@dataclass(frozen=True, slots=True)
class ExampleGroup:
    """Examples of one evaluation.

    Attributes:
        heading: Empty in a report about one evaluation.
        address: Of the page with all completions; empty where this is that page.
        examples: Some pairs.
    """

    heading: str
    address: str
    examples: Sequence[Example]


@dataclass(frozen=True, slots=True)
class Report:
    """The content of a report: the view model of the page and of its Markdown version.

    Attributes:
        title: Its heading.
        details: The date and the version, below the heading.
        summary: In words.
        sections: Tables and charts.
        examples: By evaluation.
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
    loader = PackageLoader("meetlm.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["unbroken"] = _unbroken
    # Only our own files and JSON made for this place go in unescaped.
    style, script = (Markup(loader.get_source(environment, name)[0]) for name in ("report.css", "report.js"))
    return environment.get_template("report.html").render(
        report=report,
        data=Markup(report.data),
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        no_value=NO_VALUE,
    )


def _unbroken(text: str) -> str:
    """Return text in which no line can end inside an interval, a p or a Δ."""
    figure = r"\[[^\[\] ]+, [^\[\] ]+\]|(?:p )?[<=] [\d.]+|Δ [+−\d]"
    return re.sub(figure, lambda match: match[0].replace(" ", "\xa0"), text)


def to_markdown(report: Report) -> str:
    """Return the report as Markdown: the text and the tables of the page, and the alternative texts of its charts."""
    return "\n\n".join(part for part in _markdown_parts(report) if part) + "\n"


def _markdown_parts(report: Report) -> Iterator[str]:
    yield f"# {escaped(report.title)}"
    yield escaped(report.details)
    yield "## Summary"
    yield escaped(report.summary.opening)
    yield "\n".join(f"- **{escaped(f.system)}**: {escaped(f.text)}" for f in report.summary.findings)
    if report.summary.caveats:
        yield "### What cannot be concluded"
        yield "\n".join(f"- {escaped(caveat)}" for caveat in report.summary.caveats)
    for section in report.sections:
        yield f"## {section.title}"
        yield escaped(section.lead)
        yield from map(_table, section.tables)
        yield "\n".join(f"- Chart in the page, {escaped(f'{c.title}: {c.alt}')}." for c in section.charts)
        yield from (f"**{escaped(name)}**\n\n{fenced(text)}" for name, text in section.texts.items())
    if any(group.examples for group in report.examples):
        yield "## Examples"
    for group in report.examples:
        if group.heading:
            yield f"{escaped(group.heading)}; all completions are in {group.address}."
        for example in group.examples:
            yield f"### {escaped(example.title)}\n\n{escaped(example.outcomes)}."
            yield from (f"{escaped(name)}:\n\n{fenced(text)}" for name, text in [*example.prompt, *example.replies])
    yield "## Settings"
    yield from (f"{escaped(name)}\n\n{fenced(text)}" for name, text in report.settings.items())


def _table(table: Table) -> str:
    lines = ["| " + " | ".join(map(escaped, table.columns)) + " |", "| --- " * len(table.columns) + "|"]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in table.rows]
    return "\n\n".join([f"**{escaped(table.caption)}**", "\n".join(lines), *map(escaped, table.notes)])


def _cell(cell: Cell) -> str:
    text = f"**{escaped(cell.text)}**" if cell.strong else escaped(cell.text)
    return f"{text} {escaped(cell.small)}".strip()


def escaped(text: str) -> str:
    """Return text on one line that Markdown shows as it is: no HTML, emphasis, link or table cell in it."""
    line = re.sub(r"&(?=#?\w+;)", "&amp;", " ".join(text.split()))
    line = re.sub(r"([\\`*|~#]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|^[>+=-])", r"\\\1", line)
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line)


def fenced(text: str) -> str:
    """Return text in a fence longer than any that it holds, so that none of it is Markdown."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
