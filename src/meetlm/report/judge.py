"""The judge in a report: what it was asked, what that cost, and how far its verdicts agree across both orders."""

from __future__ import annotations

from meetlm.evaluation.record import Consistency, Evaluation, JudgeAccount, Usage
from meetlm.report.conclusions import JUDGE, cannot_conclude, inconclusive_reason, judge_mark
from meetlm.report.conditions import Conditions
from meetlm.report.tables import Cell, Table, condition_cells, condition_columns, share_cell
from meetlm.report.wording import NO_VALUE, count, in_percent, number


def judge_tables(conditions: Conditions) -> list[Table]:
    """Return the account of the judge and its consistency by system; nothing where no judge was asked."""
    judged = [condition for condition in conditions if condition.evaluation.judge]
    accounts = [_account(condition.evaluation.judge) for condition in judged if condition.evaluation.judge]
    if not accounts:
        return []
    labels = [condition.heading or "Value" for condition in judged]
    rows = [[Cell(name), *(Cell(account[name]) for account in accounts)] for name in accounts[0]]
    note = (
        "Cached are all answers to the calls of this evaluation, from earlier runs too: empty, truncated and repeated "
        "ones were paid for as well. A call that several evaluations share is counted in each. Costs are in the "
        "currency of the prices."
    )
    return [Table("Calls and costs", ["", *labels], rows, [note]), _consistency_table(judged)]


def _account(judge: JudgeAccount) -> dict[str, str]:
    overall = judge.overall
    return {
        "Model": judge.model,
        "Endpoint": judge.base_url,
        "Prompt": f"{judge.prompt}, {judge.prompt_reason}",
        "Judgements needed, both orders": f"{overall.num_calls:,}",
        "Judgements found in the cache": f"{judge.num_cached:,}",
        "Answers without a verdict": _unparsable(judge),
        "Failed calls": f"{overall.num_failed:,}",
        "Pairs with identical replies: a tie, not asked": f"{judge.num_same:,}",
        "Same verdict in both orders": in_percent(overall.consistency) if overall.consistency else NO_VALUE,
        "Expected by chance": _chance(overall),
        "Conclusive": _conclusive(overall),
        "This run": _usage(judge.this_run),
        "All cached answers": _usage(judge.kept),
    }


def _consistency_table(conditions: Conditions) -> Table:
    rows = [
        [
            Cell(name, judge_mark(condition.evaluation, JUDGE, name)),
            *condition_cells(condition),
            share_cell(part.consistency),
            Cell(NO_VALUE if part.chance is None else number(100 * part.chance, 1)),
            Cell("yes" if part.conclusive else "no"),
            *(Cell(f"{number_of:,}") for number_of in (part.num_calls, part.num_unparsable, part.num_failed)),
        ]
        for condition in conditions
        for name, part in _parts(condition.evaluation.judge)
    ]
    columns = ["System", *condition_columns(conditions), "Same verdict in both orders (%)", "Expected by chance (%)"]
    columns += ["Conclusive", "Judgements", "Without a verdict", "Failed"]
    note = (
        "The share of pairs with the same verdict in both orders, of those with two verdicts, with 95% intervals over "
        "prompts. Chance is the share that a judge with the same habits reaches without seeing the replies; "
        "conclusions are drawn only where the interval lies above it."
    )
    return Table("Consistency across both orders", columns, rows, [note])


def judge_lines(evaluation: Evaluation) -> list[str]:
    """Return the judge's account in a few lines for a terminal; nothing where no judge was asked."""
    if evaluation.judge is None:
        return []
    lines = [f"judge: {name.lower()}: {value}" for name, value in _account(evaluation.judge).items()]
    for name, part in evaluation.judge.by_system.items():
        if cannot_conclude(part):
            lines.append(f"judge: {name}: no conclusion can be drawn: {inconclusive_reason(part)}")
    return lines


def _parts(judge: JudgeAccount | None) -> list[tuple[str, Consistency]]:
    """Return the consistency for each system, then over all of them if there are several."""
    if judge is None:
        return []
    return [*judge.by_system.items(), *([("all systems", judge.overall)] if len(judge.by_system) != 1 else [])]


def _conclusive(judge: Consistency) -> str:
    if judge.num_calls == 0:
        return "nothing was asked"
    return "yes" if judge.conclusive else f"no: {inconclusive_reason(judge)}"


def _unparsable(judge: JudgeAccount) -> str:
    reasons = ", ".join(f"{number_of:,} {reason}" for reason, number_of in judge.finish_reasons.items())
    return f"{judge.overall.num_unparsable:,}" + (f" (finish reason: {reasons})" if reasons else "")


def _usage(usage: Usage) -> str:
    tokens = "tokens not reported by the endpoint"
    if usage.prompt_tokens is not None and usage.completion_tokens is not None:
        tokens = f"{usage.prompt_tokens:,} prompt and {usage.completion_tokens:,} completion tokens"
    cost = "" if usage.cost is None else f", cost {usage.cost:,.2f}"
    return f"{count(usage.num_answers, 'answer')}, {tokens}{cost}"


def _chance(judge: Consistency) -> str:
    return NO_VALUE if judge.chance is None else f"{number(100 * judge.chance, 1)}%"
