"""The arithmetic of the paper's tables: where they do not add up is listed, and nowhere else."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from meetlm.cli.main import main
from meetlm.evaluation.paper import (
    DEBERTA,
    ERRATA,
    GPT4,
    HH,
    LORA,
    LORA_FIRST,
    MARK,
    PROMPT_50,
    PROMPT_FIRST,
    PROMPT_SECOND,
    PROMPT_TUNING,
    PROSE,
    RANK_4,
    RANK_64,
    ROWS,
    SUMMARY,
    PaperRow,
    errata_of,
    printed,
)
from meetlm.report.paper import paper_table

ROUNDING = 0.01
"""Of figures with two decimals that are cut off, not rounded: 99.98 is a sum of such shares, too."""
IDS = [f"{row.table} {row.dataset} {row.method} {row.evaluator}" for row in ROWS]


def figures(row: PaperRow) -> tuple[float, float, float, float]:
    return row.win, row.lose, row.tie, row.delta


def test_every_row_is_there_once() -> None:
    assert len(set(IDS)) == len(IDS)
    assert [sum(row.table == table for row in ROWS) for table in (1, 2, 3, 4, 5)] == [9, 9, 8, 8, 12]
    assert all((row.rouge_l is not None) == (row.rouge_avg is not None) == (row.table == 1) for row in ROWS)
    assert {row.baseline for row in ROWS if row.table != 4} == {"CoH"}
    assert {row.baseline for row in ROWS if row.table == 4} == {"DPO"}


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_delta_is_win_minus_lose_except_for_the_errata(row: PaperRow) -> None:
    wrong = abs(row.win - row.lose - row.delta) > ROUNDING + 1e-9
    assert wrong == any(one.kind == "delta" for one in errata_of(row))


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_rates_add_up_except_for_the_errata(row: PaperRow) -> None:
    wrong = abs(row.win + row.lose + row.tie - 100) > 3 * ROUNDING + 1e-9
    assert wrong == any(one.kind == "sum" for one in errata_of(row))


def test_the_errata_are_these() -> None:
    assert [(one.kind, one.table, one.dataset, one.method, one.evaluator) for one in ERRATA] == [
        ("delta", 3, SUMMARY, LORA, GPT4),
        ("delta", 5, HH, LORA_FIRST, DEBERTA),
        ("row", 3, HH, LORA, DEBERTA),
        ("row", 3, HH, LORA, GPT4),
        ("sum", 4, HH, LORA, GPT4),
        ("sum", 5, HH, PROMPT_SECOND, DEBERTA),
        ("sum", 5, SUMMARY, PROMPT_FIRST, DEBERTA),
    ]
    assert all(len([row for row in ROWS if one in errata_of(row)]) == 1 for one in ERRATA)


@pytest.mark.parametrize("row", [row for row in ROWS if row.table in (3, 5) and row.evaluator == DEBERTA], ids=str)
def test_rows_that_stand_in_two_tables_are_the_same(row: PaperRow) -> None:
    """Tables 3 and 5 are of 50 soft prompts and rank 4 (their captions); Table 3's HH LoRA is not."""
    if row.method not in (PROMPT_TUNING, LORA):
        return
    table = {SUMMARY: 1, HH: 2}[row.dataset]
    first = {one.method: figures(one) for one in ROWS if one.table == table}
    expected = PROMPT_50 if row.method == PROMPT_TUNING else RANK_4
    wrong = any(one.kind == "row" for one in errata_of(row))
    assert (figures(row) == first[expected]) is not wrong
    if wrong:
        assert figures(row) == first[RANK_64]


def test_errata_are_marked_where_figures_are_printed() -> None:
    by_place = {(row.table, row.dataset, row.method, row.evaluator): printed(row) for row in ROWS}
    wrong_delta = by_place[3, SUMMARY, LORA, GPT4]
    assert wrong_delta == {
        "win": "46.09",
        "lose": "35.94",
        "tie": "17.97",
        "delta": f"13.00{MARK}",
        "note": "46.09 − 35.94 is 10.15, not 13.00",
    }
    other_rank = by_place[3, HH, LORA, DEBERTA]
    assert [other_rank[name] for name in ("win", "delta")] == [f"47.56{MARK}", f"17.79{MARK}"]
    assert "rank 64, not rank 4" in other_rank["note"]
    sums = by_place[5, HH, PROMPT_SECOND, DEBERTA]
    assert [sums[name] for name in ("tie", "delta")] == [f"50.58{MARK}", "0.27"]
    fine = by_place[2, HH, RANK_64, DEBERTA]
    assert fine == {"win": "47.56", "lose": "29.77", "tie": "22.66", "delta": "17.79", "note": ""}
    marked = [row for row in ROWS if any(MARK in text for text in printed(row).values())]
    assert len(marked) == len(ERRATA)


def test_meet_paper_prints_every_row_on_its_line_with_errata_marked_and_listed() -> None:
    out = CliRunner().invoke(main, ["paper"], catch_exceptions=False).output
    assert [int(number) for number in re.findall(r"^Table (\d)", out, re.MULTILINE)] == [1, 2, 3, 4, 5]
    lines = [line.split() for line in out.splitlines()]
    for row in ROWS:
        text = printed(row)
        figures = [text[name] for name in ("win", "lose", "tie", "delta")]
        start = row.method.split()
        assert any(line[: len(start)] == start and "|".join(figures) in "|".join(line) for line in lines), row
    for one in ERRATA:
        assert f"{MARK} {one.dataset}, {one.method}, by {one.evaluator}: {one.text}\n" in out
    assert out.count(MARK) == sum("".join(printed(row).values()).count(MARK) for row in ROWS) + len(ERRATA) + 1
    assert "\u2212" + "77.85" in out and "25.53" in out


def test_meet_paper_prints_one_table() -> None:
    out = CliRunner().invoke(main, ["paper", "--table", "4"], catch_exceptions=False).output
    assert "Table 4" in out and "Table 3" not in out and "129 of 128 prompts" in out and "10.15" not in out
    assert "13.11" not in out and "ROUGE" not in out
    assert CliRunner().invoke(main, ["paper", "--table", "6"]).exit_code == 2


def test_what_the_papers_text_says_otherwise_is_printed_where_its_figures_are() -> None:
    """Section 4.5 against Table 5, by its own arithmetic."""
    by_place = {(row.dataset, row.method): row for row in ROWS if row.table == 5}
    assert by_place[SUMMARY, LORA_FIRST].delta == 2.46  # the text has 2.45%
    drop = by_place[SUMMARY, PROMPT_TUNING].delta - by_place[SUMMARY, PROMPT_SECOND].delta
    assert round(drop, 2) == 6.29  # the text has 6.20%
    assert list(PROSE) == [5] and len(PROSE[5]) == 2
    assert ["2.45" in PROSE[5][0], "6.20" in PROSE[5][1], "6.29" in PROSE[5][1]] == [True, True, True]
    assert all("section 4.5" in said for said in PROSE[5])
    out = CliRunner().invoke(main, ["paper"], catch_exceptions=False).output
    before, table = out.split("\nTable 5")
    for said in PROSE[5]:
        assert said in table and said not in before
        assert said in paper_table(5).notes and not any(said in paper_table(number).notes for number in (1, 2, 3, 4))
