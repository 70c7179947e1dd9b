"""How often do the 95% intervals of an evaluation cover the true value? Simulates evaluations whose truth is known.

    .venv/bin/python bench/interval_coverage.py [SIMULATIONS]     (1,000 by default; two standard errors are 1.4 points)

Prints one line per case: coverage in percent, and the mean width of the intervals. Cases with several training runs
should lie between 94 and 99.5, all others between 93 and 97.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from meetlm.diagnostics.intervals import Interval, bootstrap, mean_interval
from meetlm.evaluation.controlled import controlled_win
from meetlm.evaluation.outcomes import Outcome
from meetlm.evaluation.statistics import Clusters, agreement, difference

NAMES: tuple[Outcome, ...] = ("win", "tie", "lose")
RESAMPLES = 500
Result = tuple[Interval | None, float]
"""The interval of a simulated evaluation, and the true value."""


def delta(number: int, num_prompts: int, seeds: int) -> Result:
    """Δ where prompts differ in difficulty: win rate 0.3 or 0.7, tie rate 0.2."""
    rng = np.random.default_rng([number, num_prompts, seeds])
    win = np.repeat(np.where(rng.random(num_prompts) < 0.5, 0.3, 0.7), seeds)
    drawn = rng.random(num_prompts * seeds)
    points = np.where(drawn < win, 1.0, np.where(drawn < win + 0.2, 0.0, -1.0))
    return _mean(points, np.repeat(np.arange(num_prompts), seeds), number, bounds=(-1, 1)), 0.2


def rate(number: int, probability: float, num_prompts: int) -> Result:
    """A rate, one cell per prompt."""
    wins = np.random.default_rng([number, 5]).random(num_prompts) < probability
    return _mean(wins.astype(float), np.arange(num_prompts), number, bounds=(0, 1)), probability


def lengths(number: int, num_prompts: int) -> Result:
    """A mean of right-skewed values, as lengths of replies are."""
    values = np.random.default_rng([number, num_prompts]).gamma(2.0, 20.0, size=num_prompts)
    return _mean(values, np.arange(num_prompts), number), 40.0


def length_ratio(number: int, num_prompts: int) -> Result:
    """The ratio of two mean lengths, where both systems write more to the same prompts."""
    rng = np.random.default_rng([number, num_prompts, 7])
    needed = rng.gamma(4.0, 1 / 4, size=num_prompts)
    ours, theirs = (size * needed * rng.gamma(3.0, 1 / 3, size=num_prompts) for size in (60.0, 40.0))
    prompts = list(range(num_prompts))
    result = difference(ours.tolist(), theirs.tolist(), Clusters(prompts, None, number, RESAMPLES), ratio=True)
    return result and result.ratio, 1.5


def kappa(number: int, num_prompts: int, seeds: int, same: float) -> Result:
    """κ of two evaluators of which the second follows the first on a share of the prompts, and else guesses."""
    rng = np.random.default_rng([number, num_prompts, seeds])
    follows = np.repeat(rng.random(num_prompts) < same, seeds)
    first, guess = (rng.choice(3, p=[0.5, 0.1, 0.4], size=num_prompts * seeds) for _ in range(2))
    outcomes = [[NAMES[code] for code in codes] for codes in (first, np.where(follows, first, guess))]
    prompts = np.repeat(np.arange(num_prompts), seeds).tolist()
    result = agreement(*outcomes, Clusters(prompts, None, number, RESAMPLES), system="a", evaluators=("r", "j"))
    return result and result.kappa, same


def training_runs(number: int, swing: float, num_runs: int, num_prompts: int, hard: float) -> Result:
    """Δ over runs whose win rates vary with standard deviation ``swing``, on prompts that are ``hard`` apart."""
    rng = np.random.default_rng([number, num_runs])
    of_prompts = hard * rng.choice((-1, 1), size=(num_prompts, 1))
    wins = rng.random((num_prompts, num_runs)) < 0.5 + of_prompts + swing * rng.normal(size=num_runs)
    prompts, runs = np.indices(wins.shape).reshape(2, -1)
    return _mean(np.where(wins, 1.0, -1.0).ravel(), prompts, number, bounds=(-1, 1), runs=runs.tolist()), 0.0


def controlled(number: int, probability: float, effect_of_length: float, num_prompts: int) -> Result:
    """The length-controlled win rate of a system whose replies tend to be longer."""
    rng = np.random.default_rng(number)
    theirs, ours = rng.gamma(4.0, 20.0, size=(2, num_prompts))
    ours += 60
    x = np.tanh((ours - theirs) / (ours - theirs).std())
    odds = np.log(probability / (1 - probability)) + effect_of_length * x
    wins = rng.random(num_prompts) < 1 / (1 + np.exp(-odds))
    outcomes: list[Outcome | None] = ["win" if won else "lose" for won in wins]
    prompts = list(range(num_prompts))
    result = controlled_win(outcomes, ours.tolist(), theirs.tolist(), Clusters(prompts, None, number, RESAMPLES))
    return (None if isinstance(result, str) else result), probability


def seeds_taken_for_prompts(number: int) -> Result:
    """A wrong analysis, as a check of this script: five equal seeds per prompt, counted as five prompts."""
    points = np.repeat(2.0 * (np.random.default_rng(number).random(40) < 0.5) - 1, 5)
    return bootstrap(points[:, None], lambda means: means[:, 0], seed=number, resamples=RESAMPLES), 0.0


def cases() -> Iterator[tuple[str, Callable[..., Result], tuple[float, ...]]]:
    """Yield name, simulation and arguments of every case."""
    for num_prompts, seeds in ((30, 1), (128, 1), (60, 3)):
        yield f"Δ, {num_prompts} prompts, {seeds} seeds", delta, (num_prompts, seeds)
    for probability in (0.1, 0.3, 0.6):
        yield f"rate {probability}, 128 prompts", rate, (probability, 128)
    for num_prompts in (30, 128):
        yield f"mean length, {num_prompts} prompts", lengths, (num_prompts,)
    for num_prompts in (40, 128):
        yield f"ratio of mean lengths, {num_prompts} prompts", length_ratio, (num_prompts,)
    for num_prompts, seeds, same in ((128, 1, 0.5), (60, 3, 0.3), (128, 1, 0.0)):
        yield f"κ {same}, {num_prompts} prompts, {seeds} seeds", kappa, (num_prompts, seeds, same)
    for effect in (0.0, 1.5):
        yield f"length-controlled win rate 0.35, effect {effect}, 128 prompts", controlled, (0.35, effect, 128)
    for swing, num_runs, num_prompts, hard in (
        (0.0, 3, 128, 0.0),
        (0.0, 3, 60, 0.3),
        (0.03, 3, 128, 0.3),
        (0.1, 3, 128, 0.2),
        (0.0, 5, 128, 0.0),
        (0.03, 5, 128, 0.3),
        (0.1, 5, 60, 0.2),
        (0.04, 10, 60, 0.4),
    ):
        name = f"Δ, {num_runs} runs that vary by {swing}, {num_prompts} prompts that vary by {hard}"
        yield name, training_runs, (swing, num_runs, num_prompts, hard)
    yield "wrong on purpose: seeds taken for prompts", seeds_taken_for_prompts, ()


def _mean(
    values: NDArray[np.float64],
    prompts: NDArray[np.intp],
    seed: int,
    *,
    bounds: tuple[float, float] | None = None,
    runs: list[int] | None = None,
) -> Interval:
    return mean_interval(values, prompts.tolist(), runs=runs, bounds=bounds, seed=seed, resamples=RESAMPLES)


def main() -> None:
    """Print the coverage of every case."""
    simulations = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    for name, simulate, args in cases():
        results = [simulate(number, *args) for number in range(simulations)]
        intervals = [(interval, truth) for interval, truth in results if interval]
        covered = np.mean([interval.low <= truth <= interval.high for interval, truth in intervals])
        width = np.mean([interval.high - interval.low for interval, _ in intervals])
        print(f"{100 * covered:5.1f}%  width {width:.3f}  {name}", flush=True)


if __name__ == "__main__":
    main()
