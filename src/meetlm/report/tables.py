"""The tables of a report, ready to print, the same in HTML and Markdown: those of the paper (1-5) and the accounts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from meetlm.diagnostics.intervals import Interval
from meetlm.evaluation.measures import ROUGES
from meetlm.evaluation.record import Comparison, Evaluation, Measure, System
from meetlm.report.verdict import JUDGE, RULE, doubt, is_clear, mark_of
from meetlm.report.wording import (
    NONE,
    brackets,
    count,
    decimals_of,
    listed,
    number,
    p_value,
    percents,
)

ROUGE = ("rouge-l", "rouge-avg")
"""Beside the win rates, as in the paper's Table 1."""
NOT_STATED = "not stated"


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in one place of a table.

    Attributes:
        text: The figure, or words.
        small: In smaller print after it: an interval, a description.
        strong: Whether it shows a difference.
    """

    text: str
    small: str = ""
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """One table; the first cell of a row is its heading.

    Attributes:
        caption: What it shows.
        columns: Their headings.
        rows: As many cells each as there are columns.
        notes: What a reader has to know beside it.
    """

    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)


def evaluators_of(evaluation: Evaluation) -> list[str]:
    """Return the evaluators in the order of their first comparison, ROUGE after those that judge the reply itself."""
    return list(dict.fromkeys(one.evaluator for one in ordered(evaluation)))


def ordered(evaluation: Evaluation) -> list[Comparison]:
    """Return the comparisons in the order of the report."""
    return sorted(evaluation.comparisons, key=lambda one: one.evaluator in ROUGES)


def measure_of(evaluation: Evaluation, name: str) -> Measure | None:
    """Return a measure by its name; ``None`` where it was not taken."""
    return next((one for one in evaluation.measures if one.name == name), None)


def is_scale(measure: Measure) -> bool:
    """Whether a measure is a ROUGE F1, which the paper prints times 100."""
    return measure.name in ROUGES


def mean_cell(measure: Measure, system: str) -> Cell:
    """Return a system's mean with its interval, ROUGE times 100 as in the paper."""
    if system not in measure.means:
        return Cell(NONE)
    mean = percents(measure.means[system]) if is_scale(measure) else measure.means[system]
    decimals = 2 if is_scale(measure) else decimals_of(mean)
    return Cell(number(mean.value, decimals), brackets(mean, decimals))


def share_cell(share: Interval, *, strong: bool = False) -> Cell:
    """Return a share in percent with its interval."""
    found = percents(share)
    return Cell(number(found.value, 1), brackets(found, 1), strong)


def outcome_table(evaluation: Evaluation, evaluator: str) -> Table:
    """Return the paper's table for one evaluator: win, lose, tie, Δ; in the first, ROUGE beside them as in Table 1."""
    first = evaluator == evaluators_of(evaluation)[0]
    beside = ROUGE if first else ()
    rouge = [measure for name in beside if (measure := measure_of(evaluation, name))]
    compared = {one.system: one for one in evaluation.comparisons if one.evaluator == evaluator}
    controlled = any(one.controlled_win for one in compared.values())
    columns = ["System", *(one.name.upper().replace("AVG", "Avg") for one in rouge)]
    columns += ["Win (%)", "Lose (%)", "Tie (%)", "Δ (%)", "Sign test p"]
    columns += ["Length-controlled win (%)"] * controlled + ["Prompts (cells)"]
    rows = []
    for system in (one.name for one in evaluation.systems):
        if system == evaluation.baseline and not rouge:
            continue
        start = [Cell(system, "baseline" if system == evaluation.baseline else mark_of(evaluation, evaluator, system))]
        start += [mean_cell(measure, system) for measure in rouge]
        found = compared.get(system)
        rows.append(
            [*start, *_rates(found, controlled, strong=is_clear(evaluation, found))]
            if found
            else start + [Cell(NONE)] * (len(columns) - len(start))
        )
    notes = _of_the_judge(evaluation) if evaluator == JUDGE else []
    if first:
        notes.append(
            f"Against {evaluation.baseline}. Δ is win − lose; Δ > 0 says that the system is better than the baseline. "
            "Brackets are 95% bootstrap intervals over prompts, and over training runs where there are several; where "
            f"all prompts have one outcome they are Clopper and Pearson's. Δ is bold where {RULE}."
        )
    if controlled:
        notes.append(
            "The length-controlled win rate is what a logistic regression of the outcome on the difference of lengths "
            "expects at equal lengths, ties counting half (after Dubois et al., 2024, arXiv:2404.04475); 50 is even. "
            "Its interval is over prompts alone."
        )
    left_out = [f"{one.system}: {one.rates.num_left_out:,}" for one in compared.values() if one.rates.num_left_out]
    if left_out:
        notes.append(f"Cells left out because they have no outcome (see the problems): {', '.join(left_out)}.")
    mute = [name for name in others_of(evaluation) if name not in compared]
    if mute:
        notes.append(f"Without any outcome, so without figures: {listed(mute)}.")
    return Table(f"Win rates by {evaluator}", columns, rows, notes)


def seed_tables(evaluation: Evaluation) -> list[Table]:
    """Return Δ of every replicate alone, and which run and seed each is; nothing where there is one."""
    seeds = sorted({seed for _, seed in evaluation.cells})
    compared = [one for one in ordered(evaluation) if one.by_seed]
    if not compared:
        return []
    rows = []
    for one in compared:
        found = {each.seed: percents(each.delta) for each in one.by_seed}
        cells = [Cell(number(d.value, 1), brackets(d, 1)) if (d := found.get(seed)) else Cell(NONE) for seed in seeds]
        rows.append([Cell(one.system, f"by {one.evaluator}"), *cells])
    columns = [f"Replicate {seed}" for seed in seeds]
    note = "Δ (%) of each replicate alone; brackets are 95% bootstrap intervals over prompts."
    tables = [Table("Δ of each replicate", ["System", *columns], rows, [note])]
    sources: dict[str, dict[int, Cell]] = {}
    for replicate in evaluation.replicates:
        text = f"training run {replicate.run}, sampling seed {replicate.sampling_seed}"
        sources.setdefault(replicate.system, {})[replicate.seed] = Cell(replicate.source, text)
    if sources:
        rows = [[Cell(name), *(of.get(seed, Cell(NONE)) for seed in seeds)] for name, of in sources.items()]
        tables.append(Table("Which run and seed each replicate is", ["System", *columns], rows))
    return tables


def difference_table(evaluation: Evaluation) -> list[Table]:
    """Return every measure of every system minus the baseline's; nothing where none is recorded."""
    names = others_of(evaluation)
    rows = []
    for measure in evaluation.measures:
        if not measure.differences:
            continue
        times = 100 if is_scale(measure) else 1
        row, ratios = [Cell(measure.name, "times 100" if is_scale(measure) else "")], [Cell(f"{measure.name}, ratio")]
        for name in names:
            one = measure.differences.get(name)
            if one is None:
                row.append(Cell(NONE))
                ratios.append(Cell(NONE))
                continue
            mean = Interval(times * one.mean.value, times * one.mean.low, times * one.mean.high)
            decimals = 2 if is_scale(measure) else decimals_of(mean)
            row.append(Cell(number(mean.value, decimals), f"{brackets(mean, decimals)}, p {p_value(one.sign_p)}"))
            ratio = one.ratio
            ratios.append(Cell(number(ratio.value, 2), brackets(ratio, 2)) if ratio else Cell(NONE))
        rows += [row, ratios] if any(cell.text != NONE for cell in ratios[1:]) else [row]
    note = (
        f"Paired with {evaluation.baseline}, cell by cell: mean difference over prompts, 95% interval, p of the sign "
        "test over prompts. A ratio is the mean divided by the baseline's."
    )
    caption = f"Measures minus those of {evaluation.baseline}"
    return [Table(caption, ["Measure", *names], rows, [note])] if rows else []


def others_of(evaluation: Evaluation) -> list[str]:
    """Return the systems that are to be compared with the baseline."""
    return [one.name for one in evaluation.systems if one.name != evaluation.baseline]


def _of_the_judge(evaluation: Evaluation) -> list[str]:
    notes = [note] if (note := doubt(evaluation, JUDGE)) else []
    if evaluation.judge and evaluation.judge.num_same:
        same = count(evaluation.judge.num_same, "pair")
        notes.append(f"{same} with the same reply: a tie without asking, which says nothing about the judge.")
    return notes


def _rates(found: Comparison, controlled: bool, *, strong: bool) -> list[Cell]:
    rates = found.rates
    cells = [*map(share_cell, (rates.win, rates.lose, rates.tie)), share_cell(rates.delta, strong=strong)]
    cells.append(Cell(p_value(rates.sign_p)))
    if controlled:
        cells.append(share_cell(found.controlled_win) if found.controlled_win else Cell(NONE))
    return [*cells, Cell(f"{rates.num_prompts:,}", f"({rates.num_cells:,})")]


def measure_table(evaluation: Evaluation) -> Table:
    """Return every measure's mean for every system."""
    names = [one.name for one in evaluation.systems]
    better = {True: "; more is better", False: "; less is better", None: ""}
    rows = []
    for measure in evaluation.measures:
        times = "; printed times 100" if is_scale(measure) else ""
        head = Cell(measure.name, f"{measure.description}{times}{better[measure.higher]}")
        rows.append([head, *(mean_cell(measure, name) for name in names)])
    notes = ["Means over prompts with 95% bootstrap intervals."]
    missing = _without_value(evaluation)
    if missing:
        notes.append(f"Cells without a value: {'; '.join(missing)}.")
    return Table("Means of the measures", ["Measure", *names], rows, notes)


def _without_value(evaluation: Evaluation) -> list[str]:
    """Return which measures of which systems lack values in how many cells, measures that lack the same together."""
    alike: dict[str, list[str]] = {}
    for measure in evaluation.measures:
        counts = {name: sum(value is None for value in values) for name, values in measure.values.items()}
        lacking = [f"{number_of:,} of {name}" for name, number_of in counts.items() if number_of]
        if lacking:
            every = len(lacking) == len(counts) > 1 and len(set(counts.values())) == 1
            told = f"{next(iter(counts.values())):,} of each system" if every else listed(lacking)
            alike.setdefault(told, []).append(measure.name)
    return [f"{listed(measures)}, {told}" for told, measures in alike.items()]


def agreement_table(evaluation: Evaluation) -> Table:
    """Return Cohen's κ of every pair of evaluators."""
    rows = [
        [
            Cell(f"{one.evaluators[0]} and {one.evaluators[1]}"),
            Cell(one.system),
            Cell(number(one.kappa.value, 2), brackets(one.kappa, 2)) if one.kappa else Cell("not defined"),
            Cell(f"{number(100 * one.observed, 1)}"),
            Cell(f"{one.num_cells:,}"),
        ]
        for one in evaluation.agreements
    ]
    columns = ["Evaluators", "System", "Cohen's κ", "Same outcome (%)", "Cells"]
    note = "κ is agreement beyond chance over win, lose and tie: 1 is perfect, 0 is what chance gives (Cohen, 1960)."
    judged = any(JUDGE in one.evaluators for one in evaluation.agreements)
    doubts = [found] if judged and (found := doubt(evaluation, JUDGE)) else []
    return Table("Agreement between evaluators", columns, rows, [note, *doubts])


def problem_tables(evaluation: Evaluation) -> list[Table]:
    """Return the problems, named and counted: those of rows, then notes that are not about rows."""
    kinds = {True: ("Rows that are not as they should be", "Rows"), False: ("Notes that are not about rows", "Count")}
    return [
        Table(
            caption,
            ["What", counted, "Among them"],
            [[Cell(one.what), Cell(f"{one.count:,}"), Cell(one.shown or NONE)] for one in found],
        )
        for of_rows, (caption, counted) in kinds.items()
        if (found := [one for one in evaluation.problems if one.of_rows == of_rows])
    ]


def system_table(systems: Sequence[System]) -> Table:
    """Return where each system's completions came from."""
    rows = [
        [
            Cell(one.name),
            Cell(one.run or "a file from elsewhere"),
            Cell(_settings(one.level) or NOT_STATED),
            Cell(_settings(one.sampling) or NOT_STATED),
            Cell(", ".join(one.files)),
        ]
        for one in systems
    ]
    return Table("Where the completions came from", ["System", "Run", "Level", "Sampling", "Files"], rows)


def _settings(found: str | dict[str, Any] | None) -> str:
    if isinstance(found, dict):
        return ", ".join(f"{name} {_plain(value)}" for name, value in found.items())
    return found or ""


def _plain(value: object) -> str:
    return "none" if value is None or value == [] else repr(value) if isinstance(value, list) else str(value)
