"""The tables of a report, ready to print, the same in HTML and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from meetlm.diagnostics.intervals import Interval
from meetlm.evaluation.measures import ROUGES
from meetlm.evaluation.record import Evaluation, Measure
from meetlm.report.conclusions import JUDGE, RULE, is_significant, judge_mark, judge_note
from meetlm.report.conditions import (
    Condition,
    Conditions,
    comparisons_of,
    evaluators_of,
    others_of,
    over_temperatures,
    systems_of,
)
from meetlm.report.wording import (
    NO_VALUE,
    brackets,
    clause,
    count,
    decimals_of,
    listed,
    number,
    p_value,
    scaled,
)

NOT_STATED = "not stated"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: The figure, or words.
        small: In smaller print after it: an interval, a description.
        strong: Whether it is bold: it shows a difference.
    """

    text: str
    small: str = ""
    strong: bool = False


EMPTY = Cell(NO_VALUE)


@dataclass(frozen=True, slots=True)
class Table:
    """One table; the first cell of a row is its heading.

    Attributes:
        caption: What it shows.
        columns: Their headings.
        rows: Each has one cell per column.
        notes: Printed below it.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = field(default_factory=list)


def outcome_table(conditions: Conditions, evaluator: str) -> Table:
    """Return win, lose and tie rates and Δ by one evaluator, as in the paper's tables."""
    compared = {
        (id(condition), comparison.system): comparison
        for condition, comparison in comparisons_of(conditions, evaluator)
    }
    has_controlled = any(comparison.controlled_win for comparison in compared.values())
    figures = ["Win (%)", "Lose (%)", "Tie (%)", "Δ (%)", "Sign test p"]
    figures += ["Length-controlled win (%)"] * has_controlled + ["Prompts (pairs)"]
    rows = []
    for system in systems_of(conditions):
        for condition in (c for c in conditions if system in others_of(c.evaluation)):
            evaluation, comparison = condition.evaluation, compared.get((id(condition), system))
            start = [Cell(system, judge_mark(evaluation, evaluator, system)), *condition_cells(condition)]
            if comparison is None:
                rows.append([*start, *[EMPTY] * len(figures)])
                continue
            rates = comparison.rates
            cells = [share_cell(rates.win), share_cell(rates.lose), share_cell(rates.tie)]
            cells.append(share_cell(rates.delta, strong=is_significant(evaluation, comparison)))
            cells.append(Cell(p_value(rates.sign_p)))
            cells += [share_cell(comparison.controlled_win)] * has_controlled
            rows.append([*start, *cells, Cell(f"{rates.num_prompts:,}", f"({rates.num_cells:,})")])
    columns = ["System", *condition_columns(conditions), *figures]
    return Table(f"Win rates by {evaluator}", columns, rows, _outcome_notes(conditions, evaluator, has_controlled))


def _outcome_notes(conditions: Conditions, evaluator: str, has_controlled: bool) -> list[str]:
    notes = [note for c in conditions if (note := judge_note(c.evaluation, evaluator, c.place))]
    judges = [condition.evaluation.judge for condition in conditions if condition.evaluation.judge]
    if evaluator == JUDGE and (num_same := sum(judge.num_same for judge in judges)):
        notes.append(f"{count(num_same, 'pair')} with identical replies: a tie, without asking the judge.")
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
    left_out = [
        f"{comparison.rates.num_left_out:,} of {comparison.system}{condition.place}"
        for condition, comparison in comparisons_of(conditions, evaluator)
        if comparison.rates.num_left_out
    ]
    return notes + ([f"Left out, because they have no outcome: {listed(left_out)}."] if left_out else [])


def replicate_tables(evaluation: Evaluation) -> list[Table]:
    """Return Δ per replicate, and the run and seed of each; nothing where there is a single replicate."""
    seeds = sorted({seed for _, seed in evaluation.cells})
    rows = []
    for _, comparison in comparisons_of([Condition(evaluation)]):
        deltas = {replicate.seed: share_cell(replicate.delta) for replicate in comparison.by_seed}
        if deltas:
            cells = [deltas.get(seed, EMPTY) for seed in seeds]
            rows.append([Cell(comparison.system, f"by {comparison.evaluator}"), *cells])
    if not rows:
        return []
    columns = ["System", *(f"Replicate {seed}" for seed in seeds)]
    tables = [Table("Δ per replicate", columns, rows, ["Δ (%) of one replicate; brackets are 95% intervals."])]
    sources: dict[str, dict[int, Cell]] = {}
    for replicate in evaluation.replicates:
        text = f"training run {replicate.run}, sampling seed {replicate.sampling_seed}"
        sources.setdefault(replicate.system, {})[replicate.seed] = Cell(replicate.source, text)
    rows = [[Cell(name), *(cells.get(seed, EMPTY) for seed in seeds)] for name, cells in sources.items()]
    return [*tables, Table("Run and seed of each replicate", columns, rows)] if rows else tables


def measure_tables(evaluation: Evaluation) -> list[Table]:
    """Return the mean of every measure for every system, and its difference from the baseline's."""
    names = [system.name for system in evaluation.systems]
    directions = {True: "; higher is better", False: "; lower is better", None: ""}
    rows, differences = [], []
    for measure in evaluation.measures:
        text = clause(measure.description) + ("; printed × 100" if measure.name in ROUGES else "")
        means = [_value_cell(measure, measure.means.get(name)) for name in names]
        rows.append([Cell(measure.name, text + directions[measure.higher]), *means])
        differences += _difference_rows(measure, others_of(evaluation))
    notes = ["Means over prompts with 95% intervals."]
    if missing := _missing_values(evaluation):
        notes.append(f"Completions without a value: {'; '.join(missing)}.")
    tables = [Table("Means of the measures", ["Measure", *names], rows, notes)] if rows else []
    note = (
        f"Paired with {evaluation.baseline}: mean difference over prompts, 95% interval, p of the sign test over "
        "prompts. A ratio is the mean divided by the baseline's."
    )
    caption = f"Differences from {evaluation.baseline}"
    return tables + ([Table(caption, ["Measure", *others_of(evaluation)], differences, [note])] if differences else [])


def _difference_rows(measure: Measure, systems: Sequence[str]) -> list[list[Cell]]:
    if not measure.differences:
        return []
    row = [Cell(measure.name, "× 100" if measure.name in ROUGES else "")]
    ratios = [Cell(f"{measure.name}, ratio")]
    for difference in map(measure.differences.get, systems):
        p = f"p {p_value(difference.sign_p)}" if difference else ""
        ratio = difference.ratio if difference else None
        row.append(_value_cell(measure, difference.mean if difference else None, p))
        ratios.append(Cell(number(ratio.value, 2), brackets(ratio, 2)) if ratio else EMPTY)
    return [row] if all(cell == EMPTY for cell in ratios[1:]) else [row, ratios]


def _missing_values(evaluation: Evaluation) -> list[str]:
    """Return how many completions of which systems lack which measures; measures that lack the same are merged."""
    measures_by_text: dict[str, list[str]] = {}
    for measure in evaluation.measures:
        counts = {name: values.count(None) for name, values in measure.values.items()}
        text = listed([f"{number_of:,} of {name}" for name, number_of in counts.items() if number_of])
        if text:
            measures_by_text.setdefault(text, []).append(measure.name)
    return [f"{listed(measures)}: {text}" for text, measures in measures_by_text.items()]


def agreement_tables(evaluation: Evaluation) -> list[Table]:
    """Return Cohen's κ of every pair of evaluators; nothing where there is no such pair."""
    rows = [
        [
            Cell(listed(agreement.evaluators)),
            Cell(agreement.system),
            Cell(number(kappa.value, 2), brackets(kappa, 2)) if (kappa := agreement.kappa) else Cell("not defined"),
            Cell(number(100 * agreement.observed, 1)),
            Cell(f"{agreement.num_cells:,}"),
        ]
        for agreement in evaluation.agreements
    ]
    columns = ["Evaluators", "System", "Cohen's κ", "Same outcome (%)", "Pairs"]
    note = "κ is the agreement on win, lose and tie beyond chance: 1 is perfect, 0 is chance (Cohen, 1960)."
    judged = any(JUDGE in agreement.evaluators for agreement in evaluation.agreements)
    doubts = [text for text in [judge_note(evaluation, JUDGE)] if judged and text]
    return [Table("Agreement between evaluators", columns, rows, [note, *doubts])] if rows else []


def problem_tables(conditions: Conditions) -> list[Table]:
    """Return the problems, named and counted: those of rows, then other notes."""
    tables = []
    for of_rows, caption, counted in ((True, "Rows with problems", "Rows"), (False, "Other notes", "Count")):
        rows = [
            [Cell(p.what), *condition_cells(condition), Cell(f"{p.count:,}"), Cell(p.shown or NO_VALUE)]
            for condition in conditions
            for p in condition.evaluation.problems
            if p.of_rows == of_rows
        ]
        columns = ["Problem" if of_rows else "Note", *condition_columns(conditions), counted, "Examples"]
        tables += [Table(caption, columns, rows)] if rows else []
    return tables


def system_table(conditions: Conditions) -> Table:
    """Return where the completions of each system come from."""
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
    """Return the columns that tell several evaluations apart."""
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


def _value_cell(measure: Measure, value: Interval | None, more: str = "") -> Cell:
    """Return a value of a measure with its interval; ROUGE is printed times 100, as in the paper."""
    if value is None:
        return EMPTY
    value = scaled(value, 100) if measure.name in ROUGES else value
    decimals = 2 if measure.name in ROUGES else decimals_of(value)
    return Cell(number(value.value, decimals), ", ".join(filter(None, [brackets(value, decimals), more])))


def _settings(values: dict[str, object] | dict[str, float] | None) -> str:
    if not values:
        return NOT_STATED
    return ", ".join(f"{name} {'none' if value in (None, []) else value}" for name, value in values.items())
