"""The tables of a report, ready to print, the same in HTML and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from meetlm.diagnostics.intervals import Interval
from meetlm.evaluation.measures import ROUGES
from meetlm.evaluation.record import Evaluation, Measure
from meetlm.report.conclusions import INCONCLUSIVE, JUDGE, RULE, is_significant, judge_doubt
from meetlm.report.conditions import (
    Condition,
    Conditions,
    compared_systems,
    comparisons_of,
    evaluators_of,
    over_temperatures,
)
from meetlm.report.wording import NO_VALUE, brackets, clause, count, decimals_of, listed, number, p_value, scaled

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: The figure, or words.
        small: Smaller text after it: an interval or a description.
        strong: Whether it is bold, for a significant difference.
    """

    text: str
    small: str = ""
    strong: bool = False


EMPTY = Cell(NO_VALUE)


@dataclass(frozen=True, slots=True)
class Table:
    """One table; the first cell of a row is its heading.

    Attributes:
        caption: Caption of the table.
        columns: Headings of the columns.
        rows: Rows with one cell per column.
        notes: Lines below the table.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = field(default_factory=list)


def outcome_table(conditions: Conditions, evaluator: str) -> Table:
    """Return win, lose and tie rates and Δ by one evaluator, as in the paper's tables."""
    compared = list(comparisons_of(conditions, evaluator))
    has_controlled = any(comparison.controlled_win for _, comparison in compared)
    columns = ["System", *condition_columns(conditions), "Win (%)", "Lose (%)", "Tie (%)", "Δ (%)", "Sign test p"]
    columns += ["Length-controlled win (%)"] * has_controlled + ["Prompts (pairs)"]
    rows = []
    for condition, comparison in compared:
        evaluation, rates = condition.evaluation, comparison.rates
        mark = INCONCLUSIVE if judge_doubt(evaluation, evaluator, comparison.system) else ""
        row = [Cell(comparison.system, mark), *condition_cells(condition)]
        row += [share_cell(rates.win), share_cell(rates.lose), share_cell(rates.tie)]
        row.append(share_cell(rates.delta, strong=is_significant(evaluation, comparison)))
        row.append(Cell(p_value(rates.sign_p)))
        row += [share_cell(comparison.controlled_win)] * has_controlled
        rows.append([*row, Cell(f"{rates.num_prompts:,}", f"({rates.num_cells:,})")])
    notes = []
    judges = [condition.evaluation.judge for condition in conditions if condition.evaluation.judge]
    if evaluator == JUDGE and (num_identical := sum(judge.num_identical for judge in judges)):
        notes.append(f"{count(num_identical, 'pair')} with identical replies: a tie, without asking the judge.")
    if evaluator == evaluators_of(conditions)[0]:
        against = "" if over_temperatures(conditions) else f"Against {conditions[0].evaluation.baseline}. "
        notes.append(
            f"{against}Δ = win − lose; a positive Δ means that the system is better than the baseline. Brackets are "
            f"95% intervals over prompts, and over training runs where there are several. Δ is bold where {RULE}."
        )
        if has_controlled:
            notes.append(
                "The length-controlled win rate is the win rate that a logistic regression on the difference in length "
                "predicts for replies of equal length, ties counted as half a win (after Dubois et al., 2024, "
                "arXiv:2404.04475); 50 is even. Its interval is over prompts alone."
            )
    left_out = [(comparison, condition.suffix) for condition, comparison in compared if comparison.num_left_out]
    if left_out:
        counts = [f"{comparison.num_left_out:,} of {comparison.system}{suffix}" for comparison, suffix in left_out]
        notes.append(f"Left out, because they have no outcome: {listed(counts)}.")
    return Table(f"Win rates by {evaluator}", columns, rows, notes)


def replicate_tables(evaluation: Evaluation) -> list[Table]:
    """Return Δ per replicate, and the run and seed of each; nothing if there is a single replicate."""
    numbers = sorted({number for _, number in evaluation.cells})
    columns = ["System", *(f"Replicate {number}" for number in numbers)]
    deltas = [
        [
            Cell(comparison.system, f"by {comparison.evaluator}"),
            *(share_cell(comparison.by_replicate.get(number)) for number in numbers),
        ]
        for _, comparison in comparisons_of([Condition(evaluation)])
        if comparison.by_replicate
    ]
    if not deltas:
        return []
    sources: dict[str, dict[int, Cell]] = {}
    for replicate in evaluation.replicates:
        text = f"training run {replicate.run}, sampling seed {replicate.sampling_seed}"
        sources.setdefault(replicate.system, {})[replicate.number] = Cell(replicate.source, text)
    rows = [[Cell(name), *(cells.get(number, EMPTY) for number in numbers)] for name, cells in sources.items()]
    return [
        Table("Δ per replicate", columns, deltas, ["Δ (%) of one replicate; brackets are 95% intervals."]),
        Table("Run and seed of each replicate", columns, rows),
    ]


def measure_tables(evaluation: Evaluation) -> list[Table]:
    """Return the mean of every measure for every system, and its difference from the baseline's."""
    names = [system.name for system in evaluation.systems]
    directions = {True: "; higher is better", False: "; lower is better", None: ""}
    rows, differences = [], []
    for measure in evaluation.measures:
        text = clause(measure.description) + ("; printed × 100" if measure.name in ROUGES else "")
        means = [_value_cell(measure, measure.means.get(name)) for name in names]
        rows.append([Cell(measure.name, text + directions[measure.higher]), *means])
        differences += _difference_rows(measure, compared_systems(evaluation))
    notes = ["Means over prompts with 95% intervals."]
    tables = [Table("Means of the measures", ["Measure", *names], rows, notes)] if rows else []
    note = (
        f"Paired with {evaluation.baseline}: mean difference over prompts, 95% interval, p of the sign test over "
        "prompts. A ratio is the mean divided by the baseline's."
    )
    caption = f"Differences from {evaluation.baseline}"
    return tables + (
        [Table(caption, ["Measure", *compared_systems(evaluation)], differences, [note])] if differences else []
    )


def _difference_rows(measure: Measure, systems: Sequence[str]) -> list[list[Cell]]:
    if not measure.differences:
        return []
    row = [Cell(measure.name, "× 100" if measure.name in ROUGES else "")]
    ratios = [Cell(f"{measure.name}, ratio")]
    for difference in map(measure.differences.get, systems):
        p = f"p {p_value(difference.sign_p)}" if difference else ""
        ratio = difference.ratio if difference else None
        row.append(_value_cell(measure, difference.mean if difference else None, p))
        ratios.append(interval_cell(ratio, 2))
    return [row] if all(cell == EMPTY for cell in ratios[1:]) else [row, ratios]


def agreement_tables(evaluation: Evaluation) -> list[Table]:
    """Return Cohen's κ of every pair of evaluators; nothing if there is no such pair."""
    rows = [
        [
            Cell(listed(agreement.evaluators)),
            Cell(agreement.system),
            interval_cell(agreement.kappa, 2) if agreement.kappa else Cell("not defined"),
            Cell(number(100 * agreement.observed, 1)),
            Cell(f"{agreement.num_cells:,}"),
        ]
        for agreement in evaluation.agreements
    ]
    columns = ["Evaluators", "System", "Cohen's κ", "Same outcome (%)", "Pairs"]
    note = "κ is the agreement on win, lose and tie beyond chance: 1 is perfect, 0 is chance (Cohen, 1960)."
    return [Table("Agreement between evaluators", columns, rows, [note])] if rows else []


def problem_tables(conditions: Conditions) -> list[Table]:
    """Return the problems with their counts and examples; nothing if there is none."""
    rows = [
        [Cell(p.description), *condition_cells(condition), Cell(f"{p.count:,}"), Cell(p.shown_examples)]
        for condition in conditions
        for p in condition.evaluation.problems
    ]
    columns = ["Problem", *condition_columns(conditions), "Count", "Examples"]
    return [Table("Problems", columns, rows)] if rows else []


def system_table(conditions: Conditions) -> Table:
    """Return the sources of the completions of each system."""
    rows = [
        [
            Cell(system.name),
            *condition_cells(condition),
            Cell(system.run or "an external file"),
            Cell(system.level if isinstance(system.level, str) else _settings(system.level)),
            Cell(_settings(system.sampling)),
            Cell(", ".join(system.files)),
        ]
        for condition in conditions
        for system in condition.evaluation.systems
    ]
    columns = ["System", *condition_columns(conditions), "Run", "Level", "Sampling", "Files"]
    return Table("Sources of the completions", columns, rows)


def condition_columns(conditions: Conditions) -> list[str]:
    """Return the columns that distinguish several evaluations."""
    return ["Temperature", "Baseline"] if over_temperatures(conditions) else []


def condition_cells(condition: Condition) -> list[Cell]:
    """Return the cells of :func:`condition_columns`."""
    if condition.temperature is None:
        return []
    return [Cell(f"{condition.temperature:g}"), Cell(condition.evaluation.baseline)]


def share_cell(share: Interval | None, *, strong: bool = False) -> Cell:
    """Return a share in percent with its interval."""
    if share is None:
        return EMPTY
    return Cell(number(100 * share.value, 1), brackets(scaled(share, 100), 1), strong)


def _value_cell(measure: Measure, value: Interval | None, note: str = "") -> Cell:
    """Return a value of a measure with its interval; ROUGE is printed times 100, as in the paper."""
    if value is None or measure.name not in ROUGES:
        return interval_cell(value, note=note)
    return interval_cell(scaled(value, 100), 2, note)


def interval_cell(interval: Interval | None, decimals: int | None = None, note: str = "") -> Cell:
    """Return a value with its interval and a note; by default with as many decimals as the interval's width allows."""
    if interval is None:
        return EMPTY
    decimals = decimals_of(interval) if decimals is None else decimals
    return Cell(number(interval.value, decimals), ", ".join(filter(None, [brackets(interval, decimals), note])))


def _settings(values: dict[str, object] | dict[str, float] | None) -> str:
    if not values:
        return UNKNOWN
    return ", ".join(f"{name} {'none' if value in (None, []) else value}" for name, value in values.items())
