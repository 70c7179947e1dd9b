"""Rates, means and agreement with their intervals: what is drawn is a prompt, with all of its seeds and both systems.

The cells of one prompt are averaged before anything else, so each prompt weighs the same, and a resample takes a prompt
with everything in it. That is what makes a comparison paired (both systems answered the same prompts) and several seeds
of a prompt count as one prompt seen more closely, not as more prompts (Miller, 2024, arXiv:2411.00640).

Intervals of 95% are *expanded percentile* bootstraps (Hesterberg, 2015, arXiv:1411.5279): order statistics
of the resampled figure, so far out that a normal mean would get Student's t interval. The choice is by coverage, in
4,000 simulations each of Δ, a win rate of 10% and normal and skewed means over 20 to 128 prompts: it had 94.5 to 96.5%,
the plain percentile 92.9 to 94.9%, BCa 93.1 to 96.8% (tests/test_statistics.py holds it within 95 ± 2). A share of 0 or
1 has an interval of no width: no bootstrap sees what never occurred.

Swapping the systems mirrors every figure to the last bit: the draws depend on the number of prompts and the seed
alone, sums are of whole numbers, and the ends are order statistics at equal ranks from both sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from meetlm.evaluation.record import Agreement, Interval, Outcome, Rates

CODES: dict[Outcome, int] = {"win": 0, "tie": 1, "lose": 2}
_CHUNK = 2_000_000  # numbers of a block of resamples: 16 MB


def mean(
    values: Sequence[float | None], prompts: Sequence[int], *, seed: int = 0, resamples: int = 2000
) -> Interval | None:
    """Return the mean over prompts of the mean over a prompt's cells, with its 95% interval.

    Args:
        values: One a cell, finite; a cell with ``None`` is left out, and a prompt without any value too.
        prompts: The prompt of each cell.
        seed: Of the resampling.
        resamples: Drawn for the interval.

    Returns:
        ``None`` where no cell has a value.
    """
    kept = [(prompt, value) for prompt, value in zip(prompts, values, strict=True) if value is not None]
    if not kept:
        return None
    place, sizes = _groups([prompt for prompt, _ in kept])
    found = np.array([value for _, value in kept], dtype=np.float64)
    assert np.isfinite(found).all(), "what is not finite is None by now"
    by_prompt = np.bincount(place, weights=found) / sizes
    value = float(by_prompt.mean())
    if np.ptp(by_prompt) == 0:
        return Interval(value, value, value)
    low, high = ends(_sums(by_prompt[:, None], seed, resamples)[:, 0] / len(sizes), len(sizes))
    return Interval(value, low, high)


def rates(
    outcomes: Sequence[Outcome | None], prompts: Sequence[int], *, seed: int = 0, resamples: int = 2000
) -> Rates | None:
    """Return win, lose and tie rates and Δ as the paper's tables have them (section 4.3), with 95% intervals.

    Each is a mean over prompts of the share of a prompt's cells, which is the share of cells where all prompts have as
    many. The sign test is exact and two-sided: of the prompts whose wins and losses differ, half should be won.

    Args:
        outcomes: One a cell; ``None`` is left out and counted.
        prompts: The prompt of each cell.
        seed: Of the resampling.
        resamples: Drawn for the intervals.

    Returns:
        ``None`` where no cell has an outcome.
    """
    kept = [(prompt, CODES[one]) for prompt, one in zip(prompts, outcomes, strict=True) if one is not None]
    if not kept:
        return None
    place, sizes = _groups([prompt for prompt, _ in kept])
    table, whole = _table(np.array([code for _, code in kept]), place, sizes, len(CODES))
    table = np.column_stack([table, table[:, CODES["win"]] - table[:, CODES["lose"]]])
    sums = _sums(table, seed, resamples)

    def interval(column: int) -> Interval:
        low, high = ends(sums[:, column] / whole, len(sizes))
        return Interval(float(table[:, column].sum() / whole), low, high)

    won, lost = int((table[:, -1] > 0).sum()), int((table[:, -1] < 0).sum())
    return Rates(
        win=interval(CODES["win"]),
        lose=interval(CODES["lose"]),
        tie=interval(CODES["tie"]),
        delta=interval(len(CODES)),
        # The lesser count, so that both directions are one computation; with no prompt decided there is no evidence.
        sign_p=float(stats.binomtest(min(won, lost), won + lost).pvalue) if won + lost else 1.0,
        num_prompts=len(sizes),
        num_cells=len(kept),
        num_left_out=len(outcomes) - len(kept),
    )


def agreement(
    one: Sequence[Outcome | None],
    other: Sequence[Outcome | None],
    prompts: Sequence[int],
    *,
    system: str,
    evaluators: tuple[str, str],
    seed: int = 0,
    resamples: int = 2000,
) -> Agreement | None:
    """Return how far two evaluators agree on a system's outcomes: Cohen's κ over win, tie and lose (Cohen, 1960).

    Each prompt weighs the same, as in :func:`rates`. κ is not defined where both give one and the same outcome
    throughout; a resample in which it is not is left out of the interval.

    Args:
        one: The first evaluator's outcomes, one a cell.
        other: The second's; a cell counts where both have one.
        prompts: The prompt of each cell.
        system: Whose outcomes they are.
        evaluators: Names of both.
        seed: Of the resampling.
        resamples: Drawn for the interval.

    Returns:
        ``None`` where no cell has both outcomes.
    """
    cells = zip(prompts, one, other, strict=True)
    kept = [(prompt, len(CODES) * CODES[a] + CODES[b]) for prompt, a, b in cells if a is not None and b is not None]
    if not kept:
        return None
    place, sizes = _groups([prompt for prompt, _ in kept])
    table, whole = _table(np.array([code for _, code in kept]), place, sizes, len(CODES) ** 2)
    value = _kappa(table.sum(axis=0)[None], whole)[0]
    drawn = _kappa(_sums(table, seed, resamples), whole)
    return Agreement(
        system=system,
        evaluators=evaluators,
        kappa=None if np.isnan(value) else Interval(float(value), *ends(drawn[~np.isnan(drawn)], len(sizes))),
        observed=float(table[:, :: len(CODES) + 1].sum() / whole),
        num_cells=len(kept),
    )


def ends(drawn: NDArray[np.float64], num_prompts: int) -> tuple[float, float]:
    """Return the ends of the expanded 95% percentile interval of a resampled figure.

    Args:
        drawn: The figure [R] in each resample.
        num_prompts: How many prompts were drawn from; of one nothing can be said, and both ends are its figure.
    """
    ordered = np.sort(drawn)
    tail = 0.0
    if num_prompts > 1:
        t = special.stdtrit(num_prompts - 1, 0.975)
        tail = float(special.ndtr(-math.sqrt(num_prompts / (num_prompts - 1)) * t))
    rank = max(math.floor((len(ordered) + 1) * tail) - 1, 0)
    return float(ordered[rank]), float(ordered[-1 - rank])


@lru_cache(maxsize=4)
def draws(num_prompts: int, seed: int, resamples: int) -> NDArray[np.uint16]:
    """Return how often each prompt is drawn, [R, P] (read-only): ``num_prompts`` a resample, with replacement."""
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, num_prompts), dtype=np.uint16)
    for at, rows in _blocks(resamples, num_prompts):
        drawn = rng.integers(num_prompts, size=(rows, num_prompts)) + np.arange(rows)[:, None] * num_prompts
        block = np.bincount(drawn.ravel(), minlength=rows * num_prompts)
        counts[at : at + rows] = block.reshape(rows, num_prompts)
    counts.setflags(write=False)
    return counts


def _sums(table: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    """Sums [R, K] of the rows of ``table`` [P, K] that each resample drew."""
    counts = draws(len(table), seed, resamples)
    blocks = _blocks(resamples, len(table))
    return np.concatenate([counts[at : at + rows].astype(np.float64) @ table for at, rows in blocks])


def _blocks(resamples: int, width: int) -> list[tuple[int, int]]:
    """First row and number of rows of each block of resamples that fits in memory."""
    step = max(_CHUNK // width, 1)
    return [(at, min(step, resamples - at)) for at in range(0, resamples, step)]


def _groups(prompts: Sequence[int]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """For each cell [C] its prompt's place, and for each prompt [P] its number of cells."""
    _, place, sizes = np.unique(np.asarray(prompts), return_inverse=True, return_counts=True)
    return place, sizes


def _table(
    codes: NDArray[np.intp], place: NDArray[np.intp], sizes: NDArray[np.intp], width: int
) -> tuple[NDArray[np.float64], int]:
    """Shares [P, width] of each prompt's cells by code, and what all of them sum to.

    They are in units that make all of them whole numbers, whose sums are exact in any order.
    """
    unit = math.lcm(*np.unique(sizes).tolist())
    table = np.zeros((len(sizes), width))
    np.add.at(table, (place, codes), unit // sizes[place])
    return table, unit * len(sizes)


def _kappa(sums: NDArray[np.float64], whole: int) -> NDArray[np.float64]:
    """Cohen's κ [R] of tables [R, 9] that sum to ``whole``; NaN where it is not defined."""
    square = sums.reshape(-1, 3, 3)
    margins = square.sum(axis=2) * square.sum(axis=1)
    # Win and lose first, in all sums: swapping them must not change the last bit.
    chance = (margins[:, 0] + margins[:, 2]) + margins[:, 1]
    same = whole * ((square[:, 0, 0] + square[:, 2, 2]) + square[:, 1, 1])
    left = float(whole) ** 2 - chance
    kappa: NDArray[np.float64] = np.divide(same - chance, left, out=np.full(len(sums), np.nan), where=left != 0)
    return kappa
