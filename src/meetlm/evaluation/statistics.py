"""Rates, means and agreement with their intervals: prompts are drawn, and training runs where there are several.

The cells of one prompt are averaged before anything else, so each prompt weighs the same, and a resample takes a prompt
with everything in it. That is what makes a comparison paired (both systems answered the same prompts) and several seeds
of a prompt count as one prompt seen more closely, not as more prompts (Miller, 2024, arXiv:2411.00640). Several
training runs are a second random factor, crossed with the prompts: intervals of rates, means and differences hold
their chance too (:func:`_crossed`). κ and the length-controlled rate have intervals over prompts alone.

Intervals of 95% are *expanded percentile* bootstraps (Hesterberg, 2015, arXiv:1411.5279): order statistics
of the resampled figure, so far out that a normal mean would get Student's t interval. tests/test_statistics.py holds
the coverage of Δ, win, lose and tie rates, means, ratios of mean lengths and κ within 95 ± 2 with one training run,
tests/test_training_runs.py that of Δ and means over three runs and more within 94 to 99. No bootstrap sees what never
occurred: where all prompts have the same share, such as 0 or 1, the interval is Clopper and Pearson's (1934).

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

from meetlm.evaluation.record import Agreement, Difference, Interval, OfSeed, Outcome, Rates

CODES: dict[Outcome, int] = {"win": 0, "tie": 1, "lose": 2}
_ROUNDING = 1e-20
_CHUNK = 2_000_000  # numbers of a block of resamples: 16 MB


def mean(
    values: Sequence[float | None],
    prompts: Sequence[int],
    *,
    runs: Sequence[int] | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval | None:
    """Return the mean over prompts of the mean over a prompt's cells, with its 95% interval.

    Args:
        values: One a cell, finite; a cell with ``None`` is left out, and a prompt without any value too.
        prompts: The prompt of each cell.
        runs: The training run of each cell; all of one where ``None``.
        seed: Of the resampling.
        resamples: Drawn for the interval.

    Returns:
        ``None`` where no cell has a value.
    """
    cells = zip(prompts, values, runs or [0] * len(values), strict=True)
    kept = [(prompt, value, run) for prompt, value, run in cells if value is not None]
    if not kept:
        return None
    place, sizes = _groups([prompt for prompt, _, _ in kept])
    found = np.array([value for _, value, _ in kept], dtype=np.float64)
    assert np.isfinite(found).all(), "what is not finite is None by now"
    by_prompt = np.bincount(place, weights=found) / sizes
    value = float(by_prompt.mean())
    drawn = _sums(by_prompt[:, None], seed, resamples)[:, 0] / len(sizes)
    if np.ptp(by_prompt) == 0:
        drawn = np.full(resamples, value)
    each = _by_run(found[:, None], place, [run for _, _, run in kept], seed, resamples)
    return Interval(value, *_crossed(value, drawn, len(sizes), *(figures[..., 0] for figures in each)))


def difference(
    ours: Sequence[float | None],
    theirs: Sequence[float | None],
    prompts: Sequence[int],
    *,
    runs: Sequence[int] | None = None,
    ratio: bool = False,
    seed: int = 0,
    resamples: int = 2000,
) -> Difference | None:
    """Return a measure minus the baseline's, paired: over the cells where both have a value.

    Args:
        ours: The system's values, one a cell.
        theirs: The baseline's.
        prompts: The prompt of each cell.
        runs: As in :func:`mean`.
        ratio: Whether to return the ratio of the means too, whose interval is over prompts alone. Swapping the systems
            gives its reciprocal, which a mean of ratios would not; an empty reply counts in it.
        seed: Of the resampling.
        resamples: Drawn for the interval.

    Returns:
        ``None`` where no cell has both values.
    """
    pairs = [(a, b) if a is not None and b is not None else None for a, b in zip(ours, theirs, strict=True)]
    apart = [None if pair is None else pair[0] - pair[1] for pair in pairs]
    found = mean(apart, prompts, runs=runs, seed=seed, resamples=resamples)
    if found is None:
        return None
    kept = [(prompt, *pair) for prompt, pair in zip(prompts, pairs, strict=True) if pair is not None]
    place, sizes = _groups([prompt for prompt, _, _ in kept])
    sides = np.array([pair for _, *pair in kept], dtype=np.float64)
    by_prompt = np.column_stack([np.bincount(place, weights=column) / sizes for column in sides.T])
    # Of the differences, not of the means: what is equal cell by cell must not differ by rounding.
    apart_by_prompt = np.bincount(place, weights=sides[:, 0] - sides[:, 1]).astype(np.float64)
    told = None
    if ratio and by_prompt[:, 1].sum() > 0:
        drawn = _sums(by_prompt, seed, resamples)
        drawn = drawn[drawn[:, 1] > 0]
        value = float(by_prompt[:, 0].sum() / by_prompt[:, 1].sum())
        told = Interval(value, *ends(drawn[:, 0] / drawn[:, 1], len(sizes)))
    return Difference(found, _sign_p(apart_by_prompt), told)


def rates(
    outcomes: Sequence[Outcome | None],
    prompts: Sequence[int],
    *,
    runs: Sequence[int] | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> Rates | None:
    """Return win, lose and tie rates and Δ as the paper's tables have them (section 4.3), with 95% intervals.

    Each is a mean over prompts of the share of a prompt's cells, which is the share of cells where all prompts have as
    many. The sign test is exact and two-sided: of the prompts whose wins and losses differ, half should be won.

    Args:
        outcomes: One a cell; ``None`` is left out and counted.
        prompts: The prompt of each cell.
        runs: The training runs of each cell, a number for those of both systems; all of one where ``None``.
        seed: Of the resampling.
        resamples: Drawn for the intervals.

    Returns:
        ``None`` where no cell has an outcome.
    """
    cells = zip(prompts, outcomes, runs or [0] * len(outcomes), strict=True)
    kept = [(prompt, CODES[one], run) for prompt, one, run in cells if one is not None]
    if not kept:
        return None
    place, sizes = _groups([prompt for prompt, _, _ in kept])
    codes = np.array([code for _, code, _ in kept])
    table, whole = _table(codes, place, sizes, len(CODES))
    table = np.column_stack([table, table[:, CODES["win"]] - table[:, CODES["lose"]]])
    signs = np.eye(len(CODES))[codes]
    signs = np.column_stack([signs, signs[:, CODES["win"]] - signs[:, CODES["lose"]]])
    each = _by_run(signs, place, [run for _, _, run in kept], seed, resamples)
    drawn = _sums(table, seed, resamples) / whole

    def interval(column: int, least: float = 0.0) -> Interval:
        value = float(table[:, column].sum() / whole)
        low, high = _crossed(value, drawn[:, column], len(sizes), *(figures[..., column] for figures in each))
        if np.ptp(table[:, column]) == 0 and low == high:
            return _constant(value, least, len(sizes))
        return Interval(value, max(low, least), min(high, 1.0))

    return Rates(
        win=interval(CODES["win"]),
        lose=interval(CODES["lose"]),
        tie=interval(CODES["tie"]),
        delta=interval(len(CODES), -1.0),
        sign_p=_sign_p(table[:, -1]),
        num_prompts=len(sizes),
        num_cells=len(kept),
        num_left_out=len(outcomes) - len(kept),
    )


def by_seed(
    outcomes: Sequence[Outcome | None],
    prompts: Sequence[int],
    seeds: Sequence[int],
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> list[OfSeed]:
    """Return Δ of each replicate alone, with its interval over prompts; nothing where there is one."""
    numbers = sorted(set(seeds))
    found = []
    for number in numbers if len(numbers) > 1 else []:
        places = [place for place, one in enumerate(seeds) if one == number]
        own = [outcomes[place] for place in places]
        of_seed = rates(own, [prompts[place] for place in places], seed=seed, resamples=resamples)
        found += [OfSeed(number, of_seed.delta, of_seed.num_prompts)] if of_seed else []
    return found


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


def _crossed(
    value: float, drawn: NDArray[np.float64], num_prompts: int, each: NDArray[np.float64], own: NDArray[np.float64]
) -> tuple[float, float]:
    """Return the ends of a figure's 95% interval over prompts and, where there are several, training runs.

    A cell is taken as the sum of a run's part, a prompt's part and the rest, as where subjects and stimuli are both
    random (Westfall, Kenny and Judd, 2014, Journal of Experimental Psychology: General 143(5)). The variance of the
    runs' figures over their number, s² / K, estimates what runs and the rest make of the mean, with K - 1 degrees of
    freedom; what is left of the variance over prompts is the prompts' own. Each of the two has its limits, Student's
    t·s / √K and the bootstrap's, and the squares of their distances from the figure are added (Howe, 1974, JASA 69;
    Zou and Donner, 2008, Statistics in Medicine 27). Runs that happen to agree make no interval narrower than that of
    their prompts alone. Drawing runs as prompts are drawn (Owen, 2007, "The pigeonhole
    bootstrap") would not do with so few: of three, a ninth of the draws would be one run thrice.

    ``tests/test_training_runs.py`` holds its coverage within 94 to 99% of 3, 4 and 5 runs; it is most where training
    has no chance of its own. There, the prompts' interval, than which none is narrower, covers 95% alone, and to add to
    it only where a test finds a chance of training would cover too seldom where that chance is small (Leeb and
    Pötscher, 2005, "Model selection and inference: facts and fiction", Econometric Theory 21(1)).

    Args:
        value: The figure.
        drawn: The figures [R] of all runs together, by resample of prompts.
        num_prompts: How many prompts were drawn from.
        each: Those of each run [K, R].
        own: Those of each run [K] over all prompts.
    """
    low, high = ends(drawn, num_prompts)
    num_runs = len(own)
    if num_runs < 2:
        return low, high
    apart = each - np.nanmean(each, axis=0)
    rest = float(np.nanvar(apart, axis=1).sum()) / (num_runs - 1)
    spread, of_prompts = float(own.var(ddof=1)), float(drawn.var())
    if spread <= _ROUNDING and rest <= _ROUNDING:  # runs of the same outcomes tell nothing new
        return low, high
    of_runs = float(special.stdtrit(num_runs - 1, 0.975)) ** 2 * spread / num_runs
    share = max(1 - rest / (num_runs * of_prompts), 0.0) if of_prompts > _ROUNDING else 0.0
    return (
        min(low, value - math.sqrt(of_runs + share * (value - low) ** 2)),
        max(high, value + math.sqrt(of_runs + share * (high - value) ** 2)),
    )


def _by_run(
    values: NDArray[np.float64], place: NDArray[np.intp], runs: Sequence[int], seed: int, resamples: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means over prompts of cells' ``values`` [C, M] within each run: by resample [K, R, M], and over all [K, M].

    A resample without a prompt of a run has NaN there.
    """
    numbers, run_of = np.unique(np.asarray(runs), return_inverse=True)
    if len(numbers) < 2:
        return np.empty((0, 0, values.shape[1])), np.empty((0, values.shape[1]))  # there is nothing to cross
    num_prompts = int(place.max()) + 1
    each, own = [], []
    for run in range(len(numbers)):
        of_run, at = values[run_of == run], place[run_of == run]
        sizes = np.bincount(at, minlength=num_prompts)
        unit = math.lcm(*np.unique(sizes[sizes > 0]).tolist())  # whole numbers where values are, whose sums are exact
        weights = (unit // sizes[at]).astype(np.float64)
        columns = [np.bincount(at, weights=weights * column, minlength=num_prompts) for column in of_run.T]
        table = np.column_stack([*columns, unit * (sizes > 0)])
        sums = _sums(table, seed, resamples)
        seen = np.where(sums[:, -1:] > 0, sums[:, -1:], np.nan)
        each.append(sums[:, :-1] / seen)
        own.append(table[:, :-1].sum(axis=0) / table[:, -1].sum())
    return np.array(each), np.array(own)


def _constant(value: float, least: float, num_prompts: int) -> Interval:
    """The interval of a share that is the same for every prompt, of which no resample differs.

    At most u = 1 - 0.025^(1/P) of all prompts are otherwise (Clopper and Pearson, 1934: none of P was), and these have
    the least share that there is, or the most.
    """
    other = 1 - 0.025 ** (1 / num_prompts)
    return Interval(value, value - other * (value - least), value + other * (1 - value))


def _sign_p(of_prompts: NDArray[np.float64]) -> float:
    """Two-sided p of the exact sign test; with no prompt decided there is no evidence."""
    won, lost = int((of_prompts > 0).sum()), int((of_prompts < 0).sum())
    # The lesser count, so that both directions are one computation.
    return float(stats.binomtest(min(won, lost), won + lost).pvalue) if won + lost else 1.0


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
