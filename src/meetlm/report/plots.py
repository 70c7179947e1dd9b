"""Figures as inline SVG: matplotlib's object interface with no state of pyplot's, in the colours of the page.

Text stays text (``svg.fonttype: none``): it takes the page's font, can be read aloud, searched and copied, and costs a
fifth of outlines. Colours are placeholders that become the page's CSS variables, so a figure turns dark with the page.
The same data give the same bytes: no date, no random ids.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

WIDTH = 5.3
"""Inches of 72 units. About as many as a phone has points, so that text keeps its size there."""
LINE, IN_LEGEND, BESIDE = 48, 40, 30
"""Letters of a line that has a figure's whole width, that stands in its legend, that has numbers beside it."""
SECOND = 0.25
"""Inches of a name's second line."""
COLOURS = {
    "#000001": "ink",
    "#000002": "muted",
    "#000003": "grid",
    "#000004": "paper",
    "#000011": "win",
    "#000012": "lose",
    "#000013": "tie",
    **{f"#00002{place}": f"series-{place}" for place in range(8)},
}
"""Placeholder to CSS variable."""
INK, MUTED, GRID, PAPER, WIN, LOSE, TIE = list(COLOURS)[:7]
SERIES = list(COLOURS)[7:]
MARKERS = "osD^vPX*"
"""Lines differ by marker too: colour alone does not carry meaning."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "meetlm",
    "text.parse_math": False,
    "text.color": INK,
    "font.size": 12,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 12,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 12,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure of the page.

    Attributes:
        title: Its heading.
        svg: An ``svg`` element with a text alternative, without ids that another figure could have.
        alt: The text alternative.
        caption: What is drawn, and how it was computed.
    """

    title: str
    svg: str
    alt: str
    caption: str


def series_style(place: int) -> tuple[str, str]:
    """Return colour and marker of the system in ``place``; the ninth has the first's colour and another marker."""
    return SERIES[place % len(SERIES)], MARKERS[(place + place // len(SERIES)) % len(MARKERS)]


def wrapped(name: str, most: int) -> str:
    """Return a name in one line, or in two; what fits neither has its middle left out: alternatives have it whole.

    Args:
        name: Broken at white space or a sign where that leaves two lines that fit.
        most: Letters of a line.
    """
    if len(name) <= most:
        return name
    if len(name) > 2 * most:
        name = f"{name[: most - 1]}…{name[1 - most :]}"
    breaks = [at for at in range(len(name) - most, most + 1) if name[at - 1] in " -_/.:,+"]
    at = max(breaks, default=most)
    return f"{name[:at].rstrip()}\n{name[at:]}"


def bar_places(names: Sequence[str], inches: float) -> list[float]:
    """Return the y of rows of bars: 1 apart, with room above for the second line of a name that has one.

    Args:
        names: Of the rows, with numbers beside them.
        inches: Of 1.
    """
    at = -1.0
    return [at := at + 1 + SECOND / inches * wrapped(name, BESIDE).count("\n") for name in names]


def draw(title: str, height: float, alt: str, caption: str, paint: Callable[[Axes], None]) -> Plot:
    """Return a figure of one pair of axes.

    Args:
        title: Its heading, which the page prints.
        height: In inches.
        alt: The text alternative.
        caption: What is drawn.
        paint: Draws into the axes.
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # the same figure whatever stands in the user's matplotlibrc
        matplotlib.rcParams.update(_STYLE)
        # The page's own fonts draw the text; that matplotlib's lacks a letter of a name does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Plot(title, _inline(written.getvalue(), title, alt), alt, caption)


def bars_layout(axes: Axes, rows: Sequence[tuple[str, str]], *, above: float, at: Sequence[float]) -> None:
    """Lay out horizontal rows with their name and a figure above each, so that no long name narrows the plot.

    Args:
        axes: Rows go downwards.
        rows: Name (left) and figure (right) of each; a heading of the rows beneath it has no figure.
        above: How far above a row its texts stand, in rows: close, so that they are read with it.
        at: The y of each row.
    """
    for row, (name, figure) in zip(at, rows, strict=True):
        for text, x, side in ((wrapped(name, BESIDE if figure else LINE), 0, "left"), (figure, 1, "right")):
            place: dict[str, Any] = {
                "xy": (x, row - above),
                "xycoords": ("axes fraction", "data"),
                "va": "bottom",
                "ha": side,
                "weight": "normal" if figure else "bold",
            }
            axes.annotate(text, **place, bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1})
    axes.set_ylim(at[-1] + 0.4 if at else 0.4, -above - 0.55)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(False, axis="y")


def legend_below(axes: Axes, num_columns: int) -> None:
    """Put the legend beneath the axes, where it hides no data."""
    axes.figure.legend(loc="outside lower left", ncols=num_columns, handlelength=1.6)


def _inline(written: str, title: str, alt: str) -> str:
    """Return matplotlib's SVG file as an element of a page: its colours, its font, and ids of its own."""
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", written, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', body)
    assert box, "matplotlib writes a viewBox"
    body = re.sub(r"^.*?<svg[^>]*>", "", body, count=1, flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", title.lower()).strip("-") + "-" + hashlib.sha256(title.encode()).hexdigest()[:4]
    body = re.sub(r'\bid="([^"]*)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r'(?:xlink:)?href="#([^"]*)"', rf'href="#{prefix}-\1"', body)
    body = re.sub(r"url\(#([^)]*)\)", rf"url(#{prefix}-\1)", body)
    for placeholder, name in COLOURS.items():
        body = body.replace(placeholder, f"var(--{name})")
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r"\s*\n\s*", "\n", re.sub(r"<defs>\s*</defs>", "", body))
    return f'<svg viewBox="{box[1]}" role="img" aria-label="{html.escape(alt)}">{body}'
