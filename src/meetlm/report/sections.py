"""The sections of a report, each with its tables and figures, in the order of the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meetlm.evaluation.record import Evaluation
from meetlm.report.charts import evaluation_charts
from meetlm.report.judge import judge_tables
from meetlm.report.paper import ORIENTATION, paper_table
from meetlm.report.plots import Plot
from meetlm.report.tables import (
    Table,
    agreement_table,
    difference_table,
    evaluators_of,
    measure_table,
    outcome_table,
    problem_tables,
    seed_tables,
    system_table,
)

TITLES = {
    "results": "Win rates",
    "measures": "Measures",
    "rewards": "Scores",
    "lengths": "Lengths",
    "agreement": "Agreement",
    "judge": "The judge",
    "problems": "Problems",
    "settings": "Systems",
}


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report.

    Attributes:
        name: Its anchor.
        title: Its heading.
        tables: First.
        plots: After them.
        texts: Printed as they are, by heading.
        lead: What stands before all; a section that has one is folded in the page, with this to open it.
    """

    name: str
    title: str
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    texts: Mapping[str, str] = field(default_factory=dict)
    lead: str = ""


def report_tables(evaluation: Evaluation) -> dict[str, list[Table]]:
    """Return the tables of each section that has any, by section."""
    found = {
        "results": [outcome_table(evaluation, name) for name in evaluators_of(evaluation)] + seed_tables(evaluation),
        "measures": [measure_table(evaluation), *difference_table(evaluation)] if evaluation.measures else [],
        "agreement": [agreement_table(evaluation)] if evaluation.agreements else [],
        "judge": judge_tables(evaluation.judge) if evaluation.judge else [],
        "problems": problem_tables(evaluation),
        "settings": [system_table(evaluation.systems)],
    }
    return {section: tables for section, tables in found.items() if tables}


def sections_of(evaluation: Evaluation) -> list[Section]:
    """Return the sections that an evaluation has something for."""
    tables, plots = report_tables(evaluation), evaluation_charts(evaluation)
    texts = {"judge": {"The judge's prompt": evaluation.judge.prompt_text}} if evaluation.judge else {}
    found = [
        Section(name, title, tables.get(name, []), plots.get(name, []), texts.get(name, {}))
        for name, title in TITLES.items()
        if name in tables or name in plots
    ]
    papers = [paper_table(number) for number in range(1, 6)]
    return [*found, Section("paper", "The paper's own figures", papers, lead=ORIENTATION)]
