"""Intervals over several training runs, crossed with the prompts: how often they cover, and what they do not change."""

from __future__ import annotations

import numpy as np
import pytest

from meetlm.evaluation.record import Interval, Outcome, Rates
from meetlm.evaluation.statistics import by_seed, mean, rates
from test_statistics import MIRRORED, NAMES, found, mirror


def of_runs(number: int, swing: float, num_runs: int = 3, num_prompts: int = 128, hard: float = 0.0) -> Rates:
    """Runs whose win rates swing about ½, prompts that are ``hard`` apart; Δ is 0 in truth."""
    rng = np.random.default_rng([number, num_runs])
    apart = hard * rng.choice((-1, 1), size=num_prompts)
    win = 0.5 + apart[:, None] + swing * rng.normal(size=num_runs)
    codes = np.where(rng.random((num_prompts, num_runs)) < win, 0, 2)
    outcomes: list[Outcome | None] = [NAMES[code] for code in codes.ravel()]
    prompts = np.repeat(np.arange(num_prompts), num_runs).tolist()
    runs = list(range(num_runs)) * num_prompts
    result = rates(outcomes, prompts, runs=runs, seed=number, resamples=500)
    assert result is not None
    return result


@pytest.mark.parametrize(
    ("swing", "num_runs", "num_prompts", "hard"),
    [
        (0.0, 3, 128, 0.0),
        (0.0, 3, 60, 0.3),
        (0.03, 3, 128, 0.0),
        (0.03, 3, 128, 0.3),
        (0.1, 3, 128, 0.0),
        (0.1, 3, 128, 0.2),
        (0.0, 5, 128, 0.0),
        (0.03, 5, 128, 0.3),
        (0.1, 5, 60, 0.2),
    ],
)
def test_delta_over_training_runs_is_covered(swing: float, num_runs: int, num_prompts: int, hard: float) -> None:
    """2 standard errors of 1,000 simulations are 1.4 points; without any chance of training it is 98.8%."""
    inside = [of_runs(n, swing, num_runs, num_prompts, hard).delta for n in range(1000)]
    assert 94 <= sum(one.low <= 0 <= one.high for one in inside) / 10 <= 99


@pytest.mark.parametrize("swing", [0.0, 0.3, 2.0])
def test_a_mean_over_training_runs_is_covered(swing: float) -> None:
    """Runs of other levels, prompts of other levels, noise of 1; every fifth cell has no value."""
    inside = 0
    for number in range(1000):
        rng = np.random.default_rng([number, 9])
        level = rng.normal(size=(100, 1)) + swing * rng.normal(size=4)
        values = np.where(rng.random((100, 4)) < 0.2, None, level + rng.normal(size=(100, 4))).ravel().tolist()
        prompts, runs = np.repeat(np.arange(100), 4).tolist(), list(range(4)) * 100
        interval = mean(values, prompts, runs=runs, seed=number, resamples=500)
        assert interval
        inside += interval.low <= 0 <= interval.high
    assert 94 <= inside / 10 <= 99


def test_intervals_over_prompts_alone_do_not_cover_runs_that_swing() -> None:
    """The test of the test: with the runs taken for one, the chance of training is in no interval."""
    inside = 0
    for number in range(300):
        rng = np.random.default_rng(number)
        win = 0.5 + 0.1 * rng.normal(size=3)
        codes = np.where(rng.random((128, 3)) < win, 0, 2)
        delta = found([NAMES[code] for code in codes.ravel()], np.repeat(np.arange(128), 3).tolist()).delta
        inside += delta.low <= 0 <= delta.high
    assert inside < 0.8 * 300


@pytest.mark.parametrize("shift", [0, 17, 35])
def test_runs_that_happen_to_agree_make_no_interval_narrower(shift: int) -> None:
    """Two runs win 65 of 100 prompts each, not the same ones."""
    run: list[Outcome | None] = ["win"] * 65 + ["lose"] * 35
    outcomes = run + run[shift:] + run[:shift]
    prompts = list(range(100)) * 2
    both, alone = (rates(outcomes, prompts, runs=runs).delta for runs in ([0] * 100 + [1] * 100, None))
    assert both.low <= alone.low < alone.high <= both.high


def test_runs_that_contradict_each_other_on_every_prompt() -> None:
    """Every prompt has the same share, which no resample changes; the runs are as far apart as can be."""
    outcomes: list[Outcome | None] = ["win"] * 50 + ["lose"] * 50
    result = rates(outcomes, list(range(50)) * 2, runs=[0] * 50 + [1] * 50)
    assert result and result.delta == Interval(0, -1, 1) and result.win == Interval(0.5, 0, 1)
    assert result.tie.low == 0 and result.tie.high == pytest.approx(1 - 0.025 ** (1 / 50))


def test_runs_that_swing_have_wider_intervals_and_mirror() -> None:
    outcomes: list[Outcome | None] = []
    prompts, runs = [], []
    for run, won in enumerate((20, 50, 80)):
        outcomes += ["win"] * won + ["lose"] * (100 - won)
        prompts += list(np.random.default_rng(run).permutation(100))
        runs += [run] * 100
    alone, crossed = rates(outcomes, prompts), rates(outcomes, prompts, runs=runs)
    swapped = rates([MIRRORED[one] for one in outcomes], prompts, runs=runs)
    assert alone and crossed and swapped
    assert crossed.delta.value == alone.delta.value and crossed.sign_p == alone.sign_p
    assert crossed.delta.high - crossed.delta.low > 3 * (alone.delta.high - alone.delta.low)
    assert crossed.delta == mirror(swapped.delta) and crossed.win == swapped.lose
    same = rates(outcomes[:100] * 3, prompts[:100] * 3, runs=runs)
    assert same == rates(outcomes[:100] * 3, prompts[:100] * 3)
    each = by_seed(outcomes, prompts, runs)
    assert [(one.seed, one.num_prompts) for one in each] == [(0, 100), (1, 100), (2, 100)]
    assert [one.delta.value for one in each] == pytest.approx([-0.6, 0, 0.6])
    assert by_seed(outcomes[:100], prompts[:100], runs[:100]) == []
