"""What a comparison shows: one rule for words, bold figures and filled marks."""

from __future__ import annotations

from typing import Literal

from meetlm.evaluation.record import Comparison, Consistency, Evaluation, Rates
from meetlm.report.wording import in_percent, listed, number

Verdict = Literal["better", "worse", "even", "inconclusive"]
JUDGE = "judge"
"""Name of the evaluator that :class:`JudgeAccount` is of."""
LEVEL = 0.05
"""Of the sign test."""
RULE = "the interval of Δ leaves out 0 and the sign test over prompts has p < 0.05"
DOUBTFUL = "No conclusion can be drawn from this judge (the summary says why), so nothing of it is bold or filled."
NEAR_CHANCE = "consistency near chance"
DOUBTED = (
    "No conclusion can be drawn from the judge about {systems} (the summary says why), so nothing of that is bold or "
    "filled."
)


def verdict(evaluation: Evaluation, comparison: Comparison) -> Verdict:
    """Return what a comparison shows: better or worse only where the interval of Δ and the sign test both say so.

    The interval alone does not do: of a handful of prompts a bootstrap draws the same few again and again.
    """
    if is_doubtful(evaluation, comparison.evaluator, comparison.system):
        return "inconclusive"
    if leaves_out_0(comparison.rates) and comparison.rates.sign_p < LEVEL:
        return "better" if comparison.rates.delta.low > 0 else "worse"
    return "even"


def is_clear(evaluation: Evaluation, comparison: Comparison) -> bool:
    """Whether a comparison shows a difference."""
    return verdict(evaluation, comparison) in ("better", "worse")


def leaves_out_0(rates: Rates) -> bool:
    """Whether the interval of Δ does."""
    return rates.delta.low > 0 or rates.delta.high < 0


def is_doubtful(evaluation: Evaluation, evaluator: str, system: str | None = None) -> bool:
    """Whether an evaluator is a judge from which nothing can be concluded: at all, or about one system."""
    judge = evaluation.judge
    if evaluator != JUDGE or judge is None:
        return False
    return says_nothing(judge.overall) or system in doubted(evaluation)


def doubted(evaluation: Evaluation) -> dict[str, Consistency]:
    """Return the systems about which nothing can be concluded from the judge, whatever it is worth as a whole."""
    judge = evaluation.judge
    return {name: one for name, one in judge.by_system.items() if says_nothing(one)} if judge else {}


def doubt(evaluation: Evaluation, evaluator: str) -> str:
    """Return the note beside figures of an evaluator from which nothing can be concluded; empty where there is none."""
    if is_doubtful(evaluation, evaluator):
        return DOUBTFUL
    if evaluator != JUDGE or not doubted(evaluation):
        return ""
    return DOUBTED.format(systems=listed(list(doubted(evaluation))))


def mark(judge: Consistency) -> str:
    """Return what stands, in brackets, after a name that nothing can be concluded about; empty where something can."""
    if not says_nothing(judge):
        return ""
    return f"({NEAR_CHANCE if judge.consistency else why_doubtful(judge)})"


def mark_of(evaluation: Evaluation, evaluator: str, system: str) -> str:
    """Return the mark of a system in a table of an evaluator; empty where there is nothing to say."""
    own = evaluation.judge.by_system.get(system) if evaluator == JUDGE and evaluation.judge else None
    return mark(own) if own else ""


def says_nothing(judge: Consistency) -> bool:
    """Whether a judge was asked, and nothing can be concluded from its answers."""
    return judge.num_calls > 0 and not judge.conclusive


def why_doubtful(judge: Consistency) -> str:
    """Return why nothing can be concluded from a judge, in one clause."""
    if judge.consistency is None:
        if judge.num_calls == judge.num_unparsable + judge.num_failed:
            return "no verdict could be read"
        return "no pair has a verdict in both orders"
    chance = f"; chance alone gives {number(100 * judge.chance, 1)}%" if judge.chance is not None else ""
    return f"it gave the same verdict in both orders for {in_percent(judge.consistency)} of the pairs{chance}"
