"""What a comparison shows: one rule for words, bold figures and filled marks."""

from __future__ import annotations

from typing import Literal

from meetlm.evaluation.record import Comparison, Evaluation, JudgeAccount, Rates
from meetlm.report.wording import in_percent, number

Verdict = Literal["better", "worse", "even", "inconclusive"]
JUDGE = "judge"
"""Name of the evaluator that :class:`JudgeAccount` is of."""
LEVEL = 0.05
"""Of the sign test."""
RULE = "the interval of Δ leaves out 0 and the sign test over prompts has p < 0.05"
DOUBTFUL = "No conclusion can be drawn from this judge (the summary says why), so nothing of it is bold or filled."


def verdict(evaluation: Evaluation, comparison: Comparison) -> Verdict:
    """Return what a comparison shows: better or worse only where the interval of Δ and the sign test both say so.

    The interval alone does not do: of a handful of prompts a bootstrap draws the same few again and again.
    """
    if is_doubtful(evaluation, comparison.evaluator):
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


def is_doubtful(evaluation: Evaluation, evaluator: str) -> bool:
    """Whether an evaluator is a judge from which nothing can be concluded."""
    judge = evaluation.judge
    return evaluator == JUDGE and judge is not None and judge.num_calls > 0 and not judge.conclusive


def why_doubtful(judge: JudgeAccount) -> str:
    """Return why nothing can be concluded from a judge, in one clause."""
    if judge.consistency is None:
        if judge.num_calls == judge.num_unparsable + judge.num_failed:
            return "no verdict could be read"
        return "no pair has a verdict in both orders"
    chance = f"; chance alone gives {number(100 * judge.chance, 1)}%" if judge.chance is not None else ""
    return f"it gave the same verdict in both orders for {in_percent(judge.consistency)} of the pairs{chance}"
