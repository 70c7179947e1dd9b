"""Estimates with 95% intervals by one method, the cluster bootstrap over prompts.

The values of a prompt are averaged first, so that every prompt has the same weight, and a resample draws prompts with
replacement, each with all its values. Several seeds of a prompt therefore count as one prompt that is known more
precisely, not as more prompts, and two systems that answered the same prompts are compared in pairs (Miller, 2024,
arXiv:2411.00640).

Intervals are *expanded percentile* intervals (Hesterberg, 2015, arXiv:1411.5279): quantiles of the resampled statistic,
placed so far out that a normally distributed mean would have Student's t interval. Where every prompt has the same
share, such as 0 or 1, no resample differs, and the interval is Clopper and Pearson's (1934).

Several training runs are a second random factor, crossed with the prompts (:func:`mean_interval`).
``bench/interval_coverage.py`` measures how often the intervals cover the true value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Labels = Sequence[Any] | NDArray[Any]
Statistic = Callable[[Array], Array]
"""Takes means of columns [R, M], one row per resample, and returns the statistic [R]; NaN if it is not defined."""

RESAMPLES = 2000
_DECIMALS = 12
"""Results are rounded to these, so that sums of thirds in another order are the same number."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95% interval.

    Attributes:
        value: The estimate.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(
    values: Sequence[float] | Array,
    prompts: Labels,
    *,
    runs: Sequence[int] | None = None,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return the mean over prompts of each prompt's mean value.

    With several training runs, a value is taken as a run's part, plus a prompt's part, plus the rest, as where subjects
    and stimuli are both random (Westfall, Kenny and Judd, 2014, Journal of Experimental Psychology: General 143(5)).
    Student's limits t·s/√K of the runs' means estimate what runs and the rest contribute; the share of the variance
    between prompts that is not due to the rest (1 − 1/F of the two-way analysis of variance) is the prompts' own part.
    Squares of both distances from the mean are added (Howe, 1974, JASA 69). The interval is never narrower than the one
    over prompts alone. Resampling runs would not do: one in nine resamples of three runs would be one run thrice.

    Args:
        values: Finite numbers [N], at least one.
        prompts: The prompt of each value [N], any hashable name.
        runs: The training run of each value [N]; ``None`` if all are of one run.
        bounds: Least and greatest possible value, for shares: the interval stays inside, and has a width where all
            prompts have the same value.
        seed: Seed of the resampling.
        resamples: Number of resamples.
    """
    columns = np.asarray(values, dtype=np.float64)[:, None]
    by_prompt = prompt_means(columns, prompts)
    interval = bootstrap(by_prompt, lambda means: means[:, 0], seed=seed, resamples=resamples)
    if runs is not None and len(set(runs)) > 1:
        interval = _widened(interval, columns, prompts, runs)
    if bounds is None:
        return interval
    value, (lowest, highest) = interval.value, bounds
    if np.ptp(by_prompt) == 0 and interval.low == interval.high:
        unseen = stats.binomtest(0, len(by_prompt)).proportion_ci(method="exact").high
        return Interval(value, value - unseen * (value - lowest), value + unseen * (highest - value))
    return Interval(value, max(interval.low, lowest), min(interval.high, highest))


def share_interval(outcomes: Sequence[float] | Array, prompts: Labels | None = None) -> Interval:
    """Return the mean of outcomes in [0, 1] with its interval over prompts; by default each is of another prompt."""
    return mean_interval(outcomes, range(len(outcomes)) if prompts is None else prompts, bounds=(0, 1))


def wins(left: Array, right: Array) -> Array:
    """Return 1 where left is greater, ½ where equal, else 0."""
    outcomes: Array = (left > right) + 0.5 * (left == right)
    return outcomes


def bootstrap(by_prompt: Array, statistic: Statistic, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Return a statistic of the prompts' mean values, with its interval over prompts.

    Args:
        by_prompt: One row per prompt [P, M]. Rows that are equal are drawn together, so large tables of few distinct
            rows cost little.
        statistic: Of the columns' means; see :data:`Statistic`. Resamples in which it is not defined are left out.
        seed: Seed of the resampling: the same number of prompts gives the same resamples.
        resamples: Number of resamples.
    """
    _, first_index, counts = np.unique(by_prompt, axis=0, return_index=True, return_counts=True)
    order = np.argsort(first_index)  # by first occurrence: two systems swapped give the same resamples
    rows, counts = by_prompt[first_index[order]], counts[order]
    drawn = statistic(draws(tuple(counts.tolist()), seed, resamples) @ rows / len(by_prompt))
    value = statistic((counts @ rows)[None] / len(by_prompt))[0]
    return Interval(round(float(value), _DECIMALS), *percentile_ends(drawn[~np.isnan(drawn)], len(by_prompt)))


def percentile_ends(drawn: Array, num_prompts: int) -> tuple[float, float]:
    """Return the ends of the expanded 95% percentile interval of a resampled statistic.

    Args:
        drawn: The statistic in each resample [R].
        num_prompts: Number of prompts that were drawn from; a single one gives an interval of no width.
    """
    ordered = np.sort(drawn)
    tail = 0.0
    if num_prompts > 1:
        t = stats.t.ppf(0.975, num_prompts - 1)
        tail = float(stats.norm.cdf(-math.sqrt(num_prompts / (num_prompts - 1)) * t))
    rank = max(math.floor((len(ordered) + 1) * tail) - 1, 0)
    return round(float(ordered[rank]), _DECIMALS), round(float(ordered[-1 - rank]), _DECIMALS)


@lru_cache(maxsize=4)
def draws(counts: tuple[int, ...], seed: int, resamples: int) -> NDArray[np.float32]:
    """Return how often each distinct row is drawn in each resample, [R, D] (read-only).

    Args:
        counts: How many prompts of each kind there are [D].
        seed: Seed of the random numbers.
        resamples: R.
    """
    total = sum(counts)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(total, np.array(counts) / total, size=resamples).astype(np.float32)
    drawn.setflags(write=False)
    return drawn


def prompt_means(columns: Array, prompts: Labels) -> Array:
    """Return the mean of each prompt's rows [P, M], given rows [N, M]; prompts are sorted by name."""
    _, prompt_index, sizes = np.unique(np.asarray(prompts), return_inverse=True, return_counts=True)
    means = [np.bincount(prompt_index, weights=column) / sizes for column in columns.T]
    return np.column_stack(means)


def _widened(interval: Interval, columns: Array, prompts: Labels, runs: Sequence[int]) -> Interval:
    """Return an interval over prompts widened by the variation between training runs."""
    run_of, prompt_of = np.asarray(runs), np.asarray(prompts)
    names = np.unique(run_of)
    by_run = [prompt_means(columns[run_of == run], prompt_of[run_of == run]).mean() for run in names]
    spread = float(np.var(by_run, ddof=1))
    limit = float(stats.t.ppf(0.975, len(names) - 1)) ** 2 * spread / len(names)
    prompt_share = _share_of_prompts(columns, prompt_of, run_of)
    low = interval.value - math.sqrt(limit + prompt_share * (interval.value - interval.low) ** 2)
    high = interval.value + math.sqrt(limit + prompt_share * (interval.high - interval.value) ** 2)
    return Interval(
        interval.value, min(interval.low, round(low, _DECIMALS)), max(interval.high, round(high, _DECIMALS))
    )


def _share_of_prompts(columns: Array, prompts: NDArray[Any], runs: NDArray[Any]) -> float:
    """Return the share of the variance between prompts that is not noise, over the prompts with values in all runs."""
    names, prompt_index = np.unique(prompts, return_inverse=True)
    run_names, run_index = np.unique(runs, return_inverse=True)
    sums, sizes = np.zeros((2, len(names), len(run_names)))
    np.add.at(sums, (prompt_index, run_index), columns[:, 0])
    np.add.at(sizes, (prompt_index, run_index), 1)
    complete = (sizes > 0).all(axis=1)
    table = sums[complete] / sizes[complete]
    num_prompts, num_runs = table.shape
    if num_prompts < 2:
        return 1.0
    residual = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    residual_variance = float((residual**2).sum()) / ((num_prompts - 1) * (num_runs - 1))
    variance = num_runs * float(table.mean(axis=1).var(ddof=1))
    return max(1 - residual_variance / variance, 0.0) if variance > 10**-_DECIMALS else 0.0
