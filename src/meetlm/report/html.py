"""A report as one HTML page that needs nothing else: styles, script, figures and every completion are in it.

Completions are anybody's text, so nothing of them is ever markup: templates escape, the cells are JSON that cannot end
its element, the script sets text and never HTML, and the page's own policy forbids any other script and any request.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from meetlm.report.examples import Shown
from meetlm.report.sections import Section
from meetlm.report.summary import Summary
from meetlm.report.wording import NONE


def write_html(
    title: str,
    summary: Summary,
    sections: Sequence[Section],
    cells: str | None,
    settings: Mapping[str, str],
    highlights: Sequence[Shown] = (),
    folded: Mapping[str, tuple[str, Sequence[Shown]]] | None = None,
) -> str:
    """Return the page.

    Args:
        title: Its heading.
        summary: In words.
        sections: Tables and figures.
        cells: JSON of :func:`meetlm.report.examples.payload`; ``None`` for a page without these.
        settings: YAML by heading.
        highlights: Of the cells, examples for paper, and for a browser without script.
        folded: By heading, the address of a page of cells and some examples of it.
    """
    loader = PackageLoader("meetlm.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Only our own files, figures and JSON, all made to stand there, go in unescaped.
    style, script = (Markup(loader.get_source(environment, name)[0]) for name in ("report.css", "report.js"))
    environment.filters["unbroken"] = _unbroken
    return environment.get_template("report.html").render(
        title=title,
        summary=summary,
        sections=sections,
        cells=None if cells is None else Markup(cells),
        settings=settings,
        highlights=highlights,
        folded=folded or {},
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        raw=Markup,
        none_sign=NONE,
    )


def _unbroken(text: str) -> str:
    """Return text in which no line can end inside an interval, a p or a Δ."""
    figure = r"\[[^\[\] ]+, [^\[\] ]+\]|(?:p )?[<=] [\d.]+|Δ [+−\d]"
    return re.sub(figure, lambda found: found[0].replace(" ", "\xa0"), text)
