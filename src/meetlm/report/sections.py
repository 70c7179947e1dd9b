"""The sections of a report with their tables and charts, in the order of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from meetlm.evaluation.record import Measure
from meetlm.report.charts import (
    Chart,
    delta_chart,
    distribution_chart,
    length_charts,
    temperature_charts,
    win_chart,
)
from meetlm.report.conditions import Conditions, evaluators_of, measure_of, over_temperatures
from meetlm.report.judge import judge_tables
from meetlm.report.paper import ABOUT, paper_dataset, paper_tables
from meetlm.report.tables import (
    Table,
    agreement_tables,
    measure_tables,
    outcome_table,
    problem_tables,
    replicate_tables,
    system_table,
)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report.

    Attributes:
        name: Its anchor.
        title: Its heading.
        tables: Printed first.
        charts: Printed after the tables.
        texts: Printed as they are, by heading.
        lead: Printed before everything else; the page folds a section with a lead, and a click on the lead opens it.
    """

    name: str
    title: str
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    lead: str = ""


def sections_of(conditions: Conditions) -> list[Section]:
    """Return the sections that have any content.

    A report over temperatures has only tables that compare them; the report of each evaluation has all tables.
    """
    evaluators = evaluators_of(conditions)
    tables = [outcome_table(conditions, name) for name in evaluators]
    scores = [distribution_chart(conditions, measure) for measure in scorers_of(conditions)]
    judges = [condition.evaluation.judge for condition in conditions if condition.evaluation.judge]
    prompts = {f"The judge's prompt, {judge.prompt}": judge.prompt_text for judge in judges}
    if over_temperatures(conditions):
        sections = [
            Section("temperatures", "Δ over temperature", charts=temperature_charts(conditions)),
            Section("results", "Win rates", tables),
            Section("scores", "Scores", charts=scores),
        ]
    else:
        (condition,) = conditions
        evaluation = condition.evaluation
        lengths = []
        if word_counts := measure_of(evaluation, "words"):
            lengths = [
                distribution_chart(conditions, word_counts),
                *length_charts(evaluation, word_counts, scorers_of(conditions)),
            ]
        charts = [delta_chart(evaluation), *(win_chart(evaluation, name) for name in evaluators)] if evaluators else []
        sections = [
            Section("results", "Win rates", [*tables, *replicate_tables(evaluation)], charts),
            Section("measures", "Measures", measure_tables(evaluation)),
            Section("scores", "Scores", charts=scores),
            Section("lengths", "Lengths", charts=lengths),
            Section("agreement", "Agreement", agreement_tables(evaluation)),
        ]
    sections += [
        Section("judge", "The judge", judge_tables(conditions), texts=prompts),
        Section("problems", "Problems", problem_tables(conditions)),
        Section("systems", "Systems", [system_table(conditions)]),
    ]
    if dataset := paper_dataset(conditions[0].evaluation.settings.get("data") or {}):
        lead = f"For orientation only: the paper's models and evaluators differ from those of this report. {ABOUT}"
        sections.append(Section("paper", "The paper's own figures", list(paper_tables(dataset).values()), lead=lead))
    return [section for section in sections if section.tables or section.charts]


def scorers_of(conditions: Conditions) -> list[Measure]:
    """Return the measures that also decide which system wins: rewards, ROUGE and user functions."""
    names = evaluators_of(conditions)
    measures = {measure.name: measure for condition in conditions for measure in condition.evaluation.measures}
    return [measure for name, measure in measures.items() if name in names]
