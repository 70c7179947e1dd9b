"""The figures of the paper's Tables 1 to 5 as printed, and where they contradict themselves.

"Parameter-Efficient Tuning Helps Language Model Alignment" (MEET). All rates are in percent; Δ is win - lose. The
systems are MEET's, CoH's and DPO's on GPT-Neo 1.3B at temperature 0 (sections 4.2, 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HH = "Anthropic/HH-RLHF"
SUMMARY = "OpenAI/Summary"
DEBERTA = "DeBERTa"
GPT4 = "GPT-4"
MARK = "†"
"""Set behind a printed figure that an erratum is about."""


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A row of a table by one evaluator, in percent, as printed.

    Attributes:
        table: 1 to 5.
        dataset: :data:`HH` or :data:`SUMMARY`.
        method: The system, as the table names it.
        baseline: ``CoH`` or ``DPO``.
        evaluator: :data:`DEBERTA` (6,343 or 5,132 prompts) or :data:`GPT4` (128 prompts).
        win: Win rate.
        lose: Lose rate.
        tie: Tie rate.
        delta: Δ.
        rouge_l: ROUGE-L, which Table 1 has.
        rouge_avg: Mean of ROUGE-1, 2 and L, which Table 1 has.
    """

    table: int
    dataset: str
    method: str
    baseline: str
    evaluator: str
    win: float
    lose: float
    tie: float
    delta: float
    rouge_l: float | None = None
    rouge_avg: float | None = None


@dataclass(frozen=True, slots=True)
class Erratum:
    """A contradiction in the paper's tables.

    Attributes:
        table: Where it stands.
        dataset: As in :class:`PaperRow`.
        method: As in :class:`PaperRow`.
        evaluator: As in :class:`PaperRow`.
        kind: ``delta``: Δ is not win - lose; ``row``: the figures are another method's; ``sum``: win, lose and tie do
            not add up to 100.
        text: What is wrong, for readers.
    """

    table: int
    dataset: str
    method: str
    evaluator: str
    kind: Literal["delta", "row", "sum"]
    text: str


PROMPT_TUNING, LORA = "MEET (Prompt Tuning)", "MEET (LoRA)"
PROMPT_50, RANK_4, RANK_64 = f"{PROMPT_TUNING}, length 50", f"{LORA}, rank 4", f"{LORA}, rank 64"
PROMPT_FIRST, PROMPT_SECOND = f"{PROMPT_TUNING}, first step only", f"{PROMPT_TUNING}, second step only"
LORA_FIRST, LORA_SECOND = f"{LORA}, first step only", f"{LORA}, second step only"

ROWS: tuple[PaperRow, ...] = (
    PaperRow(1, SUMMARY, "CoH", "CoH", DEBERTA, 0.00, 0.00, 100.00, 0.00, 25.03, 23.56),
    PaperRow(1, SUMMARY, "DPO", "CoH", DEBERTA, 46.03, 50.00, 3.95, -3.97, 15.50, 15.21),
    PaperRow(1, SUMMARY, f"{PROMPT_TUNING}, length 1", "CoH", DEBERTA, 9.66, 87.51, 2.82, -77.85, 5.69, 4.53),
    PaperRow(1, SUMMARY, f"{PROMPT_TUNING}, length 20", "CoH", DEBERTA, 41.91, 38.13, 19.96, 3.78, 25.70, 24.22),
    PaperRow(1, SUMMARY, PROMPT_50, "CoH", DEBERTA, 43.17, 37.52, 19.31, 5.65, 25.82, 24.32),
    PaperRow(1, SUMMARY, f"{PROMPT_TUNING}, length 100", "CoH", DEBERTA, 43.72, 36.95, 19.33, 6.77, 25.57, 24.11),
    PaperRow(1, SUMMARY, f"{LORA}, rank 1", "CoH", DEBERTA, 47.75, 42.80, 9.44, 4.95, 26.64, 25.09),
    PaperRow(1, SUMMARY, RANK_4, "CoH", DEBERTA, 49.31, 42.31, 8.37, 7.00, 27.13, 25.53),
    PaperRow(1, SUMMARY, RANK_64, "CoH", DEBERTA, 49.83, 42.12, 8.04, 7.71, 27.09, 25.49),
    PaperRow(2, HH, "CoH", "CoH", DEBERTA, 0.00, 0.00, 100.00, 0.00),
    PaperRow(2, HH, "DPO", "CoH", DEBERTA, 48.36, 39.63, 12.00, 8.73),
    PaperRow(2, HH, f"{PROMPT_TUNING}, length 1", "CoH", DEBERTA, 28.70, 27.76, 43.53, 0.94),
    PaperRow(2, HH, f"{PROMPT_TUNING}, length 20", "CoH", DEBERTA, 32.63, 29.42, 37.93, 3.21),
    PaperRow(2, HH, PROMPT_50, "CoH", DEBERTA, 33.84, 30.31, 35.83, 3.53),
    PaperRow(2, HH, f"{PROMPT_TUNING}, length 100", "CoH", DEBERTA, 33.43, 31.76, 34.80, 1.67),
    PaperRow(2, HH, f"{LORA}, rank 1", "CoH", DEBERTA, 41.07, 31.21, 27.70, 9.86),
    PaperRow(2, HH, RANK_4, "CoH", DEBERTA, 43.95, 30.84, 25.19, 13.11),
    PaperRow(2, HH, RANK_64, "CoH", DEBERTA, 47.56, 29.77, 22.66, 17.79),
    PaperRow(3, HH, PROMPT_TUNING, "CoH", DEBERTA, 33.84, 30.31, 35.83, 3.53),
    PaperRow(3, HH, PROMPT_TUNING, "CoH", GPT4, 32.81, 24.21, 42.97, 8.60),
    PaperRow(3, HH, LORA, "CoH", DEBERTA, 47.56, 29.77, 22.66, 17.79),
    PaperRow(3, HH, LORA, "CoH", GPT4, 49.22, 26.56, 24.22, 22.66),
    PaperRow(3, SUMMARY, PROMPT_TUNING, "CoH", DEBERTA, 43.17, 37.52, 19.31, 5.65),
    PaperRow(3, SUMMARY, PROMPT_TUNING, "CoH", GPT4, 39.06, 32.03, 28.91, 7.03),
    PaperRow(3, SUMMARY, LORA, "CoH", DEBERTA, 49.31, 42.31, 8.37, 7.00),
    PaperRow(3, SUMMARY, LORA, "CoH", GPT4, 46.09, 35.94, 17.97, 13.00),
    PaperRow(4, HH, PROMPT_TUNING, "DPO", DEBERTA, 42.16, 46.53, 11.30, -4.37),
    PaperRow(4, HH, PROMPT_TUNING, "DPO", GPT4, 42.19, 41.41, 16.41, 0.78),
    PaperRow(4, HH, LORA, "DPO", DEBERTA, 48.01, 40.78, 11.20, 7.23),
    PaperRow(4, HH, LORA, "DPO", GPT4, 44.53, 39.06, 17.19, 5.47),
    PaperRow(4, SUMMARY, PROMPT_TUNING, "DPO", DEBERTA, 52.79, 43.48, 3.72, 9.31),
    PaperRow(4, SUMMARY, PROMPT_TUNING, "DPO", GPT4, 46.88, 28.91, 24.22, 17.97),
    PaperRow(4, SUMMARY, LORA, "DPO", DEBERTA, 53.89, 42.33, 3.78, 11.56),
    PaperRow(4, SUMMARY, LORA, "DPO", GPT4, 53.13, 26.56, 20.31, 26.57),
    PaperRow(5, HH, PROMPT_TUNING, "CoH", DEBERTA, 33.84, 30.31, 35.83, 3.53),
    PaperRow(5, HH, PROMPT_FIRST, "CoH", DEBERTA, 31.99, 37.76, 30.24, -5.77),
    PaperRow(5, HH, PROMPT_SECOND, "CoH", DEBERTA, 24.70, 24.43, 50.58, 0.27),
    PaperRow(5, HH, LORA, "CoH", DEBERTA, 43.95, 30.84, 25.19, 13.11),
    PaperRow(5, HH, LORA_FIRST, "CoH", DEBERTA, 34.78, 32.40, 32.81, 2.83),
    PaperRow(5, HH, LORA_SECOND, "CoH", DEBERTA, 28.21, 25.75, 46.02, 2.46),
    PaperRow(5, SUMMARY, PROMPT_TUNING, "CoH", DEBERTA, 43.17, 37.52, 19.31, 5.65),
    PaperRow(5, SUMMARY, PROMPT_FIRST, "CoH", DEBERTA, 42.09, 42.82, 15.87, -0.73),
    PaperRow(5, SUMMARY, PROMPT_SECOND, "CoH", DEBERTA, 35.19, 35.83, 28.98, -0.64),
    PaperRow(5, SUMMARY, LORA, "CoH", DEBERTA, 49.31, 42.31, 8.37, 7.00),
    PaperRow(5, SUMMARY, LORA_FIRST, "CoH", DEBERTA, 46.68, 44.22, 9.09, 2.46),
    PaperRow(5, SUMMARY, LORA_SECOND, "CoH", DEBERTA, 33.50, 34.49, 32.00, -0.99),
)

_NOT_RANK_4 = "Table 3's HH LoRA row by DeBERTa is Table 2's rank 64, not rank 4 as its caption says"
ERRATA: tuple[Erratum, ...] = (
    Erratum(3, SUMMARY, LORA, GPT4, "delta", "46.09 − 35.94 is 10.15, not 13.00"),
    Erratum(5, HH, LORA_FIRST, DEBERTA, "delta", "34.78 − 32.40 is 2.38, not 2.83"),
    Erratum(3, HH, LORA, DEBERTA, "row", _NOT_RANK_4),
    Erratum(3, HH, LORA, GPT4, "row", f"{_NOT_RANK_4}; by GPT-4 the rank is not known"),
    Erratum(4, HH, LORA, GPT4, "sum", "44.53 + 39.06 + 17.19 is 100.78, 129 of 128 prompts"),
    Erratum(5, HH, PROMPT_SECOND, DEBERTA, "sum", "24.70 + 24.43 + 50.58 is 99.71, not 100"),
    Erratum(5, SUMMARY, PROMPT_FIRST, DEBERTA, "sum", "42.09 + 42.82 + 15.87 is 100.78, not 100"),
)


PROSE: dict[int, tuple[str, ...]] = {
    5: (
        "the text (section 4.5) has 2.45% where the table has 2.46 (Summary, LoRA, first step only)",
        "the text (section 4.5) has a drop of 6.20% where 5.65 − (−0.64) is 6.29 (Summary, prompt tuning, second step)",
    ),
}
"""What the paper's text says of a table against its figures."""


CAPTIONS: dict[int, str] = {
    1: f"sizes of the control on {SUMMARY}, against CoH, by {DEBERTA}",
    2: f"sizes of the control on {HH}, against CoH, by {DEBERTA}",
    3: "against CoH, with 50 soft prompts or rank 4",
    4: "against DPO",
    5: f"each step alone, against CoH, by {DEBERTA}",
}
"""What each table shows, in our words."""


def errata_of(row: PaperRow) -> list[Erratum]:
    """Return what is known to be wrong with a row; mostly nothing."""
    place = (row.table, row.dataset, row.method, row.evaluator)
    return [one for one in ERRATA if (one.table, one.dataset, one.method, one.evaluator) == place]


def errata_notes(table: int) -> list[str]:
    """Return what is wrong in a table, a line each, with the row that it is about.

    Args:
        table: 1 to 5.
    """
    return [f"{one.dataset}, {one.method}, by {one.evaluator}: {one.text}" for one in ERRATA if one.table == table]


def printed(row: PaperRow) -> dict[str, str]:
    """Return a row's figures as text, with :data:`MARK` behind each that an erratum is about.

    Returns:
        By ``win``, ``lose``, ``tie`` and ``delta``; and ``note``, the errata's texts, empty where there is none.
    """
    about = {"delta": {"delta"}, "row": {"win", "lose", "tie", "delta"}, "sum": {"win", "lose", "tie"}}
    errata = errata_of(row)
    marked = {name for one in errata for name in about[one.kind]}
    figures = {"win": row.win, "lose": row.lose, "tie": row.tie, "delta": row.delta}
    text = {
        name: f"{value:.2f}".replace("-", "\N{MINUS SIGN}") + (MARK if name in marked else "")
        for name, value in figures.items()
    }
    return text | {"note": "; ".join(one.text for one in errata)}
