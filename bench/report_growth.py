"""RESULTS.md: how cost grows, a table a curve."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from curves import CURVES, Curve
from jobs import LEVELS_GOAL
from results import Goal, Grown, Run, growth_ratios, spread


def growth(run: Run) -> Iterable[str]:
    """Yield the line on levels and the tables of all curves."""
    if not run.growth:
        yield "Not run; `python bench/run.py --jobs growth` runs it alone."
        return
    rounds = max(len(grown.others) for grown in run.growth.values())
    yield (
        "One step of the first stage of MEET: forward, backward, clipping and AdamW; the control is trained, the "
        "language model frozen. Rows are random ids of the wanted length, of which the second half is trained. The "
        f"settings of a curve take their steps in turns, in one process, {rounds} rounds, the first not counted. Time "
        "a token counts real tokens, not a prompt's virtual ones. The ratio is over the first setting of the curve, in "
        "each round."
    )
    yield ""
    yield from _on_levels(run)
    for curve in CURVES:
        if curve.name in run.growth:
            yield from _table(curve, run.growth[curve.name])


def bound_of_levels(run: Run, goal: Goal) -> str:
    """Return what of the cost of levels is the optimizer's, which takes its time a step, not a token."""
    curve = next(one for one in CURVES if one.title == goal.job)
    grown, last = run.growth[curve.name], curve.points[-1].name
    without = growth_ratios(curve, grown, optimizer=False)[last]
    milliseconds = {name: _median(grown, name, "optimizer") for name in (curve.points[0].name, last)}
    told = ", ".join(f"{value:,.0f} ms ({name})" for name, value in milliseconds.items())
    return (
        f"Clipping and optimizer go over every level's numbers once a step, however many tokens it has: {told}. "
        f"Forward and backward alone: {spread(without)}."
    )


def _on_levels(run: Run) -> Iterable[str]:
    """Yield the line on levels, where they were varied."""
    told = []
    for curve in CURVES:
        if curve.of_levels and curve.name in run.growth:
            last = curve.points[-1].name
            whole, without = (
                growth_ratios(curve, run.growth[curve.name], optimizer=which)[last] for which in (True, False)
            )
            told.append(f"{spread(whole)} ({spread(without)}) with {curve.title.removeprefix('levels: ')}")
    if told:
        yield (
            f"**16 levels over 2** (in brackets forward and backward alone; the goal is at most {LEVELS_GOAL:g}): "
            f"{'; '.join(told)}."
        )


def _table(curve: Curve, grown: Grown) -> Iterable[str]:
    ratios = growth_ratios(curve, grown)
    yield ""
    yield f"**{curve.title[0].upper()}{curve.title[1:]}**"
    yield ""
    yield "| setting | ms a token | ratio | of which optimizer, ms a step |"
    yield "| --- | --- | --- | --- |"
    for point in curve.points:
        cost = median(1e3 * step["seconds"] / step["tokens"] for step in grown.steps[point.name][1:])
        optimizer = _median(grown, point.name, "optimizer")
        yield f"| {point.name} | {cost:.2f} | {spread(ratios[point.name])} | {optimizer:,.0f} |"


def _median(grown: Grown, name: str, field: str) -> float:
    """Return the median of a time of a point in ms."""
    return 1e3 * median(step[field] for step in grown.steps[name][1:])
