"""The judge in a report: what it was asked, what that cost, and how far its verdicts agree across both orders."""

from __future__ import annotations

from meetlm.evaluation.record import Consistency, JudgeAccount, Usage
from meetlm.report.conclusions import INCONCLUSIVE
from meetlm.report.conditions import Conditions
from meetlm.report.tables import Cell, Table, condition_cells, condition_columns, share_cell
from meetlm.report.wording import NO_VALUE, count, number

ALL_SYSTEMS = "all systems"


def judge_tables(conditions: Conditions) -> list[Table]:
    """Return the tables of the judge's calls and of its consistency by system; none if no judge was asked."""
    judged = [(condition, condition.evaluation.judge) for condition in conditions if condition.evaluation.judge]
    if not judged:
        return []
    accounts = [_account(judge) for _, judge in judged]
    labels = [condition.heading or "Value" for condition, _ in judged]
    rows = [[Cell(name), *(Cell(account[name]) for account in accounts)] for name in accounts[0]]
    note = (
        "Stored responses are all responses to the calls of this evaluation, from earlier runs too; empty, truncated "
        "and repeated responses were paid for as well. A call that several evaluations share is counted in each. Costs "
        "are in the currency of the prices."
    )
    consistency = [
        [
            Cell(name, INCONCLUSIVE if part.num_calls and not part.is_conclusive else ""),
            *condition_cells(condition),
            share_cell(part.consistency),
            Cell(NO_VALUE if part.chance is None else number(100 * part.chance, 1)),
            *(Cell(f"{num:,}") for num in (part.num_calls, part.num_without_verdict, part.num_failed)),
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
        Table("Calls and costs of the judge", ["", *labels], rows, [note]),
        Table("Consistency of the judge across both orders", columns, consistency, [rule]),
    ]


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
