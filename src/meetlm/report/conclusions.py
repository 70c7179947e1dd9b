"""What a comparison shows: one rule for the words, the bold figures and the filled markers of a report."""

from __future__ import annotations

from typing import Literal

from meetlm.evaluation.record import Comparison, Consistency, Evaluation
from meetlm.report.wording import in_percent, number

Conclusion = Literal["better", "worse", "not significant", "inconclusive"]
JUDGE = "judge"
"""Name of the evaluator that :class:`JudgeAccount` describes."""
ALPHA = 0.05
"""Significance level of the sign test."""
RULE = f"the interval of Δ excludes 0 and the sign test over prompts has p < {ALPHA}"
INCONCLUSIVE = "(inconclusive)"
"""Mark of a system about which nothing can be concluded from the judge."""


def conclude(evaluation: Evaluation, comparison: Comparison) -> Conclusion:
    """Return what a comparison shows: better or worse only where the interval of Δ and the sign test agree.

    The interval alone is not enough: a bootstrap over a handful of prompts draws the same few again and again.
    """
    if judge_doubt(evaluation, comparison.evaluator, comparison.system):
        return "inconclusive"
    if excludes_zero(comparison) and comparison.rates.sign_p < ALPHA:
        return "better" if comparison.rates.delta.low > 0 else "worse"
    return "not significant"


def is_significant(evaluation: Evaluation, comparison: Comparison) -> bool:
    """Return whether a comparison shows a difference."""
    return conclude(evaluation, comparison) in ("better", "worse")


def excludes_zero(comparison: Comparison) -> bool:
    """Return whether the interval of Δ excludes 0."""
    return comparison.rates.delta.low > 0 or comparison.rates.delta.high < 0


def judge_doubt(evaluation: Evaluation, evaluator: str, system: str | None = None) -> str:
    """Return why nothing can be concluded from the judge, in general or about a system, in one clause.

    Empty where something can be concluded, nothing was asked, or the evaluator is not the judge.
    """
    judge = evaluation.judge
    if evaluator != JUDGE or judge is None:
        return ""
    parts = [judge.overall, *([judge.by_system[system]] if system in judge.by_system else [])]
    return next((_doubt(part) for part in parts if part.num_calls and not part.is_conclusive), "")


def _doubt(judge: Consistency) -> str:
    if judge.consistency is None or judge.chance is None:
        has_verdicts = judge.num_calls > judge.num_without_verdict + judge.num_failed
        return "no pair has a verdict in both orders" if has_verdicts else "no verdict could be read"
    return (
        f"it gave the same verdict in both orders for {in_percent(judge.consistency)} of the pairs; chance alone gives "
        f"{number(100 * judge.chance, 1)}%"
    )
