"""Completions side by side: the order to look at them in, what the page's search reads, and a few to print.

Completions are anybody's text. Here they stay text; pages put them in as JSON, or escaped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from meetlm.evaluation.record import Comparison, Evaluation, Outcome
from meetlm.report.tables import ordered
from meetlm.report.verdict import JUDGE
from meetlm.report.wording import number

CODES: dict[Outcome | None, str] = {"win": "w", "lose": "l", "tie": "t", None: "-"}
"""Outcomes in the page, a letter a cell."""
NOT_ASKED = "o"
"""In their place where the evaluator was not asked about a cell."""
WORDS: dict[Outcome, str] = {"win": "win", "lose": "loss", "tie": "tie"}
TITLES: dict[Outcome, str] = {"win": "Largest win", "lose": "Largest loss", "tie": "Closest tie"}
DIGITS = 3
"""Significant ones of scores in the page; the record has all."""


@dataclass(frozen=True, slots=True)
class Example:
    """One cell to show.

    Attributes:
        comparison: Of which system, by which evaluator.
        cell: Its index.
        outcome: There.
    """

    comparison: Comparison
    cell: int
    outcome: Outcome


def ranked(evaluation: Evaluation, comparison: Comparison) -> dict[Outcome | None, list[int]]:
    """Return the cells of each outcome, those to look at first first.

    Wins and losses by how clear they were; ties of different texts before ties of the same text, then the closest
    first; cells without an outcome as they come, those that were not asked about last.
    """
    ours, theirs = evaluation.completions[comparison.system], evaluation.completions[comparison.baseline]

    def key(cell: int) -> tuple[bool, float]:
        margin = comparison.margins[cell] or 0.0
        if comparison.outcomes[cell] == "tie":
            return ours[cell].strip() == theirs[cell].strip(), abs(margin)
        return not comparison.was_asked(cell), -abs(margin)

    found: dict[Outcome | None, list[int]] = {"win": [], "lose": [], "tie": [], None: []}
    for cell, outcome in enumerate(comparison.outcomes):
        found[outcome].append(cell)
    return {outcome: sorted(cells, key=key) for outcome, cells in found.items()}


def viewing_order(evaluation: Evaluation, comparison: Comparison) -> list[int]:
    """Return all cells: the largest win, the largest loss, the closest tie, the next of each, those without outcome."""
    found = ranked(evaluation, comparison)
    turns = zip_longest(found["win"], found["lose"], found["tie"])
    return [cell for cell in chain.from_iterable(turns) if cell is not None] + found[None]


def highlights(evaluation: Evaluation, each: int = 1) -> list[Example]:
    """Return the first wins, losses and ties of every system, by the first evaluator that has outcomes for it.

    Args:
        evaluation: Whose.
        each: How many of each outcome.
    """
    kinds: Sequence[Outcome] = ("win", "lose", "tie")
    firsts: dict[str, Comparison] = {}
    for one in ordered(evaluation):
        firsts.setdefault(one.system, one)
    return [
        Example(comparison, cell, outcome)
        for comparison in firsts.values()
        for found in [ranked(evaluation, comparison)]
        for outcome in kinds
        for cell in found[outcome][:each]
    ]


@dataclass(frozen=True, slots=True)
class Shown:
    """An example with its texts.

    Attributes:
        title: What it is one of.
        outcomes: By every evaluator.
        prompt: [role, text].
        replies: [whose, text].
    """

    title: str
    outcomes: str
    prompt: list[tuple[str, str]]
    replies: list[tuple[str, str]]


def shown(evaluation: Evaluation) -> list[Shown]:
    """Return the texts of :func:`highlights`."""
    made = []
    for one in highlights(evaluation):
        prompt, seed = evaluation.cells[one.cell]
        system, baseline = one.comparison.system, one.comparison.baseline
        replies = [(name, evaluation.completions[name][one.cell].strip() or "(empty)") for name in (system, baseline)]
        title = f"{TITLES[one.outcome]} of {system} by {one.comparison.evaluator}, seed {seed}"
        spoken = [(role, text.strip()) for role, text in turns(evaluation.prompts[prompt].prompt)]
        told = outcomes_of(evaluation, system, one.cell)
        made.append(Shown(title, told, spoken, [replies[0], (f"{baseline} (baseline)", replies[1][1])]))
    return made


def outcomes_of(evaluation: Evaluation, system: str, cell: int) -> str:
    """Return what every evaluator says of a cell, such as ``reward: win (+0.52); judge: not asked``."""
    told = []
    for one in (one for one in ordered(evaluation) if one.system == system):
        outcome, margin = one.outcomes[cell], one.margins[cell]
        word = WORDS[outcome] if outcome else without_outcome(one) if one.was_asked(cell) else "not asked"
        told.append(f"{one.evaluator}: {word}" + ("" if margin is None else f" ({_signed(margin)})"))
    return "; ".join(told)


def without_outcome(comparison: Comparison) -> str:
    """Return what a cell without an outcome is called that the evaluator was asked about."""
    return "no verdict" if comparison.evaluator == JUDGE else "no outcome"


def payload(evaluation: Evaluation) -> str:
    """Return all cells as JSON that may stand inside a ``script`` element.

    ``<``, ``>`` and ``&`` are written as escapes, so no text can end the element or open a comment in it.
    """
    found: dict[str, Any] = {
        "baseline": evaluation.baseline,
        "systems": [one.name for one in evaluation.systems],
        "prompts": [one.prompt for one in evaluation.prompts],
        "ids": [one.id for one in evaluation.prompts],
        "chosen": [one.chosen for one in evaluation.prompts],
        "cells": evaluation.cells,
        "completions": evaluation.completions,
        "comparisons": [
            {
                "system": one.system,
                "evaluator": one.evaluator,
                "outcomes": "".join(
                    CODES[outcome] if one.was_asked(cell) else NOT_ASKED for cell, outcome in enumerate(one.outcomes)
                ),
                "none": without_outcome(one),
                "margins": [_short(margin) for margin in one.margins],
                "order": viewing_order(evaluation, one),
            }
            for one in ordered(evaluation)
        ],
        "measures": [
            {"name": one.name, "values": {name: [_short(v) for v in found] for name, found in one.values.items()}}
            for one in evaluation.measures
        ],
    }
    text = json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def turns(prompt: str | list[dict[str, str]]) -> list[tuple[str, str]]:
    """Return a prompt as [role, text]; plain text has the role ``prompt``."""
    return [("prompt", prompt)] if isinstance(prompt, str) else [(one["role"], one["content"]) for one in prompt]


def _signed(margin: float) -> str:
    return ("+" if round(margin, 2) > 0 else "") + number(margin, 2)


def _short(value: float | None) -> float | None:
    if value is None:
        return None
    value = float(value)
    return int(value) if value.is_integer() else float(f"{value:.{DIGITS}g}")
