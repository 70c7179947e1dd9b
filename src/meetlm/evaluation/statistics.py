"""Rates, means, differences and agreement of an evaluation, with intervals over prompts and training runs.

:mod:`meetlm.diagnostics.intervals` describes how intervals are computed. Exchanging the systems mirrors every figure. A
cell without a value or outcome (``None``) is left out, and a figure without any cell is ``None``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from meetlm.diagnostics.intervals import RESAMPLES, Array, Interval, bootstrap, mean_interval, prompt_means
from meetlm.evaluation.outcomes import POINTS, Outcome
from meetlm.evaluation.record import Agreement, Difference, Rates

CODES: dict[Outcome, int] = {"win": 0, "tie": 1, "lose": 2}


@dataclass(frozen=True, slots=True)
class Clusters:
    """The prompt and training run of each cell, and how they are resampled for intervals.

    Attributes:
        prompts: The prompt of each cell.
        runs: A number per cell for the training runs that wrote it; ``None`` if all are the same.
        seed: Seed of the resampling.
        resamples: Number of resamples.
    """

    prompts: Sequence[int]
    runs: Sequence[int] | None = None
    seed: int = 0
    resamples: int = RESAMPLES


def mean(
    values: Sequence[float | None] | Array, clusters: Clusters, *, bounds: tuple[float, float] | None = None
) -> Interval | None:
    """Return the mean over prompts of each prompt's mean value, with its 95% interval.

    Args:
        values: The value of each cell; cells with ``None`` or NaN are left out.
        clusters: The cells' prompts and training runs.
        bounds: Least and greatest possible value.
    """
    column = np.asarray(values, dtype=np.float64)
    is_counted = ~np.isnan(column)
    if not is_counted.any():
        return None
    return mean_interval(
        column[is_counted],
        np.asarray(clusters.prompts)[is_counted],
        runs=None if clusters.runs is None else np.asarray(clusters.runs)[is_counted].tolist(),
        bounds=bounds,
        seed=clusters.seed,
        resamples=clusters.resamples,
    )


def difference(
    values: Sequence[float | None] | Array,
    baseline: Sequence[float | None] | Array,
    clusters: Clusters,
    *,
    ratio: bool = False,
) -> Difference | None:
    """Return a system's values minus the baseline's, paired: over the cells where both have a value.

    Args:
        values: The system's values, one per cell.
        baseline: The baseline's values.
        clusters: The cells' prompts and training runs.
        ratio: Return the ratio of the means too; its interval is over prompts alone. Exchanging the systems gives the
            reciprocal, which a mean of ratios would not.
    """
    columns = np.array([values, baseline], dtype=np.float64)
    differences = columns[0] - columns[1]
    interval = mean(differences, clusters)
    if interval is None:
        return None
    is_counted = ~np.isnan(differences)
    table = np.column_stack([*columns, differences])[is_counted]
    by_prompt = prompt_means(table, np.asarray(clusters.prompts)[is_counted])
    quotient = None
    if ratio and by_prompt[:, 1].sum() > 0:
        quotient = bootstrap(by_prompt[:, :2], _ratio, seed=clusters.seed, resamples=clusters.resamples)
    return Difference(interval, _sign_test(by_prompt[:, 2]), quotient)


def rates(outcomes: Sequence[Outcome | None], clusters: Clusters) -> Rates | None:
    """Return win, lose and tie rates and Δ as in the paper's tables (section 4.3), with 95% intervals.

    Each is a mean over prompts of the share of a prompt's cells. The sign test is exact and two-sided: of the prompts
    whose wins and losses differ, half should be won.

    Args:
        outcomes: The outcome of each cell.
        clusters: The cells' prompts, and the training runs of both systems.
    """
    points = _points(outcomes)
    is_counted = ~np.isnan(points)
    win, lose, tie = (
        mean(np.where(is_counted, points == value, np.nan), clusters, bounds=(0, 1)) for value in (1, -1, 0)
    )
    delta = mean(points, clusters, bounds=(-1, 1))
    if win is None or lose is None or tie is None or delta is None:
        return None
    by_prompt = prompt_means(points[is_counted, None], np.asarray(clusters.prompts)[is_counted])[:, 0]
    return Rates(win, lose, tie, delta, _sign_test(by_prompt), len(by_prompt), int(is_counted.sum()))


def delta_by_replicate(
    outcomes: Sequence[Outcome | None], replicates: Sequence[int], clusters: Clusters
) -> dict[int, Interval]:
    """Return Δ of each replicate alone, with its interval over prompts; empty if there is a single replicate.

    Args:
        outcomes: The outcome of each cell.
        replicates: The number of each cell's replicate.
        clusters: The cells' prompts; their training runs are not used.
    """
    if len(set(replicates)) == 1:
        return {}
    points, numbers = _points(outcomes), np.asarray(replicates)
    over_prompts = replace(clusters, runs=None)
    return {
        number: delta
        for number in sorted(set(replicates))
        if (delta := mean(np.where(numbers == number, points, np.nan), over_prompts, bounds=(-1, 1)))
    }


def agreement(
    first: Sequence[Outcome | None],
    second: Sequence[Outcome | None],
    clusters: Clusters,
    *,
    system: str,
    evaluators: tuple[str, str],
) -> Agreement | None:
    """Return how far two evaluators agree on a system's outcomes: Cohen's κ over win, tie and lose (Cohen, 1960).

    Every prompt has the same weight. κ is not defined where both evaluators give one and the same outcome throughout;
    resamples in which it is not defined are left out of the interval.

    Args:
        first: The first evaluator's outcomes, one per cell.
        second: The second evaluator's outcomes; a cell counts where both have one.
        clusters: The cells' prompts; their training runs are not used.
        system: Name of the system.
        evaluators: Names of both.
    """
    cells = zip(clusters.prompts, first, second, strict=True)
    pairs = [(prompt, CODES[a], CODES[b]) for prompt, a, b in cells if a is not None and b is not None]
    if not pairs:
        return None
    one_hot = np.eye(len(CODES) ** 2)[[len(CODES) * a + b for _, a, b in pairs]]
    by_prompt = prompt_means(one_hot, [prompt for prompt, _, _ in pairs])
    is_defined = not np.isnan(_kappa(by_prompt.mean(axis=0)[None])[0])
    kappa = bootstrap(by_prompt, _kappa, seed=clusters.seed, resamples=clusters.resamples) if is_defined else None
    observed = round(float(by_prompt[:, :: len(CODES) + 1].sum(axis=1).mean()), 12)
    return Agreement(system, evaluators, kappa, observed, len(pairs))


def _points(outcomes: Sequence[Outcome | None]) -> Array:
    """Return what each outcome contributes to Δ; NaN if there is none."""
    return np.array([np.nan if outcome is None else POINTS[outcome] for outcome in outcomes], dtype=np.float64)


def _sign_test(differences: Array) -> float:
    """Return the two-sided p of the exact sign test over prompts; 1 if every prompt's difference is 0."""
    signs = np.sign(np.round(differences, 12))
    num_won, num_lost = int((signs > 0).sum()), int((signs < 0).sum())
    return float(stats.binomtest(num_won, num_won + num_lost).pvalue) if num_won + num_lost else 1.0


def _ratio(means: Array) -> Array:
    """Return the first column divided by the second [R]; NaN if that is 0."""
    values, baseline = means[:, 0], means[:, 1]
    quotient: Array = np.divide(values, baseline, out=np.full(len(means), np.nan), where=baseline > 0)
    return quotient


def _kappa(means: Array) -> Array:
    """Return Cohen's κ [R] of tables of shares [R, 9]; NaN if it is not defined."""
    table = means.reshape(-1, len(CODES), len(CODES))
    chance = (table.sum(axis=2) * table.sum(axis=1)).sum(axis=1)
    observed = np.trace(table, axis1=1, axis2=2)
    out = np.full(len(means), np.nan)
    kappa: Array = np.divide(observed - chance, 1 - chance, out=out, where=chance < 1 - 1e-9)
    return kappa
