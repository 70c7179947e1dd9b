"""Rates, means, differences and agreement of an evaluation, with intervals over prompts and training runs.

:mod:`meetlm.diagnostics.intervals` says how intervals are made. Exchanging the systems mirrors every figure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from meetlm.diagnostics.intervals import RESAMPLES, Interval, bootstrap, mean_interval, prompt_means
from meetlm.evaluation.outcomes import Outcome
from meetlm.evaluation.record import Agreement, Difference, Rates, SeedDelta

CODES: dict[Outcome, int] = {"win": 0, "tie": 1, "lose": 2}


def mean(
    values: Sequence[float | None],
    prompts: Sequence[int],
    *,
    runs: Sequence[int] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """Return the mean over prompts of each prompt's mean value, with its 95% interval.

    Args:
        values: One per cell, finite; cells with ``None`` are left out.
        prompts: The prompt of each cell.
        runs: The training run of each cell; ``None`` where all are of one run.
        seed: Seed of the resampling.
        resamples: Number of resamples.

    Returns:
        ``None`` where no cell has a value.
    """
    places = [place for place, value in enumerate(values) if value is not None]
    if not places:
        return None
    return mean_interval(
        np.array([values[place] for place in places], dtype=np.float64),
        [prompts[place] for place in places],
        runs=None if runs is None else [runs[place] for place in places],
        seed=seed,
        resamples=resamples,
    )


def difference(
    values: Sequence[float | None],
    baseline: Sequence[float | None],
    prompts: Sequence[int],
    *,
    runs: Sequence[int] | None = None,
    ratio: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference | None:
    """Return a system's values minus the baseline's, paired: over the cells where both have a value.

    Args:
        values: The system's values, one per cell.
        baseline: The baseline's values.
        prompts: The prompt of each cell.
        runs: As in :func:`mean`.
        ratio: Return the ratio of the means too; its interval is over prompts alone. Exchanging the systems gives the
            reciprocal, which a mean of ratios would not.
        seed: Seed of the resampling.
        resamples: Number of resamples.

    Returns:
        ``None`` where no cell has both values.
    """
    pairs = list(zip(values, baseline, strict=True))
    differences = [None if a is None or b is None else a - b for a, b in pairs]
    interval = mean(differences, prompts, runs=runs, seed=seed, resamples=resamples)
    if interval is None:
        return None
    places = [place for place, value in enumerate(differences) if value is not None]
    columns = np.array([(*pairs[place], differences[place]) for place in places], dtype=np.float64)
    by_prompt = prompt_means(columns, [prompts[place] for place in places])
    quotient = None
    if ratio and by_prompt[:, 1].sum() > 0:
        quotient = bootstrap(by_prompt[:, :2], _ratio, seed=seed, resamples=resamples)
    return Difference(interval, _sign_test(by_prompt[:, 2]), quotient)


def rates(
    outcomes: Sequence[Outcome | None],
    prompts: Sequence[int],
    *,
    runs: Sequence[int] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Rates | None:
    """Return win, lose and tie rates and Δ as in the paper's tables (section 4.3), with 95% intervals.

    Each is a mean over prompts of the share of a prompt's cells. The sign test is exact and two-sided: of the prompts
    whose wins and losses differ, half should be won.

    Args:
        outcomes: One per cell; ``None`` is left out and counted.
        prompts: The prompt of each cell.
        runs: A number per cell for the training runs of both systems; ``None`` where all are the same.
        seed: Seed of the resampling.
        resamples: Number of resamples.

    Returns:
        ``None`` where no cell has an outcome.
    """
    places = [place for place, outcome in enumerate(outcomes) if outcome is not None]
    if not places:
        return None
    counted = np.array([outcomes[place] for place in places])
    of_cells = [prompts[place] for place in places]
    run_of_cells = None if runs is None else [runs[place] for place in places]
    delta = (counted == "win").astype(np.float64) - (counted == "lose")

    def interval(values: NDArray[np.float64], least: float = 0.0) -> Interval:
        bounds = (least, 1.0)
        return mean_interval(values, of_cells, runs=run_of_cells, bounds=bounds, seed=seed, resamples=resamples)

    by_prompt = prompt_means(delta[:, None], of_cells)[:, 0]
    return Rates(
        win=interval((counted == "win").astype(np.float64)),
        lose=interval((counted == "lose").astype(np.float64)),
        tie=interval((counted == "tie").astype(np.float64)),
        delta=interval(delta, -1.0),
        sign_p=_sign_test(by_prompt),
        num_prompts=len(by_prompt),
        num_cells=len(places),
        num_left_out=len(outcomes) - len(places),
    )


def by_seed(
    outcomes: Sequence[Outcome | None],
    prompts: Sequence[int],
    seeds: Sequence[int],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[SeedDelta]:
    """Return Δ of each replicate alone, with its interval over prompts; nothing where there is one replicate."""
    replicates = sorted(set(seeds))
    if len(replicates) < 2:
        return []
    deltas = []
    for replicate in replicates:
        places = [place for place, number in enumerate(seeds) if number == replicate]
        result = rates(
            [outcomes[place] for place in places],
            [prompts[place] for place in places],
            seed=seed,
            resamples=resamples,
        )
        deltas += [SeedDelta(replicate, result.delta, result.num_prompts)] if result else []
    return deltas


def agreement(
    first: Sequence[Outcome | None],
    second: Sequence[Outcome | None],
    prompts: Sequence[int],
    *,
    system: str,
    evaluators: tuple[str, str],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Agreement | None:
    """Return how far two evaluators agree on a system's outcomes: Cohen's κ over win, tie and lose (Cohen, 1960).

    Every prompt has the same weight. κ is not defined where both evaluators give one and the same outcome throughout;
    resamples in which it is not defined are left out of the interval.

    Args:
        first: The first evaluator's outcomes, one per cell.
        second: The second evaluator's outcomes; a cell counts where both have one.
        prompts: The prompt of each cell.
        system: Name of the system.
        evaluators: Names of both.
        seed: Seed of the resampling.
        resamples: Number of resamples.

    Returns:
        ``None`` where no cell has both outcomes.
    """
    cells = zip(prompts, first, second, strict=True)
    pairs = [(prompt, CODES[a], CODES[b]) for prompt, a, b in cells if a is not None and b is not None]
    if not pairs:
        return None
    one_hot = np.eye(len(CODES) ** 2)[[len(CODES) * a + b for _, a, b in pairs]]
    by_prompt = prompt_means(one_hot, [prompt for prompt, _, _ in pairs])
    is_defined = not np.isnan(_kappa(by_prompt.mean(axis=0)[None])[0])
    return Agreement(
        system=system,
        evaluators=evaluators,
        kappa=bootstrap(by_prompt, _kappa, seed=seed, resamples=resamples) if is_defined else None,
        observed=round(float(by_prompt[:, :: len(CODES) + 1].sum(axis=1).mean()), 12),
        num_cells=len(pairs),
    )


def _sign_test(differences: NDArray[np.float64]) -> float:
    """Two-sided p of the exact sign test over prompts; 1 where every prompt is even."""
    signs = np.sign(np.round(differences, 12))
    won, lost = int((signs > 0).sum()), int((signs < 0).sum())
    return float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def _ratio(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the first column divided by the second [R]; NaN where that is 0."""
    values, baseline = means[:, 0], means[:, 1]
    quotient = np.full(len(means), np.nan)
    np.divide(values, baseline, out=quotient, where=baseline > 0)
    return quotient


def _kappa(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Cohen's κ [R] of tables of shares [R, 9]; NaN where it is not defined."""
    table = means.reshape(-1, len(CODES), len(CODES))
    chance = (table.sum(axis=2) * table.sum(axis=1)).sum(axis=1)
    observed = np.trace(table, axis1=1, axis2=2)
    kappa = np.full(len(means), np.nan)
    np.divide(observed - chance, 1 - chance, out=kappa, where=chance < 1 - 1e-9)
    return kappa
