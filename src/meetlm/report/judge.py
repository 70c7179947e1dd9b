"""The judge in a report: what it was asked, what that cost, and how far its two orders agree, system by system."""

from __future__ import annotations

from meetlm.evaluation.record import Consistency, Evaluation, JudgeAccount, Usage
from meetlm.report.tables import Cell, Table, share_cell
from meetlm.report.verdict import NEAR_CHANCE, mark, says_nothing, why_doubtful
from meetlm.report.wording import NONE, count, in_percent, number


def judge_tables(judge: JudgeAccount) -> list[Table]:
    """Return a judge's account, its consistency by system and its costs."""
    by_system = [consistency_table(judge)] if judge.by_system else []
    return [account_table(judge), *by_system, cost_table(judge)]


def account_table(judge: JudgeAccount) -> Table:
    """Return what the judge was asked, and how it answered."""
    rows = {
        "Model": judge.model,
        "Endpoint": judge.base_url,
        "Prompt": f"{judge.prompt}, {judge.prompt_reason}",
        "Judgements needed, both orders": f"{judge.overall.num_calls:,}",
        "Found in the cache": f"{judge.num_cached:,}",
        "Without a verdict": without_verdict(judge),
        "Failed for good": f"{judge.overall.num_failed:,}",
        "Pairs with the same reply, a tie without asking": f"{judge.num_same:,}",
        "Same verdict in both orders": in_percent(judge.overall.consistency) if judge.overall.consistency else NONE,
        "By chance": _chance(judge.overall),
        "Conclusive": conclusive(judge.overall),
    }
    return Table("The judge's account", ["What", "Value"], [[Cell(name), Cell(value)] for name, value in rows.items()])


def consistency_table(judge: JudgeAccount) -> Table:
    """Return how often both orders agree: over all pairs, and for each system alone."""
    rows = [
        [
            Cell(name, mark(one)),
            share_cell(one.consistency) if one.consistency else Cell(NONE),
            Cell(NONE if one.chance is None else number(100 * one.chance, 1)),
            Cell(conclusive(one, why=False)),
            *(Cell(f"{number_of:,}") for number_of in (one.num_calls, one.num_unparsable, one.num_failed)),
        ]
        for name, one in _with_all(judge)
    ]
    columns = ["System", "Same verdict in both orders (%)", "By chance (%)", "Conclusive"]
    columns += ["Judgements", "Without a verdict", "Failed for good"]
    note = (
        "Of the pairs with a verdict in both orders, those in which it is the same; brackets are 95% "
        "intervals over prompts. Chance is what a judge that cannot see the replies would reach with the same habits; "
        "only where the interval lies above it can anything be concluded."
    )
    return Table("How far both orders agree", columns, rows, [note])


def cost_table(judge: JudgeAccount) -> Table:
    """Return what the answers of this run cost, beside all that are kept."""
    this, kept = _costs(judge.this_run), _costs(judge.kept)
    rows = [[Cell(name), Cell(this[name]), Cell(kept[name])] for name in this]
    note = (
        "Kept are all answers to the calls of this evaluation, those of earlier runs too; one that was empty or cut "
        "off, or whose call was asked again, was paid for as well."
    )
    return Table("What the judge cost", ["What", "This run", "All kept"], rows, [note])


def conclusive(judge: Consistency, *, why: bool = True) -> str:
    """Return whether anything can be concluded from a judge, and if not, why."""
    if judge.num_calls == 0:
        return "nothing was asked"
    if judge.conclusive:
        return "yes"
    return f"no: {why_doubtful(judge)}" if why else "no"


def without_verdict(judge: JudgeAccount) -> str:
    """Return the number of answers without a verdict, with their finish reasons."""
    reasons = ", ".join(f"{number_of:,} {reason}" for reason, number_of in judge.finish_reasons.items())
    return f"{judge.overall.num_unparsable:,}" + (f" (finish reason: {reasons})" if reasons else "")


def judge_lines(evaluation: Evaluation) -> list[str]:
    """Return the judge in a few lines for a terminal; nothing where none was asked."""
    judge = evaluation.judge
    if judge is None:
        return []
    lines = [f"judge: {judge.model}, prompt {judge.prompt}, {judge.prompt_reason}"]
    for name, one in _with_all(judge):
        if one.consistency:
            doubt = f": {NEAR_CHANCE}, so no conclusion can be drawn" if says_nothing(one) else ""
            lines.append(
                f"judge: {name}: same verdict in both orders {in_percent(one.consistency)}, "
                f"by chance {_chance(one)}{doubt}"
            )
        elif says_nothing(one):
            lines.append(f"judge: {name}: no conclusion can be drawn: {why_doubtful(one)}")
    if judge.overall.num_unparsable:
        lines.append(f"judge: answers without a verdict: {without_verdict(judge)}")
    for name, used in (("this run", judge.this_run), ("all kept", judge.kept)):
        costs = _costs(used)
        tokens = f"{costs['Prompt tokens']} prompt and {costs['Completion tokens']} completion tokens"
        told = tokens if used.prompt_tokens is not None else "tokens not told by the endpoint"
        price = "" if used.cost is None else f", cost {used.cost:,.2f}"
        lines.append(f"judge: {name}: {count(used.num_answers, 'answer')}, {told}{price}")
    return lines


def _with_all(judge: JudgeAccount) -> list[tuple[str, Consistency]]:
    """Return each system's part, then the whole; of a single system that is the same."""
    whole = ("all systems", judge.overall)
    return [*judge.by_system.items(), *([] if len(judge.by_system) == 1 else [whole])]


def _costs(used: Usage) -> dict[str, str]:
    untold = "the endpoint did not tell"
    unknown = "no prices given" if used.prompt_tokens is not None else untold
    return {
        "Answers": f"{used.num_answers:,}",
        "Prompt tokens": untold if used.prompt_tokens is None else f"{used.prompt_tokens:,}",
        "Completion tokens": untold if used.completion_tokens is None else f"{used.completion_tokens:,}",
        "Cost, in the currency of the prices given": unknown if used.cost is None else f"{used.cost:,.2f}",
    }


def _chance(judge: Consistency) -> str:
    return NONE if judge.chance is None else f"{number(100 * judge.chance, 1)}%"
