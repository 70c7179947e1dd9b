"""The paper's own Tables 1 to 5, ready to print, with its errata marked and listed beneath."""

from __future__ import annotations

from meetlm.evaluation.paper import CAPTIONS, MARK, PROSE, ROWS, errata_notes, printed
from meetlm.report.tables import Cell, Table

ABOUT = (
    "The paper's Tables 1 to 5 as printed, in percent, on GPT-Neo 1.3B at temperature 0. "
    f"{MARK} marks figures that contradict others of the paper; beneath each table stands how."
)
ORIENTATION = f"For orientation only: other models, data and evaluators than in this report. {ABOUT}"


def paper_table(number: int) -> Table:
    """Return one of the paper's tables.

    Args:
        number: 1 to 5.
    """
    found = [row for row in ROWS if row.table == number]
    shared = {row.dataset for row in found}, {row.evaluator for row in found}
    by_data, by_evaluator = (len(values) > 1 for values in shared)  # else the caption says it
    rouge = any(row.rouge_l is not None for row in found)
    columns = ["System"] + ["Data"] * by_data + ["By"] * by_evaluator + ["Win", "Lose", "Tie", "Δ"]
    columns += ["ROUGE-L", "ROUGE-Avg"] * rouge
    rows = []
    for row in found:
        text = printed(row)
        cells = [row.method] + [row.dataset] * by_data + [row.evaluator] * by_evaluator
        cells += [text[name] for name in ("win", "lose", "tie", "delta")]
        cells += [f"{value:.2f}" for value in (row.rouge_l, row.rouge_avg) if value is not None]
        rows.append([Cell(cell) for cell in cells])
    notes = [f"{MARK} {note}" for note in errata_notes(number)] + list(PROSE.get(number, ()))
    return Table(f"Table {number} of the paper: {CAPTIONS[number]}", columns, rows, notes)
