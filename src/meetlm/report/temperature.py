"""Δ over temperature (the paper's section 4.6 and Figure 3), out of one evaluation a temperature and baseline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from meetlm.config.errors import DataError
from meetlm.evaluation.record import Comparison, Evaluation, Measure
from meetlm.report.charts import histograms, known, scorers_of, temperature_chart
from meetlm.report.judge import conclusive, without_verdict
from meetlm.report.plots import Plot
from meetlm.report.sections import Section
from meetlm.report.summary import Finding, Summary, trained
from meetlm.report.tables import Cell, Table, ordered, problem_tables, share_cell, system_table
from meetlm.report.verdict import JUDGE, RULE, doubt, doubted, is_clear, is_doubtful, mark, verdict, why_doubtful
from meetlm.report.wording import NONE, brackets, count, listed, number, p_value, percents, points

Points = Sequence[tuple[float, Evaluation]]
Lines = dict[tuple[str, str], dict[str, dict[float, tuple[Evaluation, Comparison]]]]
"""By baseline and evaluator, then system, then temperature."""


def sorted_points(given: Points) -> Points:
    """Return the evaluations by temperature, which rises."""
    return sorted(given, key=lambda point: point[0])


def temperature_lines(given: Points) -> Lines:
    """Return every comparison by baseline and evaluator, then system, then temperature, which rises.

    Raises:
        DataError: There is no evaluation, or a comparison twice.
    """
    if not given:
        raise DataError(
            "there is no evaluation to plot", file="evaluation.json", field="comparisons", expected="at least one"
        )
    found: Lines = {}
    for temperature, evaluation in sorted_points(given):
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
    return found


def temperature_summary(given: Points) -> Summary:
    """Return what came out over all temperatures, in words."""
    lines = temperature_lines(given)
    temperatures = sorted({temperature for temperature, _ in given})
    baselines = list(dict.fromkeys(evaluation.baseline for _, evaluation in given))
    prompts = sorted({len(evaluation.prompts) for _, evaluation in given})
    numbers = count(prompts[-1], "prompt") if len(prompts) == 1 else f"{prompts[0]:,} to {count(prompts[-1], 'prompt')}"
    opening = (
        f"Δ, the share of prompts won minus the share lost, in percentage points, at "
        f"{count(len(temperatures), 'temperature')} from {temperatures[0]:g} to {temperatures[-1]:g}, against "
        f"{listed(baselines)}, on {numbers}. Brackets are 95% bootstrap intervals over prompts. Better and worse are "
        f"said only where {RULE}."
    )
    findings, caveats = [], _of_the_judge(given)
    if not lines:
        caveats.append("No evaluator told the outcome of any pair, so there is no finding.")
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
                caveats.append(f"{system} against {baseline} by {evaluator} has no figure at {listed(missing)}.")
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
    once = sorted({name for _, one in given for name, number_of in trained(one).items() if number_of == 1})
    if once:
        caveats.append(
            f"One training run only of {listed(once)}: no interval holds the chance of training it under another seed."
        )
    problems = sum(any(one.of_rows for one in evaluation.problems) for _, evaluation in given)
    if problems:
        of = count(len(given), "evaluation")
        caveats.append(f"Rows with problems in {problems:,} of {of}, each named below; one row may be in several.")
    order = list(dict.fromkeys(one.system for one in findings))
    return Summary(opening, sorted(findings, key=lambda one: order.index(one.system)), caveats)


def temperature_sections(given: Points) -> list[Section]:
    """Return the figure and the table of every baseline and evaluator, then what was wrong and where it came from."""
    lines = temperature_lines(given)
    order = list(dict.fromkeys(system for systems in lines.values() for system in systems))
    plots, tables = [], []
    for (baseline, evaluator), systems in lines.items():
        title = f"Δ against {baseline} by {evaluator}"
        deltas = {
            name: [(t, one.rates.delta, is_clear(evaluation, one)) for t, (evaluation, one) in line.items()]
            for name, line in systems.items()
        }
        notes = _doubts(given, baseline, evaluator)
        plots.append(temperature_chart(title, baseline, deltas, order, *notes))
        temperatures = sorted({t for line in systems.values() for t in line})
        rows = [[Cell(name), *(_delta(line.get(t)) for t in temperatures)] for name, line in systems.items()]
        notes = [f"Δ in percentage points with its 95% interval and the sign test's p; bold where {RULE}.", *notes]
        tables.append(Table(f"{title}, over temperature", ["System", *(f"{t:g}" for t in temperatures)], rows, notes))
    problems = [
        Table(f"{found.caption}, at temperature {t:g} against {evaluation.baseline}", found.columns, found.rows)
        for t, evaluation in given
        for found in problem_tables(evaluation)
    ]
    sources = [
        Table(f"Systems at temperature {t:g} against {evaluation.baseline}", found.columns, found.rows)
        for t, evaluation in given
        for found in [system_table(evaluation.systems)]
    ]
    sections = [Section("figures", "Figures", [], plots), Section("results", "Tables", tables)] if lines else []
    scores = distributions(given)
    sections += [Section("rewards", "Scores", [], scores)] if scores else []
    sections += _judge_section(given)
    sections += [Section("problems", "Problems", problems)] if problems else []
    return [*sections, Section("settings", "Systems", sources)]


def distributions(given: Points) -> list[Plot]:
    """Return how every score is distributed at each temperature, on one scale for all temperatures."""
    found: dict[str, tuple[Measure, dict[float, dict[str, NDArray[np.float64]]]]] = {}
    for t, evaluation in sorted_points(given):
        for measure in scorers_of(evaluation):
            at = found.setdefault(measure.name, (measure, {}))[1].setdefault(t, {})
            at |= {one.name: known(measure.values.get(one.name, [])) for one in evaluation.systems}
    baselines = {evaluation.baseline for _, evaluation in given}
    plots = []
    for measure, by_temperature in found.values():
        every = np.concatenate([column for at in by_temperature.values() for column in at.values()])
        for t, at in by_temperature.items():
            columns = dict(sorted(at.items(), key=lambda one: one[0] in baselines))  # stable: systems, then baselines
            title = f"Distribution of {measure.name} at {t:g}"
            plots.append(histograms(title, measure, columns, baselines, every))
    return plots


def _doubts(given: Points, baseline: str, evaluator: str) -> list[str]:
    """Return at which temperatures nothing can be concluded from an evaluator, against a baseline."""
    notes: dict[str, list[str]] = {}
    for t, one in sorted_points(given):
        if one.baseline == baseline and (note := doubt(one, evaluator)):
            notes.setdefault(note, []).append(f"{t:g}")
    return [f"At {listed(found)}: {note[0].lower()}{note[1:]}" for note, found in notes.items()]


def _of_the_judge(given: Points) -> list[str]:
    said = []
    for t, evaluation in sorted_points(given):
        judge = evaluation.judge
        if judge is None:
            continue
        whole = is_doubtful(evaluation, JUDGE)
        about = {"": judge.overall} if whole else {f" about {name}": one for name, one in doubted(evaluation).items()}
        said += [
            f"Nothing can be concluded from the judge ({judge.model}){whom} at {t:g} against {evaluation.baseline}: "
            f"{why_doubtful(one)}."
            for whom, one in about.items()
        ]
    return said


def _judge_section(given: Points) -> list[Section]:
    """Return every judge's account, a row an evaluation, and the prompts."""
    asked = [(t, evaluation.baseline, evaluation.judge) for t, evaluation in sorted_points(given) if evaluation.judge]
    if not asked:
        return []
    columns = [
        "Temperature and baseline", "Judgements", "Found in the cache", "Without a verdict", "Failed for good",
        "Same reply, a tie without asking", "Same verdict in both orders (%)", "By chance (%)", "Conclusive",
        "Cost of this run", "Cost of all kept",
    ]  # fmt: skip
    rows = []
    for t, baseline, one in asked:
        whole = one.overall
        counts = [f"{number_of:,}" for number_of in (whole.num_calls, one.num_cached)]
        counts += [without_verdict(one), f"{whole.num_failed:,}", f"{one.num_same:,}"]
        row = [Cell(f"{t:g}, {baseline}"), *map(Cell, counts)]
        row.append(share_cell(whole.consistency) if whole.consistency else Cell(NONE))
        row.append(Cell(NONE if whole.chance is None else number(100 * whole.chance, 1)))
        told = conclusive(whole) if whole.consistency is None or whole.conclusive else "no"  # why stands beside it
        costs = [NONE if used.cost is None else f"{used.cost:,.2f}" for used in (one.this_run, one.kept)]
        rows.append([*row, Cell(told), *map(Cell, costs)])
    models = dict.fromkeys(
        f"{one.model} at {one.base_url}, prompt {one.prompt}, {one.prompt_reason}" for _, _, one in asked
    )
    now = [one.this_run.cost for _, _, one in asked if one.this_run.cost is not None]
    notes = [f"Model: {'; '.join(models)}."]
    if len(now) == len(asked):
        # What is kept has no sum: a call that several evaluations share stands in each of them.
        notes.append(f"In all {sum(now):,.2f} in this run, in the currency of the prices given.")
    texts = {f"The judge's prompt, {one.prompt}": one.prompt_text for _, _, one in asked}
    tables = [Table("The judge's accounts", columns, rows, notes), *_consistency(given)]
    return [Section(JUDGE, "The judge", tables, texts=texts)]


def _consistency(given: Points) -> list[Table]:
    """Return how far both orders agree for each system in each evaluation."""
    rows = [
        [
            Cell(f"{t:g}, {evaluation.baseline}"),
            Cell(name, mark(one)),
            share_cell(one.consistency) if one.consistency else Cell(NONE),
            Cell(NONE if one.chance is None else number(100 * one.chance, 1)),
        ]
        for t, evaluation in sorted_points(given)
        if evaluation.judge
        for name, one in evaluation.judge.by_system.items()
    ]
    columns = ["Temperature and baseline", "System", "Same verdict in both orders (%)", "By chance (%)"]
    return [Table("How far both orders agree", columns, rows)] if rows else []


def _delta(found: tuple[Evaluation, Comparison] | None) -> Cell:
    if found is None:
        return Cell(NONE)
    delta = percents(found[1].rates.delta)
    small = f"{brackets(delta, 1)}, p {p_value(found[1].rates.sign_p)}"
    return Cell(number(delta.value, 1), small, strong=is_clear(*found))
