"""A report as Markdown: the summary and the tables of the page, and one example of each kind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from meetlm.evaluation.record import Evaluation
from meetlm.report.examples import highlights, outcomes_of, turns
from meetlm.report.sections import Section
from meetlm.report.summary import Summary
from meetlm.report.tables import Cell, Table
from meetlm.report.wording import NONE, number

NEWLINES = "\r\n"
EXAMPLES = {"win": "Largest win", "lose": "Largest loss", "tie": "Closest tie"}


def write_markdown(
    title: str, summary: Summary, sections: Sequence[Section], examples: Sequence[str], settings: Mapping[str, str]
) -> str:
    """Return a report as Markdown.

    Args:
        title: Its heading.
        summary: In words.
        sections: With their tables; figures are the page's alone, but their text alternatives are here.
        examples: Finished Markdown.
        settings: YAML by heading.
    """
    parts = [f"# {escaped(title)}", "## Summary", escaped(summary.opening)]
    parts.append("\n".join(f"- **{escaped(one.system)}**: {escaped(one.text)}" for one in summary.findings))
    if summary.caveats:
        parts += ["### What cannot be concluded", "\n".join(f"- {escaped(one)}" for one in summary.caveats)]
    for section in sections:
        parts += [f"## {section.title}", escaped(section.lead), *map(table, section.tables)]
        parts.append(
            "\n".join(f"- Figure in the page, {escaped(one.title)}: {escaped(one.alt)}." for one in section.plots)
        )
        parts += [f"**{escaped(name)}**\n\n{fenced(text)}" for name, text in section.texts.items()]
    if examples:
        parts += ["## Examples", *examples]
    parts += ["## Settings", *(f"{escaped(name)}\n\n{fenced(text)}" for name, text in settings.items())]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(found: Table) -> str:
    """Return a table with its caption and notes."""
    lines = ["| " + " | ".join(map(escaped, found.columns)) + " |", "| --- " * len(found.columns) + "|"]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in found.rows]
    return "\n\n".join([f"**{escaped(found.caption)}**", "\n".join(lines), *map(escaped, found.notes)])


def examples_of(evaluation: Evaluation) -> list[str]:
    """Return the largest win and loss and the closest tie of every system, by the first evaluator that has any."""
    written = []
    for one in highlights(evaluation):
        prompt, seed = evaluation.cells[one.cell]
        margin = one.comparison.margins[one.cell]
        by = f"{one.comparison.evaluator}, {NONE if margin is None else number(margin, 2)}"
        parts = [f"### {EXAMPLES[one.outcome]} of {escaped(one.comparison.system)} ({escaped(by)}; seed {seed})"]
        parts.append(escaped(f"{outcomes_of(evaluation, one.comparison.system, one.cell)}."))
        texts = [*turns(evaluation.prompts[prompt].prompt)]
        texts += [
            (name, evaluation.completions[name][one.cell]) for name in (one.comparison.system, one.comparison.baseline)
        ]
        parts += [f"{escaped(name)}:\n\n{fenced(text.strip(NEWLINES))}" for name, text in texts]
        written.append("\n\n".join(parts))
    return written


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


def _cell(cell: Cell) -> str:
    text = f"**{escaped(cell.text)}**" if cell.strong else escaped(cell.text)
    return f"{text} {escaped(cell.small)}".strip() if cell.small else text
