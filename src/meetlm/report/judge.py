"""The judge in a report: what it was asked, what that cost, and how far its verdicts agree across both orders."""

from __future__ import annotations

from meetlm.evaluation.record import Consistency, Evaluation, JudgeAccount, Usage
from meetlm.report.conclusions import INCONCLUSIVE, JUDGE, judge_doubt
from meetlm.report.conditions import Conditions
from meetlm.report.tables import Cell, Table, condition_cells, condition_columns, share_cell
from meetlm.report.wording import NO_VALUE, count, in_percent, number

ALL_SYSTEMS = "all systems"


def judge_tables(conditions: Conditions) -> list[Table]:
    """Return the account of the judge and its consistency by system; nothing where no judge was asked."""
    judged = [(condition, condition.evaluation.judge) for condition in conditions if condition.evaluation.judge]
    if not judged:
        return []
    accounts = [_account(judge) for _, judge in judged]
    labels = [condition.heading or "Value" for condition, _ in judged]
    rows = [[Cell(name), *(Cell(account[name]) for account in accounts)] for name in accounts[0]]
    note = (
        "Stored are all responses to the calls of this evaluation, from earlier runs too: empty, truncated and "
        "repeated ones were paid for as well. A call that several evaluations share is counted in each. Costs are in "
        "the currency of the prices."
    )
    consistency = [
        [
            Cell(name, INCONCLUSIVE if part.num_calls and not part.is_conclusive else ""),
            *condition_cells(condition),
            share_cell(part.consistency),
            Cell(_chance(part)),
            *(Cell(f"{number_of:,}") for number_of in (part.num_calls, part.num_without_verdict, part.num_failed)),
        ]
        for condition, judge in judged
        for name, part in _parts(judge).items()
    ]
    columns = ["System", *condition_columns(conditions), "Same verdict in both orders (%)", "Expected by chance (%)"]
    columns += ["Judgements", "Without a verdict", "Failed"]
    rule = (
        "The share of pairs with the same verdict in both orders, of those with two verdicts, with 95% intervals over "
        "prompts. Chance is the share that a judge with the same habits reaches without seeing the replies; "
        "conclusions are drawn only where the interval lies above it."
    )
    return [
        Table("Calls and costs", ["", *labels], rows, [note]),
        Table("Consistency across both orders", columns, consistency, [rule]),
    ]


def judge_lines(evaluation: Evaluation) -> list[str]:
    """Return the judge's account in a few lines for a terminal; nothing where no judge was asked."""
    if evaluation.judge is None:
        return []
    lines = [f"judge: {name.lower()}: {value}" for name, value in _account(evaluation.judge).items()]
    for name, part in _parts(evaluation.judge).items():
        consistency = in_percent(part.consistency) if part.consistency else "not known"
        lines.append(
            f"judge: {name}: {count(part.num_calls, 'judgement')}, {part.num_without_verdict:,} without a verdict, "
            f"{part.num_failed:,} failed; same verdict in both orders: {consistency}, by chance {_chance(part)}%"
        )
        if doubt := judge_doubt(evaluation, JUDGE, name):
            lines.append(f"judge: {name}: no conclusion can be drawn: {doubt}")
    return lines


def _account(judge: JudgeAccount) -> dict[str, str]:
    return {
        "Model": judge.model,
        "Endpoint": judge.base_url,
        "Prompt": f"{judge.prompt}, {judge.prompt_reason}",
        "Judgements with a stored response": f"{judge.num_cached:,} of {judge.overall.num_calls:,}",
        "Pairs with identical replies: a tie, not asked": f"{judge.num_identical:,}",
        "This run": _usage(judge.this_run),
        "All stored responses": _usage(judge.stored),
    }


def _parts(judge: JudgeAccount) -> dict[str, Consistency]:
    """Return the consistency for each system, then over all of them if there are several."""
    return judge.by_system | ({ALL_SYSTEMS: judge.overall} if len(judge.by_system) != 1 else {})


def _usage(usage: Usage) -> str:
    tokens = "tokens not reported by the endpoint"
    if usage.prompt_tokens is not None and usage.completion_tokens is not None:
        tokens = f"{usage.prompt_tokens:,} prompt and {usage.completion_tokens:,} completion tokens"
    cost = "" if usage.cost is None else f", cost {usage.cost:,.2f}"
    return f"{count(usage.num_responses, 'response')}, {tokens}{cost}"


def _chance(judge: Consistency) -> str:
    return NO_VALUE if judge.chance is None else number(100 * judge.chance, 1)
