"""The table that a sweep ends with."""

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
    "nats/token chosen",
    "tokens/reply",
    "cut off",
)
LEGEND = (
    "Preference accuracy: how often the log-prob margin good - bad is larger for the chosen reply; methods with one "
    "level have none. Reward accuracy: how often log p(reply) has risen more for the chosen reply, against the "
    "untouched model. Both on held-out pairs, 0.5 is chance, with 95% bootstrap intervals. Nats a token of the chosen "
    "replies at the best level. Tokens a reply, and share of replies cut off: of completions under the default level."
)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines of text, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def rows(results: Sequence[ArmResult]) -> list[tuple[str, ...]]:
    """Return a row of text for each arm, and for recipes of several seeds one with their mean and range."""
    made = []
    for recipe in dict.fromkeys(one.recipe for one in results):
        arms = [one for one in results if one.recipe == recipe]
        made += [_row(one) for one in arms]
        if len(arms) > 1:
            made.append(_mean(recipe, arms))
    return made


def markdown(results: Sequence[ArmResult], failed: Mapping[str, str]) -> str:
    """Return the table as Markdown, with what failed below it."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, ("---",) * len(COLUMNS), *rows(results))]
    for pairs, shorter in dict.fromkeys((one.after.pairs, str(one.after.shorter)) for one in results):
        lines += ["", f"Of {pairs} held-out pairs always taking the shorter reply is right in {shorter}."]
    lines += ["", LEGEND]
    lines += [f"\n**{name} failed**: {said}" for name, said in failed.items()]
    return "\n".join(lines) + "\n"


def _row(one: ArmResult) -> tuple[str, ...]:
    return (
        one.recipe,
        str(one.seed),
        str(one.steps),
        f"{one.seconds:.0f}",
        str(one.after.pairs),
        _text(one.after.by_sum),
        _text(one.after.reward),
        f"{one.before.nll:.3f} -> {one.after.nll:.3f}",
        "-" if one.mean_tokens is None else f"{one.mean_tokens:.1f}",
        "-" if one.cut is None else f"{one.cut:.0%}",
    )


def _mean(recipe: str, arms: Sequence[ArmResult]) -> tuple[str, ...]:
    accuracies = [one.after.by_sum.value for one in arms if one.after.by_sum]
    lengths = [one.mean_tokens for one in arms if one.mean_tokens is not None]
    return (
        recipe,
        f"mean of {len(arms)}",
        "",
        f"{statistics.mean(one.seconds for one in arms):.0f}",
        "",
        _spread(accuracies),
        _spread([one.after.reward.value for one in arms]),
        _spread([one.after.nll for one in arms]),
        _spread(lengths, digits=1),
        "",
    )


def _spread(values: Sequence[float], digits: int = 3) -> str:
    if not values:
        return "-"
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return f"{statistics.mean(values):.{digits}f} ({low} to {high})"


def _text(rate: Interval | None) -> str:
    return "-" if rate is None else str(rate)
