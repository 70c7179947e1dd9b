"""Intervals over several training runs, crossed with the prompts: how often they cover, and what they do not change."""

from __future__ import annotations

import numpy as np
import pytest

from meetlm.diagnostics.intervals import Interval
from meetlm.evaluation.outcomes import Outcome
from meetlm.evaluation.statistics import Clusters, delta_by_replicate, rates
from test_statistics import MIRRORED, mirror


@pytest.mark.parametrize("shift", [0, 17, 35])
def test_runs_that_happen_to_agree_make_no_interval_narrower(shift: int) -> None:
    """Two runs win 65 of 100 prompts each, not the same ones."""
    run: list[Outcome | None] = ["win"] * 65 + ["lose"] * 35
    outcomes = run + run[shift:] + run[:shift]
    prompts = list(range(100)) * 2
    both, alone = (rates(outcomes, Clusters(prompts, runs)).delta for runs in ([0] * 100 + [1] * 100, None))
    assert both.low <= alone.low < alone.high <= both.high


def test_runs_that_contradict_each_other_on_every_prompt() -> None:
    """Every prompt has the same share, which no resample changes; the runs are as far apart as can be."""
    outcomes: list[Outcome | None] = ["win"] * 50 + ["lose"] * 50
    result = rates(outcomes, Clusters([*range(50)] * 2, [0] * 50 + [1] * 50))
    assert result and result.delta == Interval(0, -1, 1) and result.win == Interval(0.5, 0, 1)
    assert result.tie.low == 0 and result.tie.high == pytest.approx(1 - 0.025 ** (1 / 50))


def test_runs_that_swing_have_wider_intervals_and_mirror() -> None:
    outcomes: list[Outcome | None] = []
    prompts, runs = [], []
    for run, won in enumerate((20, 50, 80)):
        outcomes += ["win"] * won + ["lose"] * (100 - won)
        prompts += list(np.random.default_rng(run).permutation(100))
        runs += [run] * 100
    alone, crossed = rates(outcomes, Clusters(prompts)), rates(outcomes, Clusters(prompts, runs))
    swapped = rates([MIRRORED[outcome] for outcome in outcomes], Clusters(prompts, runs))
    assert alone and crossed and swapped
    assert crossed.delta.value == alone.delta.value and crossed.sign_p == alone.sign_p
    assert crossed.delta.high - crossed.delta.low > 3 * (alone.delta.high - alone.delta.low)
    assert crossed.delta == mirror(swapped.delta) and crossed.win == swapped.lose
    same = rates(outcomes[:100] * 3, Clusters(prompts[:100] * 3, runs))
    assert same == rates(outcomes[:100] * 3, Clusters(prompts[:100] * 3))
    by_run = delta_by_replicate(outcomes, runs, Clusters(prompts, runs))
    assert {run: delta.value for run, delta in by_run.items()} == pytest.approx({0: -0.6, 1: 0, 2: 0.6})
    assert delta_by_replicate(outcomes[:100], runs[:100], Clusters(prompts[:100])) == {}
