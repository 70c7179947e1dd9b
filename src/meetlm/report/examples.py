"""Completions side by side: the order to look at them in, the data of the page's search, and a few to print.

Completions are untrusted text: the page holds them as JSON, or escaped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain, zip_longest

from meetlm.data.example import Turn
from meetlm.evaluation.outcomes import Outcome
from meetlm.evaluation.record import Comparison, Evaluation, PromptRow
from meetlm.report.conclusions import JUDGE
from meetlm.report.conditions import Condition, comparisons_of
from meetlm.report.wording import signed

CODES: dict[Outcome | None, str] = {"win": "w", "lose": "l", "tie": "t", None: "-"}
"""Outcomes in the page, one letter per pair."""
NOT_ASKED = "o"
"""The letter of a pair that the evaluator was not asked about."""
NAMES: dict[Outcome, str] = {"win": "win", "lose": "loss", "tie": "tie"}
TITLES: dict[Outcome, str] = {"win": "Largest win", "lose": "Largest loss", "tie": "Closest tie"}
DIGITS = 3
"""Significant digits of scores in the page; the record has all."""


@dataclass(frozen=True, slots=True)
class ShownPair:
    """One pair with its texts.

    Attributes:
        title: The outcome and the system that it shows.
        outcomes: The outcome by every evaluator, with its margin.
        prompt: Role and text of each turn.
        replies: System and text of each reply.
    """

    title: str
    outcomes: str
    prompt: list[tuple[str, str]]
    replies: list[tuple[str, str]]


def rank_pairs(evaluation: Evaluation, comparison: Comparison) -> dict[Outcome | None, list[int]]:
    """Return the pairs of each outcome, the most interesting first.

    Wins and losses by their margin; ties of different texts before ties of the same text, then by margin; pairs
    without an outcome in their order, those that the evaluator was not asked about last.
    """
    system_texts, baseline_texts = (
        evaluation.completions[comparison.system],
        evaluation.completions[comparison.baseline],
    )

    def key(pair: int) -> tuple[bool, float]:
        margin = comparison.margins[pair] or 0.0
        if comparison.outcomes[pair] == "tie":
            return system_texts[pair].strip() == baseline_texts[pair].strip(), abs(margin)
        return not comparison.was_asked(pair), -abs(margin)

    pairs = sorted(range(len(comparison.outcomes)), key=key)
    return {outcome: [pair for pair in pairs if comparison.outcomes[pair] == outcome] for outcome in CODES}


def viewing_order(evaluation: Evaluation, comparison: Comparison) -> list[int]:
    """Return all pairs: the largest win, the largest loss, the closest tie, the next of each, those without outcome."""
    ranked = rank_pairs(evaluation, comparison)
    turns = zip_longest(ranked["win"], ranked["lose"], ranked["tie"])
    return [pair for pair in chain.from_iterable(turns) if pair is not None] + ranked[None]


def examples_of(evaluation: Evaluation) -> list[ShownPair]:
    """Return the largest win and loss and the closest tie of every system, by the first evaluator that has outcomes."""
    by_system: dict[str, Comparison] = {}
    for _, comparison in comparisons_of([Condition(evaluation)]):
        by_system.setdefault(comparison.system, comparison)
    examples = []
    for system, comparison in by_system.items():
        ranked = rank_pairs(evaluation, comparison)
        for outcome, title in TITLES.items():
            for pair in ranked[outcome][:1]:
                prompt, replicate = evaluation.cells[pair]
                names = {system: system, evaluation.baseline: f"{evaluation.baseline} (baseline)"}
                examples.append(
                    ShownPair(
                        f"{title} of {system} by {comparison.evaluator}, replicate {replicate}",
                        outcomes_of(evaluation, system, pair),
                        turns(evaluation.prompts[prompt]),
                        [(names[name], evaluation.completions[name][pair].strip() or "(empty)") for name in names],
                    )
                )
    return examples


def outcomes_of(evaluation: Evaluation, system: str, pair: int) -> str:
    """Return the outcomes of a pair by every evaluator, such as ``reward: win (+0.52); judge: not asked``."""
    parts = []
    for _, comparison in comparisons_of([Condition(evaluation)]):
        if comparison.system == system:
            outcome, margin = comparison.outcomes[pair], comparison.margins[pair]
            asked = comparison.was_asked(pair)
            result = NAMES[outcome] if outcome else without_outcome(comparison) if asked else "not asked"
            parts.append(f"{comparison.evaluator}: {result}" + ("" if margin is None else f" ({signed(margin, 2)})"))
    return "; ".join(parts)


def without_outcome(comparison: Comparison) -> str:
    """Return the name of a pair without an outcome that the evaluator was asked about."""
    return "no verdict" if comparison.evaluator == JUDGE else "no outcome"


def turns(row: PromptRow) -> list[tuple[str, str]]:
    """Return a prompt as [role, text]; plain text has the role ``prompt``. Tool calls and the like are JSON text."""
    if isinstance(row.prompt, str):
        return [("prompt", row.prompt.strip())]
    messages = map(Turn.from_message, row.prompt)
    return [(turn.role, f"{turn.content}\n{turn.extra}".strip()) for turn in messages]


def page_data(evaluation: Evaluation) -> str:
    """Return all pairs as JSON that may stand inside a ``script`` element.

    ``<``, ``>`` and ``&`` are escaped, so that no text can end the element or open a comment in it.
    """
    comparisons = [
        {
            "system": comparison.system,
            "evaluator": comparison.evaluator,
            "outcomes": "".join(
                CODES[outcome] if comparison.was_asked(pair) else NOT_ASKED
                for pair, outcome in enumerate(comparison.outcomes)
            ),
            "none": without_outcome(comparison),
            "margins": list(map(_rounded, comparison.margins)),
            "order": viewing_order(evaluation, comparison),
        }
        for _, comparison in comparisons_of([Condition(evaluation)])
    ]
    data = {
        "baseline": evaluation.baseline,
        "systems": [system.name for system in evaluation.systems],
        "prompts": list(map(turns, evaluation.prompts)),
        "ids": [row.id for row in evaluation.prompts],
        "chosen": [row.chosen for row in evaluation.prompts],
        "pairs": evaluation.cells,
        "completions": evaluation.completions,
        "comparisons": comparisons,
        "measures": [
            {
                "name": measure.name,
                "values": {name: list(map(_rounded, values)) for name, values in measure.values.items()},
            }
            for measure in evaluation.measures
        ],
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _rounded(value: float | None) -> float | None:
    if value is None:
        return None
    return int(value) if float(value).is_integer() else float(f"{value:.{DIGITS}g}")
