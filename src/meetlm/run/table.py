"""The table of a sweep."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from meetlm.diagnostics.intervals import Interval
from meetlm.run.arm import ArmResult

COLUMNS = (
    "recipe",
    "seed",
    "steps",
    "train s",
    "pairs",
    "preference accuracy",
    "reward accuracy",
    "NLL of chosen",
    "tokens/reply",
    "cut off",
)
LEGEND = (
    "Preference accuracy: how often the log-prob margin good - bad is larger for the chosen reply; methods with one "
    "level have none. Reward accuracy: how often log p(reply), compared with the base model, has risen more for the "
    "chosen reply. Both on held-out pairs, with 95% intervals; 0.5 is chance. NLL of chosen: nats per token of the "
    "chosen replies at the best level, before -> after training. Tokens/reply and share of replies cut off at the "
    "maximum number of tokens: completions under the default level."
)


def rows(results: Sequence[ArmResult]) -> list[tuple[str, ...]]:
    """Return a row of text for each arm, and a row with mean and range for each recipe of several seeds."""
    table = []
    for recipe in dict.fromkeys(result.recipe for result in results):
        arms = [result for result in results if result.recipe == recipe]
        table += [_row(arm) for arm in arms]
        if len(arms) > 1:
            table.append(_mean_row(recipe, arms))
    return table


def markdown(results: Sequence[ArmResult], failures: Mapping[str, str]) -> str:
    """Return the table as Markdown, with the failures below it."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, ("---",) * len(COLUMNS), *rows(results))]
    for pairs, share in dict.fromkeys((result.after.pairs, str(result.after.shorter)) for result in results):
        lines += ["", f"Accuracy of always picking the shorter reply, on {pairs} held-out pairs: {share}."]
    lines += ["", LEGEND]
    lines += [f"\n**{name} failed**: {reason}" for name, reason in failures.items()]
    return "\n".join(lines) + "\n"


def _row(arm: ArmResult) -> tuple[str, ...]:
    return (
        arm.recipe,
        str(arm.seed),
        str(arm.steps),
        f"{arm.seconds:.0f}",
        str(arm.after.pairs),
        _text(arm.after.by_sum),
        _text(arm.after.reward),
        f"{arm.before.nll:.3f} -> {arm.after.nll:.3f}",
        "-" if arm.mean_tokens is None else f"{arm.mean_tokens:.1f}",
        "-" if arm.cut is None else f"{arm.cut:.0%}",
    )


def _mean_row(recipe: str, arms: Sequence[ArmResult]) -> tuple[str, ...]:
    return (
        recipe,
        f"mean of {len(arms)}",
        "",
        f"{statistics.mean(arm.seconds for arm in arms):.0f}",
        "",
        _spread([arm.after.by_sum.value for arm in arms if arm.after.by_sum]),
        _spread([arm.after.reward.value for arm in arms]),
        _spread([arm.after.nll for arm in arms]),
        _spread([arm.mean_tokens for arm in arms if arm.mean_tokens is not None], digits=1),
        "",
    )


def _spread(values: Sequence[float], digits: int = 3) -> str:
    if not values:
        return "-"
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return f"{statistics.mean(values):.{digits}f} ({low} to {high})"


def _text(interval: Interval | None) -> str:
    return "-" if interval is None else str(interval)
