"""Δ over temperature (the paper's section 4.6 and Figure 3), out of one evaluation a temperature and baseline."""

from __future__ import annotations

from collections.abc import Sequence

from meetlm.config.errors import DataError
from meetlm.evaluation.record import Comparison, Evaluation
from meetlm.report.charts import temperature_chart
from meetlm.report.sections import Section
from meetlm.report.summary import Finding, Summary, verdict
from meetlm.report.tables import Cell, Table, ordered, problem_table, system_table
from meetlm.report.wording import NONE, brackets, count, listed, number, percents, points

Points = Sequence[tuple[float, Evaluation]]
Lines = dict[tuple[str, str], dict[str, dict[float, tuple[Evaluation, Comparison]]]]
"""By baseline and evaluator, then system, then temperature."""


def temperature_lines(given: Points) -> Lines:
    """Return every comparison by baseline and evaluator, then system, then temperature, which rises.

    Raises:
        DataError: There is no comparison, or one twice.
    """
    found: Lines = {}
    for temperature, evaluation in sorted(given, key=lambda point: point[0]):
        for one in ordered(evaluation):
            line = found.setdefault((one.baseline, one.evaluator), {}).setdefault(one.system, {})
            if temperature in line:
                what = f"{one.system} against {one.baseline} by {one.evaluator}"
                raise DataError(
                    f"{what} is there twice at temperature {temperature:g}",
                    file="evaluation.json",
                    field="comparisons",
                    expected="one evaluation a temperature and baseline",
                )
            line[temperature] = evaluation, one
    if not found:
        raise DataError(
            "there is no comparison to plot", file="evaluation.json", field="comparisons", expected="at least one"
        )
    return found


def temperature_summary(given: Points) -> Summary:
    """Return what came out over all temperatures, in words."""
    lines = temperature_lines(given)
    temperatures = sorted({temperature for temperature, _ in given})
    baselines = list(dict.fromkeys(baseline for baseline, _ in lines))
    prompts = sorted({len(evaluation.prompts) for _, evaluation in given})
    numbers = count(prompts[-1], "prompt") if len(prompts) == 1 else f"{prompts[0]:,} to {count(prompts[-1], 'prompt')}"
    opening = (
        f"Δ, the share of prompts won minus the share lost, in percentage points, at "
        f"{count(len(temperatures), 'temperature')} from {temperatures[0]:g} to {temperatures[-1]:g}, against "
        f"{listed(baselines)}, on {numbers}. Brackets are 95% bootstrap intervals over prompts."
    )
    findings, caveats = [], []
    for (baseline, evaluator), systems in lines.items():
        for system, line in systems.items():
            by = {t: verdict(evaluation, one) for t, (evaluation, one) in line.items()}
            kinds = {"better": "better than", "worse": "worse than", "even": "not told apart from"}
            parts = [
                f"{phrase} {baseline} at {listed([f'{t:g}' for t in by if by[t] == kind])}"
                for kind, phrase in kinds.items()
                if kind in by.values()
            ]
            if "inconclusive" in by.values():
                parts.append(f"no conclusion at {listed([f'{t:g}' for t in by if by[t] == 'inconclusive'])}")
            low, high = (end(line, key=lambda t: line[t][1].rates.delta.value) for end in (min, max))
            parts.append(
                " to ".join(f"Δ {points(line[t][1].rates.delta)} at {t:g}" for t in dict.fromkeys((low, high)))
            )
            findings.append(Finding(system, f"by {evaluator}, {'; '.join(parts)}.", {}))
            missing = [f"{t:g}" for t in temperatures if t not in line]
            if missing:
                caveats.append(f"{system} against {baseline} by {evaluator} has no evaluation at {listed(missing)}.")
    compared = sum(len(line) for systems in lines.values() for line in systems.values())
    if compared > 1:
        caveats.append(
            f"There are {compared} comparisons, each with its own 95% interval, not corrected for their number: of "
            "twenty without any difference, one would seem clear by chance."
        )
    one_seed = [t for t, evaluation in given if t > 0 and len({seed for _, seed in evaluation.cells}) == 1]
    if one_seed:
        at = listed([f"{t:g}" for t in sorted(set(one_seed))])
        caveats.append(f"One seed only at {at}: the intervals hold the chance of prompts, not of draws.")
    problems = sum(one.count for _, evaluation in given for one in evaluation.problems)
    if problems:
        caveats.append(f"{count(problems, 'row')} with problems in all evaluations together: named below.")
    order = list(dict.fromkeys(one.system for one in findings))
    return Summary(opening, sorted(findings, key=lambda one: order.index(one.system)), caveats)


def temperature_sections(given: Points) -> list[Section]:
    """Return the figure and the table of every baseline and evaluator, then what was wrong and where it came from."""
    lines = temperature_lines(given)
    order = list(dict.fromkeys(system for systems in lines.values() for system in systems))
    plots, tables = [], []
    for (baseline, evaluator), systems in lines.items():
        title = f"Δ against {baseline} by {evaluator}"
        deltas = {name: [(t, one.rates.delta) for t, (_, one) in line.items()] for name, line in systems.items()}
        plots.append(temperature_chart(title, baseline, deltas, order))
        temperatures = sorted({t for line in systems.values() for t in line})
        rows = [[Cell(name), *(_delta(line.get(t)) for t in temperatures)] for name, line in systems.items()]
        note = "Δ in percentage points with its 95% interval; bold where the interval does not contain 0."
        tables.append(Table(f"{title}, over temperature", ["System", *(f"{t:g}" for t in temperatures)], rows, [note]))
    problems = [
        Table(f"Problems at temperature {t:g} against {evaluation.baseline}", found.columns, found.rows)
        for t, evaluation in given
        if evaluation.problems
        for found in [problem_table(evaluation)]
    ]
    sources = [
        Table(f"Systems at temperature {t:g} against {evaluation.baseline}", found.columns, found.rows)
        for t, evaluation in given
        for found in [system_table(evaluation.systems)]
    ]
    sections = [Section("figures", "Figures", [], plots), Section("results", "Tables", tables)]
    sections += [Section("problems", "Problems", problems)] if problems else []
    return [*sections, Section("settings", "Systems", sources)]


def _delta(found: tuple[Evaluation, Comparison] | None) -> Cell:
    if found is None:
        return Cell(NONE)
    delta = percents(found[1].rates.delta)
    return Cell(number(delta.value, 1), brackets(delta, 1), strong=delta.low > 0 or delta.high < 0)
