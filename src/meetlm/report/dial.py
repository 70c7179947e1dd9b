"""The page of a calibrated dial, and its picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meetlm.diagnostics.intervals import Interval
from meetlm.evaluation.dial import Curve, Dial, Pareto
from meetlm.evaluation.record import Problem
from meetlm.report.charts import INK, MUTED, SERIES, Chart, draw
from meetlm.report.examples import ShownPair
from meetlm.report.page import ExampleGroup, Report
from meetlm.report.sections import Section
from meetlm.report.summary import Finding, Summary
from meetlm.report.tables import Cell, Table, interval_cell
from meetlm.report.wording import brackets, clause, listed, number, p_value
from meetlm.report.write import as_yaml, write_pages

SAFE = "#e3efe6"
"""Colour behind the safe range."""


def write_dial_report(
    dials: Sequence[Dial],
    pareto: Pareto | None,
    examples: dict[str, tuple[str, dict[float, str]]],
    settings: dict[str, object],
    problems: Sequence[Problem],
    folder: Path,
) -> tuple[Path, Path]:
    """Write ``dial.html`` and ``dial.md``.

    Args:
        dials: The dials of a run.
        pareto: Combinations of two of them.
        examples: A prompt and its replies by setting, for each attribute.
        settings: What was run.
        problems: Replies without a score, and the like.
        folder: Where to write; created if needed.

    Returns:
        Both files.
    """
    sections = [
        Section(
            f"dial-{index}",
            f"Dial of {_name(dial)}",
            [dial_table(dial)],
            [_chart(dial, curve) for curve in (dial.score, *dial.fluency, *dial.others)],
        )
        for index, dial in enumerate(dials)
    ]
    if pareto is not None:
        sections.append(Section("pareto", "Both dials", [_pareto_table(pareto)], [_pareto_chart(pareto)]))
    if problems:
        rows = [[Cell(p.description), Cell(f"{p.count:,}"), Cell(p.shown_examples)] for p in problems]
        sections.append(Section("problems", "Problems", [Table("Problems", ["Problem", "Count", "Examples"], rows)]))
    groups = []
    for dial in dials:
        prompt, replies = examples[dial.attribute]
        texts = [(f"{setting:g}", text.strip() or "(empty)") for setting, text in replies.items()]
        pair = ShownPair("The first prompt", "", [("prompt", prompt)], texts)
        groups.append(ExampleGroup(f"Replies to one prompt by the setting of {_name(dial)}", "", [pair]))
    report = Report(
        title=f"Dial of {settings['run']}",
        details="",
        summary=Summary(_opening(dials), [_finding(dial) for dial in dials], [c for d in dials for c in _caveats(d)]),
        sections=sections,
        examples=groups,
        settings={"Settings": as_yaml(settings)},
    )
    return write_pages(folder, "dial", report)


def write_picture(dials: Sequence[Dial], file: Path) -> None:
    """Write a picture of the score and of fluency over the setting; the extension selects SVG or PNG."""
    figure = Figure(figsize=(3.4 * 3, 2.9 * len(dials)), layout="constrained")
    axes = figure.subplots(len(dials), 3, squeeze=False)
    for row, dial in zip(axes, dials, strict=True):
        curves = (dial.score, dial.fluency[0], dial.others[-1] if dial.others else dial.fluency[1])
        for panel, curve in zip(row, curves, strict=True):
            _paint(panel, dial, curve)
            panel.set(title=curve.name, ylabel="")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=150)


def _name(dial: Dial) -> str:
    if dial.by == "level":
        return dial.attribute or "the level"
    return f"guidance of {dial.attribute}" if dial.attribute else "guidance"


def _opening(dials: Sequence[Dial]) -> str:
    num_prompts, names = len(set(dials[0].prompts)), listed(list(map(_name, dials)))
    scale = "0 is the worst level, 1 the best, numbers beyond extrapolate"
    if dials[0].by == "guidance":
        scale = "its strength at the best level, against the worst; 0 is the best level alone"
    return (
        f"Replies to {num_prompts:,} held-out prompts were sampled at several settings of {names}: {scale}. Brackets "
        "are 95% intervals over prompts. The safe range ends where fluency breaks: where the NLL under the base model, "
        "the share of repeated 4-grams or the share of replies cut at the limit exceeds that of the reference setting "
        "by more than its limit."
    )


def _finding(dial: Dial) -> Finding:
    trend = dial.trend
    rises = "rises with the setting" if trend.rises else "does not rise at every step of the setting"
    tau = f", mean Kendall's τ {number(trend.tau.value, 2)} {brackets(trend.tau, 2)}" if trend.tau else ""
    p = p_value(trend.p)
    text = (
        f"safe from {dial.safe[0]:g} to {dial.safe[1]:g}, recommended {dial.recommended:g}. Inside this range "
        f"{dial.score.name} {rises} (Page's trend test: p {p if p[0] == '<' else '= ' + p}{tau})"
    )
    if dial.reach:
        text += f" and changes by {_with_interval(dial.reach)} from end to end"
    if dial.gain:
        text += (
            f". From {dial.reference:g} to {dial.recommended:g} it changes by {_with_interval(dial.gain)}, on the half "
            "of the prompts that did not choose the setting"
        )
    for effect in dial.side_effects:
        relative = (
            "" if effect.relative is None else f", {number(effect.relative, 2)} of the effect on {dial.score.name}"
        )
        text += f"; {effect.name} changes by {_with_interval(effect.change)}{relative}"
    if dial.broken:
        reasons = [f"{setting:g} ({reason})" for setting, reason in sorted(dial.broken.items())]
        text += f". Fluency breaks at {listed(reasons)}"
    return Finding(_name(dial), text + ".", {})


def _caveats(dial: Dial) -> list[str]:
    caveats = [
        f"{dial.score.name} falls between {first:g} and {second:g} of {_name(dial)}."
        for first, second in dial.trend.falls
    ]
    if dial.safe[1] == dial.settings[-1]:
        caveats.append(f"{_name(dial)} was not measured beyond {dial.settings[-1]:g}: the safe range may be wider.")
    if dial.gain and not dial.improves and dial.recommended != dial.reference:
        caveats.append(
            f"The gain of {_name(dial)} at {dial.recommended:g} over {dial.reference:g} is not significantly different "
            "from 0."
        )
    return caveats


def dial_table(dial: Dial) -> Table:
    """Return every measure at every setting of a dial."""
    curves = [dial.score, *dial.fluency, *dial.others]
    rows = []
    for index, setting in enumerate(dial.settings):
        is_safe = dial.safe[0] <= setting <= dial.safe[1]
        mark = "recommended" if setting == dial.recommended else "safe" if is_safe else "beyond the safe range"
        rows.append(
            [Cell(f"{setting:g}", mark, strong=is_safe), *(interval_cell(curve.means[index]) for curve in curves)]
        )
    notes = [f"{curve.name}: {clause(curve.description)}." for curve in curves]
    return Table(f"Measures by the setting of {_name(dial)}", ["Setting", *(c.name for c in curves)], rows, notes)


def _chart(dial: Dial, curve: Curve) -> Chart:
    points = zip(dial.settings, curve.means, strict=True)
    alt = f"{curve.name} of {_name(dial)}: " + ", ".join(
        f"{interval_cell(interval).text} at {setting:g}" for setting, interval in points if interval
    )
    shading = "The safe range is shaded; the line is the recommended setting."
    caption = f"{clause(curve.description)}, with 95% intervals. {shading}"
    return draw(curve.name, 2.9, alt, caption, lambda axes: _paint(axes, dial, curve))


def _paint(axes: Axes, dial: Dial, curve: Curve) -> None:
    axes.axvspan(*dial.safe, color=SAFE, zorder=0)
    axes.axvline(dial.recommended, color=MUTED, linewidth=1.4)
    points = [(setting, mean) for setting, mean in zip(dial.settings, curve.means, strict=True) if mean]
    means = [mean for _, mean in points]
    errors = [[mean.value - mean.low for mean in means], [mean.high - mean.value for mean in means]]
    axes.errorbar([x for x, _ in points], [mean.value for mean in means], yerr=errors, color=SERIES[0], marker="o")
    axes.set_xlabel(f"setting of {_name(dial)}")
    axes.set_ylabel(curve.name)


def _pareto_table(pareto: Pareto) -> Table:
    rows = [
        [
            *(Cell(f"{setting:g}") for setting in pareto.settings[index]),
            *(Cell(number(score, 3)) for score in pareto.scores[index]),
        ]
        for index in pareto.front
    ]
    first, second = pareto.attributes
    note = (
        f"Hypervolume above the least mean of both scores: {number(pareto.hypervolume.value, 3)} "
        f"{brackets(pareto.hypervolume, 3)}, with a 95% interval over prompts."
    )
    columns = [first, second, f"score of {first}", f"score of {second}"]
    return Table("Combinations that no other combination beats in both scores", columns, rows, [note])


def _pareto_chart(pareto: Pareto) -> Chart:
    front = [pareto.scores[index] for index in pareto.front]

    def paint(axes: Axes) -> None:
        axes.scatter(*zip(*pareto.scores, strict=True), color=MUTED)
        axes.plot(*zip(*front, strict=True), color=SERIES[0], marker="o")
        for index in pareto.front:
            axes.annotate("{:g}, {:g}".format(*pareto.settings[index]), pareto.scores[index], color=INK, fontsize=9)
        axes.set_xlabel(f"score of {pareto.attributes[0]}")
        axes.set_ylabel(f"score of {pareto.attributes[1]}")

    alt = "Pareto front: " + ", ".join(f"({number(a, 3)}, {number(b, 3)})" for a, b in front)
    return draw("Pareto front", 3.6, alt, "Means of both scores; labels are the settings of both dials.", paint)


def _with_interval(interval: Interval) -> str:
    cell = interval_cell(interval)
    return f"{cell.text} {cell.small}"
