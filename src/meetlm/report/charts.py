"""Which figures an evaluation has, and what each shows. Draws through :mod:`meetlm.report.plots`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from meetlm.diagnostics.intervals import Interval
from meetlm.evaluation.record import Evaluation, Measure
from meetlm.report.plots import (
    BESIDE,
    IN_LEGEND,
    INK,
    LINE,
    LOSE,
    MUTED,
    PAPER,
    SECOND,
    TIE,
    WIN,
    Plot,
    bar_places,
    bars_layout,
    draw,
    legend_below,
    series_style,
    wrapped,
)
from meetlm.report.tables import evaluators_of, measure_of, ordered
from meetlm.report.verdict import RULE, doubt, is_clear, is_doubtful
from meetlm.report.wording import in_percent, number, percents, points

NUM_BINS = 5
"""Of lengths; each holds about as many cells."""
BARS = 36
"""Of a histogram."""
ROW, HISTOGRAM, LINE_OF_DELTA = 0.62, 0.78, 0.55
"""Inches of a row of bars, of bars of a distribution, of intervals of Δ."""


def evaluation_charts(evaluation: Evaluation) -> dict[str, list[Plot]]:
    """Return the figures of each section that has any."""
    evaluators = evaluators_of(evaluation)
    words, scorers = words_of(evaluation), scorers_of(evaluation)
    found = {
        "results": [
            *([delta_chart(evaluation)] if evaluators else []),
            *(win_chart(evaluation, e) for e in evaluators),
        ],
        "rewards": [distribution_chart(evaluation, one) for one in scorers],
        "lengths": [
            distribution_chart(evaluation, words),
            *(outcome_by_length_chart(evaluation, evaluator, words) for evaluator in evaluators),
            *(score_by_length_chart(evaluation, one, words) for one in scorers),
        ],
    }
    return {section: plots for section, plots in found.items() if plots}


def words_of(evaluation: Evaluation) -> Measure:
    """Return the measure ``words``; counted here, without intervals, where the record has none."""
    found = measure_of(evaluation, "words")
    if found:
        return found
    values: dict[str, list[float | None]] = {
        name: [float(len(text.split())) for text in texts] for name, texts in evaluation.completions.items()
    }
    return Measure("words", "words of a completion", None, values, {})


def scorers_of(evaluation: Evaluation) -> list[Measure]:
    """Return the measures that also judge who wins: rewards, ROUGE, callables."""
    return [one for one in evaluation.measures if one.name in evaluators_of(evaluation)]


def win_chart(evaluation: Evaluation, evaluator: str) -> Plot:
    """Return win, tie and lose rates of every system as bars, with the intervals of win and lose."""
    compared = [one for one in evaluation.comparisons if one.evaluator == evaluator]
    rates = [one.rates for one in compared]
    doubtful = [is_doubtful(evaluation, evaluator, one.system) for one in compared]
    texts = [
        f"{number(100 * r.win.value, 1)} / {number(100 * r.tie.value, 1)} / {number(100 * r.lose.value, 1)}"
        for r in rates
    ]

    at = bar_places([one.system for one in compared], ROW)

    def paint(axes: Axes) -> None:
        for place, (row, rate) in enumerate(zip(at, rates, strict=True)):
            win, tie, lose = (percents(one) for one in (rate.win, rate.tie, rate.lose))
            starts = {"win": 0.0, "tie": win.value, "lose": win.value + tie.value}
            for (kind, start), share, colour in zip(starts.items(), (win, tie, lose), (WIN, TIE, LOSE), strict=True):
                style: dict[str, Any] = {"color": colour}
                if doubtful[place]:  # outlined, above the paper behind the names
                    style = {"facecolor": "none", "edgecolor": colour, "linewidth": 1.4, "zorder": 4}
                axes.barh(row, share.value, 0.5, left=start, label=kind if place == 0 else None, **style)
            # One above the other, so that they can be told apart where ties are few.
            for y, low, high in ((row - 0.11, win.low, win.high), (row + 0.11, 100 - lose.high, 100 - lose.low)):
                axes.plot([low, high], [y, y], color=PAPER, linewidth=4.5, solid_capstyle="butt")
                axes.plot([low, high], [y, y], color=INK, linewidth=1.6, marker="|", markersize=7)
        bars_layout(axes, list(zip([one.system for one in compared], texts, strict=True)), above=0.28, at=at)
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of prompts (win / tie / lose)")
        legend_below(axes, 3)

    alt = "; ".join(
        f"{one.system}: win {in_percent(one.rates.win)}, lose {in_percent(one.rates.lose)}" for one in compared
    )
    caption = (
        f"Against {evaluation.baseline}. Lines are 95% intervals: the upper one of the win rate, "
        f"the lower one of the lose rate, which counts from the right. {doubt(evaluation, evaluator)}"
    ).strip()
    return draw(f"Win, tie, lose by {evaluator}", 0.95 + ROW * (at[-1] + 1), alt, caption, paint)


def delta_chart(evaluation: Evaluation) -> Plot:
    """Return Δ of every system by every evaluator, beside 0."""
    compared = sorted(
        ordered(evaluation), key=lambda one: [s.name for s in evaluation.systems].index(one.system)
    )  # stable: evaluators stay in order
    evaluators = evaluators_of(evaluation)
    rows: list[tuple[str, str]] = []
    at: list[float] = []
    for place, one in enumerate(compared):
        if place == 0 or one.system != compared[place - 1].system:
            rows.append((one.system, ""))
            at.append((at[-1] + 0.9 if at else 0.0) + _second(one.system, LINE))
        rows.append((one.evaluator, points(one.rates.delta)))
        at.append(at[-1] + (0.65 if rows[-2][1] == "" else 0.9) + _second(one.evaluator, BESIDE))

    def paint(axes: Axes) -> None:
        axes.axvline(0, color=MUTED, linewidth=1.4)
        marks = [y for y, (_, figure) in zip(at, rows, strict=True) if figure]
        for row, one in zip(marks, compared, strict=True):
            delta = percents(one.rates.delta)
            colour, marker = series_style(evaluators.index(one.evaluator))
            clear = is_clear(evaluation, one)
            axes.plot([delta.low, delta.high], [row, row], color=colour, linewidth=2)
            axes.plot(delta.value, row, marker, color=colour, markersize=7, markerfacecolor=colour if clear else PAPER)
        bars_layout(axes, rows, above=0.17, at=at)
        axes.set_xlabel("Δ = win − lose, percentage points")

    alt = "; ".join(f"{one.system} by {one.evaluator}: {points(one.rates.delta)}" for one in compared)
    caption = f"Against {evaluation.baseline}, with 95% intervals; a mark is filled where {RULE}."
    for name in evaluators:
        if note := doubt(evaluation, name):
            caption += f" Of {name}: {note[0].lower()}{note[1:]}"
    return draw("Δ by every evaluator", 0.95 + LINE_OF_DELTA * at[-1], alt, caption, paint)


def _second(name: str, most: int) -> float:
    """What the second line of a name takes in the figure of Δ, in its rows."""
    return SECOND / LINE_OF_DELTA * wrapped(name, most).count("\n")


def distribution_chart(evaluation: Evaluation, measure: Measure) -> Plot:
    """Return how a measure is distributed for each system, with its mean."""
    columns = {s.name: known(measure.values.get(s.name, [])) for s in evaluation.systems}
    return histograms(f"Distribution of {measure.name}", measure, columns, {evaluation.baseline})


def histograms(
    title: str,
    measure: Measure,
    columns: Mapping[str, NDArray[np.float64]],
    baselines: Collection[str],
    every: NDArray[np.float64] | None = None,
) -> Plot:
    """Return a row of bars a system, with its mean.

    Args:
        title: Of the figure.
        measure: What is distributed.
        columns: For each system, the values [N] that there are.
        baselines: Systems in grey.
        every: What the scale has to hold, all of ``columns`` where it is ``None``.
    """
    every = np.concatenate(list(columns.values())) if every is None else every
    low, high = (float(edge) for edge in np.quantile(every, (0.01, 0.99))) if len(every) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, BARS + 1)
    means = {name: float(values.mean()) for name, values in columns.items() if len(values)}
    decimals = 1 if high - low >= 10 else 2
    texts = {name: f"mean {number(means[name], decimals)}" if name in means else "no value" for name in columns}

    at = bar_places(list(columns), HISTOGRAM)

    def paint(axes: Axes) -> None:
        shares = {
            n: np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0] / max(1, len(v)) for n, v in columns.items()
        }
        tallest = max((float(share.max()) for share in shares.values()), default=0) or 1.0
        for place, (row, (name, share)) in enumerate(zip(at, shares.items(), strict=True)):
            colour = MUTED if name in baselines else series_style(place)[0]
            axes.stairs(row + 0.25 - 0.58 * share / tallest, edges, baseline=row + 0.25, fill=True, color=colour)
            if name in means:
                axes.plot([means[name]] * 2, [row - 0.33, row + 0.3], color=INK, linewidth=1.6)
        bars_layout(axes, list(texts.items()), above=0.36, at=at)
        axes.set_xlabel(measure.name)

    alt = "; ".join(f"{name}: {_spread(values, decimals)}" for name, values in columns.items())
    caption = (
        f"{measure.description[:1].upper()}{measure.description[1:]}. The height is the share of completions, on one "
        "scale for all; the line is the mean. The 1% at each end are counted in the last bars."
    )
    return draw(title, 0.75 + HISTOGRAM * (at[-1] + 1), alt, caption, paint)


def outcome_by_length_chart(evaluation: Evaluation, evaluator: str, words: Measure) -> Plot:
    """Return Δ among replies that are shorter or longer than the baseline's."""
    signs = {"win": 100.0, "tie": 0.0, "lose": -100.0}
    lines = {}
    for one in (one for one in evaluation.comparisons if one.evaluator == evaluator):
        ours, theirs = words.values[one.system], words.values[one.baseline]
        found = [
            (left - right, signs[outcome], prompt)
            for left, right, outcome, (prompt, _) in zip(ours, theirs, one.outcomes, evaluation.cells, strict=True)
            if left is not None and right is not None and outcome is not None
        ]
        lines[one.system] = binned(found)
    caption = (
        f"Cells in {NUM_BINS} groups by how many words longer the system's reply is than {evaluation.baseline}'s. A "
        "line that climbs says that longer replies win. Whiskers are ±1.96 standard errors over prompts. "
        f"{doubt(evaluation, evaluator)}"
    ).strip()
    hollow = [name for name in lines if is_doubtful(evaluation, evaluator, name)]
    axis, title = f"words more than {evaluation.baseline}", f"Length against {evaluator}'s outcome"
    return _lines(evaluation, title, lines, axis, "Δ (%)", caption, zero=True, hollow=hollow)


def score_by_length_chart(evaluation: Evaluation, measure: Measure, words: Measure) -> Plot:
    """Return the mean score among short and long replies."""
    lines = {}
    for system in (one.name for one in evaluation.systems):
        found = [
            (length, score, prompt)
            for length, score, (prompt, _) in zip(
                words.values[system], measure.values[system], evaluation.cells, strict=True
            )
            if length is not None and score is not None
        ]
        lines[system] = binned(found)
    caption = (
        f"Mean {measure.name} in {NUM_BINS} groups of completions by their words. Whiskers are ±1.96 standard errors "
        "over prompts."
    )
    return _lines(evaluation, f"Length against {measure.name}", lines, "words", measure.name, caption)


def binned(found: Sequence[tuple[float, float, int]]) -> list[tuple[float, float, float]]:
    """Return groups of about equal size by x: mean x, mean y, and the half-width of y's interval.

    Args:
        found: x, y, and the prompt that both belong to: cells of one prompt are not independent, so it counts once.
    """
    if not found:
        return []
    xs, ys = np.array([x for x, _, _ in found]), np.array([y for _, y, _ in found])
    prompts = np.array([prompt for _, _, prompt in found])
    cuts = np.unique(np.quantile(xs, np.linspace(0, 1, NUM_BINS + 1)[1:-1]))
    groups = np.searchsorted(cuts, xs, side="left")
    rows = []
    for group in np.unique(groups):
        inside = groups == group
        _, place, cells = np.unique(prompts[inside], return_inverse=True, return_counts=True)
        of_prompt = np.bincount(place, weights=ys[inside]) / cells
        half = 1.96 * of_prompt.std(ddof=1) / np.sqrt(len(of_prompt)) if len(of_prompt) > 1 else 0.0
        rows.append((float(xs[inside].mean()), float(of_prompt.mean()), float(half)))
    return rows


def _lines(
    evaluation: Evaluation,
    title: str,
    lines: dict[str, list[tuple[float, float, float]]],
    x: str,
    y: str,
    caption: str,
    *,
    zero: bool = False,
    hollow: Collection[str] = (),
) -> Plot:
    order = [one.name for one in evaluation.systems]

    def paint(axes: Axes) -> None:
        if zero:
            axes.axhline(0, color=MUTED, linewidth=1.4)
        for system, rows in lines.items():
            if not rows:
                continue
            colour, marker = series_style(order.index(system))
            colour = MUTED if system == evaluation.baseline else colour
            xs, ys, halves = zip(*rows, strict=True)
            inside, name = PAPER if system in hollow else colour, wrapped(system, IN_LEGEND)
            axes.errorbar(
                xs, ys, yerr=halves, color=colour, marker=marker, markerfacecolor=inside, elinewidth=1, label=name
            )
        axes.set_xlabel(wrapped(x, LINE))
        axes.set_ylabel(y)
        if any(lines.values()):
            legend_below(axes, 1)

    decimals = 0 if zero else 2
    alt = f"{y} by {x}: " + "; ".join(
        f"{name}: " + ", ".join(f"{number(b, decimals)} at {number(a, 0)}" for a, b, _ in rows)
        for name, rows in lines.items()
    )
    return draw(title, 3.1 + _legend(lines), alt, caption, paint)


def _legend(names: Iterable[str]) -> float:
    """Inches of a legend with these names, one below the other."""
    return sum(0.24 + SECOND * wrapped(name, IN_LEGEND).count("\n") for name in names)


def temperature_chart(
    title: str,
    baseline: str,
    lines: dict[str, list[tuple[float, Interval, bool]]],
    order: Sequence[str],
    note: str = "",
) -> Plot:
    """Return Δ over temperature, a line a system: the paper's Figure 3.

    Args:
        title: Of the figure.
        baseline: What the systems are compared with.
        lines: For each system its temperatures, Δ, a share, and whether that shows a difference.
        order: All systems: their places give colours.
        note: Ends the caption.
    """

    def paint(axes: Axes) -> None:
        axes.axhline(0, color=MUTED, linewidth=1.4)
        for place, (system, rows) in enumerate(lines.items()):
            colour, marker = series_style(list(order).index(system))
            # A little apart, so that intervals at the same temperature can be told from each other.
            xs = [temperature + 0.008 * (place - (len(lines) - 1) / 2) for temperature, _, _ in rows]
            deltas = [percents(delta) for _, delta, _ in rows]
            errors = [[d.value - d.low for d in deltas], [d.high - d.value for d in deltas]]
            axes.errorbar(
                xs,
                [d.value for d in deltas],
                yerr=errors,
                color=colour,
                marker=marker,
                markerfacecolor=PAPER,
                elinewidth=1,
                label=wrapped(system, IN_LEGEND),
            )
            clear = [(x, delta.value) for x, delta, (_, _, told) in zip(xs, deltas, rows, strict=True) if told]
            axes.plot([x for x, _ in clear], [y for _, y in clear], marker, color=colour, zorder=3)  # over the hollow
        axes.set_xlabel("temperature")
        axes.set_ylabel("Δ (%)")
        legend_below(axes, 1)

    alt = "; ".join(
        f"{system}: " + ", ".join(f"{points(delta)} at {temperature:g}" for temperature, delta, _ in rows)
        for system, rows in lines.items()
    )
    caption = (
        f"Δ against {baseline}, with 95% intervals; above the grey line the system wins more than it loses. A mark is "
        f"filled where {RULE}. {note}"
    ).strip()
    return draw(title, 3.1 + _legend(lines), alt, caption, paint)


def known(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Return the values [N] that there are."""
    return np.array([value for value in values if value is not None], dtype=np.float64)


def _spread(values: NDArray[np.float64], decimals: int) -> str:
    if not len(values):
        return "no value"
    low, middle, high = (number(float(q), decimals) for q in np.quantile(values, (0.1, 0.5, 0.9)))
    return f"mean {number(float(values.mean()), decimals)}, 10% below {low}, median {middle}, 10% above {high}"
