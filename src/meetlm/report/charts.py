"""The charts of a report, as matplotlib writes them: SVG images with alternative text.

Text stays text in the files (``svg.fonttype: none``), so that the reader's fonts supply letters that matplotlib's font
lacks. The same data give the same bytes.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from meetlm.diagnostics.intervals import prompt_means
from meetlm.evaluation.outcomes import POINTS, margins
from meetlm.evaluation.record import Evaluation, Measure
from meetlm.report.conclusions import JUDGE, RULE, is_significant, judge_doubt
from meetlm.report.conditions import Condition, Conditions, comparisons_of, evaluators_of, measure_of, systems_of
from meetlm.report.wording import clause, in_percent, number, points, scaled

WIDTH = 5.3
"""Inches of 72 units: a phone is about as many points wide, so text keeps its size there."""
LINE, BESIDE_FIGURES = 46, 30
"""Maximum length of a name that has the whole width of a chart, and of a name with figures beside it."""
INK, MUTED, TIE = "#1b1f24", "#59636e", "#b4bac2"
SERIES = ("#1f6fb4", "#c2571a", "#2b8a4b", "#9b3f9b", "#8a6d00", "#0f8a8a", "#c43a5e", "#5b5bd0")
WIN, LOSE = SERIES[:2]
MARKERS = "osD^vPX*"
"""Systems differ by marker too: no meaning depends on colour alone."""
NUM_BINS = 5
"""Number of groups of replies by length, about equally large."""
NUM_BARS = 36
"""Number of bars of a histogram."""
ROW, HISTOGRAM, DELTA_ROW = 0.62, 0.78, 0.45
"""Inches per row of bars, per histogram, per interval of Δ."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "meetlm",
    "text.parse_math": False,
    "font.size": 12,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": "#dde1e6",
    "legend.frameon": False,
}


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of the page.

    Attributes:
        title: Its heading.
        address: The SVG image as a data URL.
        alt: Alternative text: the figures that are drawn.
        caption: What is drawn, and how it was computed.
    """

    title: str
    address: str
    alt: str
    caption: str


HOLLOW = "The hollow bars and markers allow no conclusion, because the judge is inconsistent; see the summary."


class Point(NamedTuple):
    """A mean y at x with its interval; the marker is filled or hollow."""

    x: float
    y: float
    low: float
    high: float
    is_filled: bool = True


Series = Mapping[str, Sequence[Point]]


def win_chart(evaluation: Evaluation, evaluator: str) -> Chart:
    """Return win, tie and lose rates of every system as bars, with the intervals of win and lose."""
    compared = [comparison for _, comparison in comparisons_of([Condition(evaluation)], evaluator)]
    labels = [
        (c.system, " / ".join(number(100 * rate.value, 1) for rate in (c.rates.win, c.rates.tie, c.rates.lose)))
        for c in compared
    ]

    def paint(axes: Axes) -> None:
        for row, comparison in enumerate(compared):
            rates = comparison.rates
            win, tie, lose = (scaled(rate, 100) for rate in (rates.win, rates.tie, rates.lose))
            is_doubtful = bool(judge_doubt(evaluation, evaluator, comparison.system))
            start = 0.0
            for name, share, colour in (("win", win, WIN), ("tie", tie, TIE), ("lose", lose, LOSE)):
                bar = axes.barh(row, share.value, 0.5, left=start, color=colour, label=name if row == 0 else None)
                bar.patches[0].set(fill=not is_doubtful, edgecolor=colour)
                start += share.value
            for y, low, high in ((row - 0.11, win.low, win.high), (row + 0.11, 100 - lose.high, 100 - lose.low)):
                axes.plot([low, high], [y, y], color="white", linewidth=4.5, solid_capstyle="butt")
                axes.plot([low, high], [y, y], color=INK, marker="|", markersize=7)
        _label_rows(axes, labels, gap=0.28)
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of prompts (win / tie / lose)")
        axes.figure.legend(loc="outside lower left", ncols=3)

    alt = "; ".join(f"{c.system}: win {in_percent(c.rates.win)}, lose {in_percent(c.rates.lose)}" for c in compared)
    caption = (
        f"Against {evaluation.baseline}. Lines are 95% intervals: the upper one of the win rate, the lower one of the "
        f"lose rate, counted from the right. {HOLLOW if evaluator == JUDGE else ''}"
    )
    return draw(f"Win, tie, lose by {evaluator}", 0.95 + ROW * len(labels), alt, caption, paint)


def delta_chart(evaluation: Evaluation) -> Chart:
    """Return Δ of every system by every evaluator."""
    condition = Condition(evaluation)
    evaluators = evaluators_of([condition])
    compared = [comparison for _, comparison in comparisons_of([condition])]
    rows: dict[str, tuple[str, str]] = {}
    for comparison in compared:
        rows.setdefault(comparison.system, (comparison.system, ""))
        rows[f"{comparison.system} {comparison.evaluator}"] = comparison.evaluator, points(comparison.rates.delta)

    def paint(axes: Axes) -> None:
        axes.axvline(0, color=MUTED, linewidth=1.4)
        for comparison in compared:
            y = list(rows).index(f"{comparison.system} {comparison.evaluator}")
            delta = scaled(comparison.rates.delta, 100)
            style = _style(evaluators.index(comparison.evaluator), is_filled=is_significant(evaluation, comparison))
            axes.errorbar(delta.value, y, xerr=[[delta.value - delta.low], [delta.high - delta.value]], **style)
        _label_rows(axes, list(rows.values()), gap=0.17)
        axes.set_xlabel("Δ = win − lose, percentage points")

    alt = "; ".join(f"{c.system} by {c.evaluator}: {points(c.rates.delta)}" for c in compared)
    caption = f"Against {evaluation.baseline}, with 95% intervals; a marker is filled where {RULE}."
    return draw("Δ by every evaluator", 0.95 + DELTA_ROW * len(rows), alt, caption, paint)


def temperature_charts(conditions: Conditions) -> list[Chart]:
    """Return Δ over temperature for every baseline and evaluator, one line per system: the paper's Figure 3."""
    charts = []
    for baseline in dict.fromkeys(condition.evaluation.baseline for condition in conditions):
        against = [condition for condition in conditions if condition.evaluation.baseline == baseline]
        for evaluator in evaluators_of(against):
            series: dict[str, list[Point]] = {}
            for condition, comparison in comparisons_of(against, evaluator):
                delta = scaled(comparison.rates.delta, 100)
                is_filled = is_significant(condition.evaluation, comparison)
                point = Point(condition.temperature or 0.0, delta.value, delta.low, delta.high, is_filled)
                series.setdefault(comparison.system, []).append(point)
            caption = f"Against {baseline}, with 95% intervals; a marker is filled where {RULE}."
            title = f"Δ against {baseline} by {evaluator}"
            charts.append(_line_chart(title, series, systems_of(conditions), "temperature", "Δ (%)", caption))
    return charts


def distribution_chart(conditions: Conditions, measure: Measure) -> Chart:
    """Return the distribution of a measure for each system, with its mean, all on one scale."""
    names = list(dict.fromkeys(system.name for c in conditions for system in c.evaluation.systems))
    baselines = {condition.evaluation.baseline for condition in conditions}
    columns: dict[str, NDArray[np.float64]] = {}
    colours = []
    for index, name in enumerate(names):
        for condition in conditions:
            values = (measure_of(condition.evaluation, measure.name) or measure).values
            label = name if condition.temperature is None else f"{name} at {condition.temperature:g}"
            if name in values and label not in columns:
                columns[label] = np.array([v for v in values[name] if v is not None], dtype=np.float64)
                colours.append(MUTED if name in baselines else _style(index)["color"])
    all_values = np.concatenate(list(columns.values()))
    low, high = map(float, np.quantile(all_values, (0.01, 0.99))) if len(all_values) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, NUM_BARS + 1)
    decimals = 1 if high - low >= 10 else 2
    means = {label: number(float(values.mean()), decimals) for label, values in columns.items() if len(values)}

    def paint(axes: Axes) -> None:
        shares = [np.histogram(v.clip(low, high), edges)[0] / max(1, len(v)) for v in columns.values()]
        tallest = max(float(share.max()) for share in shares) or 1.0
        for row, (label, share, colour) in enumerate(zip(columns, shares, colours, strict=True)):
            axes.stairs(row + 0.25 - 0.58 * share / tallest, edges, baseline=row + 0.25, fill=True, color=colour)
            if label in means:
                axes.plot([columns[label].mean()] * 2, [row - 0.33, row + 0.3], color=INK)
        texts = [(label, f"mean {means[label]}" if label in means else "no value") for label in columns]
        _label_rows(axes, texts, gap=0.36)
        axes.set_xlabel(measure.name)

    alt = "; ".join(f"{label}: {_spread(values, decimals)}" for label, values in columns.items())
    caption = (
        f"{clause(measure.description[:1].upper() + measure.description[1:])}. The height is the share of completions, "
        "on one scale for all; the line is the mean. The 1% at each end are counted in the last bars."
    )
    return draw(f"Distribution of {measure.name}", 0.75 + HISTOGRAM * len(columns), alt, caption, paint)


def length_charts(evaluation: Evaluation, word_counts: Measure, scorers: Sequence[Measure]) -> list[Chart]:
    """Return Δ among replies that are shorter or longer than the baseline's, and the mean score by length.

    Args:
        evaluation: The record.
        word_counts: The length of every completion.
        scorers: The measures that are scores.
    """
    names = [system.name for system in evaluation.systems]
    prompts = [prompt for prompt, _ in evaluation.cells]
    bins = f"{NUM_BINS} groups by length; whiskers are ±1.96 standard errors over prompts"
    charts = []
    for evaluator in evaluators_of([Condition(evaluation)]):
        series = {}
        for _, comparison in comparisons_of([Condition(evaluation)], evaluator):
            length_margins = margins(word_counts.values[comparison.system], word_counts.values[comparison.baseline])
            outcomes = [None if outcome is None else 100.0 * POINTS[outcome] for outcome in comparison.outcomes]
            is_filled = not judge_doubt(evaluation, evaluator, comparison.system)
            series[comparison.system] = [
                point._replace(low=max(point.low, -100.0), high=min(point.high, 100.0), is_filled=is_filled)
                for point in group_by_length(length_margins, outcomes, prompts)
            ]
        caption = (
            f"Pairs in {bins}, within ±100%. A line that climbs means that longer replies win. "
            f"{HOLLOW if evaluator == JUDGE else ''}"
        )
        title, x = f"Length against {evaluator}'s outcome", f"words more than {evaluation.baseline}"
        charts.append(_line_chart(title, series, names, x, "Δ (%)", caption))
    for scorer in scorers:
        series = {name: group_by_length(word_counts.values[name], scorer.values[name], prompts) for name in names}
        title, caption = f"Length against {scorer.name}", f"Mean {scorer.name} of completions in {bins}."
        charts.append(_line_chart(title, series, names, "words", scorer.name, caption))
    return charts


def group_by_length(
    lengths: Sequence[float | None], values: Sequence[float | None], prompts: Sequence[int]
) -> list[Point]:
    """Return the mean value of about equally large groups by length, with ±1.96 standard errors.

    Args:
        lengths: Length x of each pair or completion; entries without x or y are left out.
        values: Value y of each.
        prompts: The prompt of each value. Values of the same prompt are not independent, so a prompt counts once per
            group.
    """
    rows = zip(lengths, values, prompts, strict=True)
    table = np.array([row for row in rows if None not in row], dtype=np.float64).reshape(-1, 3)
    xs, ys, prompt_of = table.T
    cuts = np.unique(np.quantile(xs, np.linspace(0, 1, NUM_BINS + 1)[1:-1])) if len(xs) else xs
    groups = np.searchsorted(cuts, xs, side="left")
    points = []
    for group in np.unique(groups):
        is_inside = groups == group
        by_prompt = prompt_means(ys[is_inside, None], prompt_of[is_inside])
        y, half = float(by_prompt.mean()), 0.0
        if len(by_prompt) > 1:
            half = float(1.96 * by_prompt.std(ddof=1) / np.sqrt(len(by_prompt)))
        points.append(Point(float(xs[is_inside].mean()), y, y - half, y + half))
    return points


def _line_chart(title: str, series: Series, names: Sequence[str], x: str, y: str, caption: str) -> Chart:
    """Return a chart with one line per system; ``names`` are all systems, in the order of their colours."""

    def paint(axes: Axes) -> None:
        if y.startswith("Δ"):
            axes.axhline(0, color=MUTED, linewidth=1.4)
        step = 0.008 * (max((p.x for line in series.values() for p in line), default=0) or 1.0)
        for index, (name, line) in enumerate(series.items()):
            style = _style(names.index(name))
            # Lines are drawn slightly apart, so that intervals at the same x do not hide each other.
            xs = [point.x + step * (index - (len(series) - 1) / 2) for point in line]
            errors = [[point.y - point.low for point in line], [point.high - point.y for point in line]]
            label = shortened(name, LINE)
            axes.errorbar(xs, [point.y for point in line], yerr=errors, label=label, **(style | {"mfc": "white"}))
            for x_value, point in zip(xs, line, strict=True):
                if point.is_filled:
                    axes.plot(x_value, point.y, style["marker"], color=style["color"], zorder=3)
        axes.set_xlabel(shortened(x, LINE))
        axes.set_ylabel(y)
        axes.figure.legend(loc="outside lower left")

    decimals = 1 if y.startswith("Δ") else 2
    alt = f"{y} by {x}: " + "; ".join(
        f"{name}: "
        + ", ".join(f"{number(point.y, decimals)} at {number(point.x, 2).rstrip('0').rstrip('.')}" for point in line)
        for name, line in series.items()
    )
    return draw(title, 3.1 + 0.24 * len(series), alt, caption, paint)


def draw(title: str, height: float, alt: str, caption: str, paint: Callable[[Axes], None]) -> Chart:
    """Return a chart of one pair of axes.

    Args:
        title: Its heading, which the page prints.
        height: In inches.
        alt: Alternative text.
        caption: What is drawn.
        paint: Draws into the axes.
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # the same chart whatever the user's matplotlibrc contains
        matplotlib.rcParams.update(STYLE)
        # The reader's fonts draw the text, so it does not matter which letters matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    address = "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
    return Chart(title, address, alt, caption.strip())


def shortened(name: str, length: int) -> str:
    """Return a name without its middle where it is too long; alternative texts and tables have the whole name."""
    return name if len(name) <= length else f"{name[: length // 2]}…{name[-(length // 2) + 1 :]}"


def _label_rows(axes: Axes, rows: Sequence[tuple[str, str]], *, gap: float) -> None:
    """Print the name (left) and the figure (right) of each row above it, so that no long name narrows the chart.

    Args:
        axes: Rows go downwards from y = 0.
        rows: Name and figure of each row. A row without a figure is a heading of the rows below it, and is bold.
        gap: Distance between a row and its texts, in rows.
    """
    for y, (name, figure) in enumerate(rows):
        text_style: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "bottom"}
        name = shortened(name, BESIDE_FIGURES if figure else LINE)
        axes.text(0, y - gap, name, weight="normal" if figure else "bold", **text_style)
        axes.text(1, y - gap, figure, ha="right", **text_style)
    axes.set_ylim(len(rows) - 0.6, -gap - 0.55)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _style(index: int, *, is_filled: bool = True) -> dict[str, Any]:
    """Return the colour and marker of a series; the ninth series has the first colour again, with another marker."""
    colour = SERIES[index % len(SERIES)]
    marker = MARKERS[(index + index // len(SERIES)) % len(MARKERS)]
    return {"color": colour, "marker": marker, "mfc": colour if is_filled else "white", "elinewidth": 1.4}


def _spread(values: NDArray[np.float64], decimals: int) -> str:
    if not len(values):
        return "no value"
    low, middle, high = (number(float(q), decimals) for q in np.quantile(values, (0.1, 0.5, 0.9)))
    return f"mean {number(float(values.mean()), decimals)}, 10% below {low}, median {middle}, 10% above {high}"
