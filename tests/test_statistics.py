"""Rates, means, differences and agreement by hand; swapping the systems mirrors every figure.

``bench/interval_coverage.py`` measures how often the intervals cover the true value.
"""

from __future__ import annotations

import math
import time
from itertools import product
from typing import cast

import numpy as np
import pytest
from scipy.stats import binomtest

from meetlm.diagnostics.intervals import Interval
from meetlm.evaluation.outcomes import PAPER_BAND, Outcome, decide, judge_margin, largest_tie, margins
from meetlm.evaluation.record import Agreement, Rates
from meetlm.evaluation.statistics import Clusters, agreement, difference, mean, rates

NAMES: tuple[Outcome, ...] = ("win", "tie", "lose")
MIRRORED: dict[Outcome | None, Outcome | None] = {"win": "lose", "lose": "win", "tie": "tie", None: None}


def some_outcomes(
    num_prompts: int, seeds: int, seed: int = 0, missing: float = 0.0
) -> tuple[list[Outcome | None], list[int]]:
    """Outcomes of which one prompt's seeds go together, some of them missing, in mixed order."""
    rng = np.random.default_rng(seed)
    taste = rng.dirichlet([0.6, 0.5, 0.4], size=num_prompts)
    cells = [(prompt, NAMES[rng.choice(3, p=taste[prompt])]) for prompt in range(num_prompts) for _ in range(seeds)]
    order = rng.permutation(len(cells))
    outcomes = [None if rng.random() < missing else cells[n][1] for n in order]
    return outcomes, [cells[n][0] for n in order]


def mirror(interval: Interval) -> Interval:
    return Interval(-interval.value, -interval.high, -interval.low)


# Outcomes


Values = list[float | None]


def by_reward(ours: Values, theirs: Values, band: tuple[float, float] = PAPER_BAND) -> list[Outcome | None]:
    return decide(margins(ours, theirs), largest_tie=largest_tie(band))


def by_value(ours: Values, theirs: Values, *, higher_is_better: bool = True) -> list[Outcome | None]:
    return decide(margins(ours, theirs, higher_is_better=higher_is_better))


def test_the_tie_band_has_its_edges() -> None:
    edge = math.log(0.55 / 0.45)  # σ is 0.55 there
    assert by_reward([edge, edge + 1e-9, edge - 1e-9], [0.0] * 3) == ["tie", "win", "tie"]
    assert by_reward([0.0] * 3, [edge, edge + 1e-9, edge - 1e-9]) == ["tie", "lose", "tie"]
    # The same difference, rounded otherwise, is the same outcome.
    for base in (-7.3, 0.1, 1 / 3, 2.7, 11.9):
        assert by_reward([base + edge, base], [base, base + edge]) == ["tie", "tie"]
    assert by_reward([None, 1.0, None, 2.0], [1.0, None, None, 2.0]) == [None, None, None, "tie"]


def test_the_tie_band_is_settable() -> None:
    assert by_reward([1.0, 1.0], [-1.0, 1.0], (0.1, 0.9)) == ["tie", "tie"]  # σ(2) is 0.88
    assert by_reward([1.0, 1.0], [1.0 - 1e-12, 1.0], (0.5, 0.5)) == ["win", "tie"]
    for band in ((0.4, 0.55), (0.55, 0.45), (0.0, 1.0), (0.6, 0.7), (math.nan, 0.5)):
        with pytest.raises(ValueError, match=r"expected two bounds inside \(0, 1\) at equal distances"):
            by_reward([1.0], [0.0], band)


def test_by_value_and_margins() -> None:
    ours, theirs = [1.0, 2.0, 3.0, None], [2.0, 2.0, 2.0, 2.0]
    assert by_value(ours, theirs) == ["lose", "tie", "win", None]
    assert by_value(ours, theirs, higher_is_better=False) == ["win", "tie", "lose", None]
    assert margins(ours, theirs) == [-1.0, 0.0, 1.0, None]
    with pytest.raises(ValueError, match="cell 1: values nan and 2.0"):
        by_value([1.0, math.nan], theirs[:2])


def test_all_nine_verdicts_of_a_judge() -> None:
    """Appendix C, written out."""
    expected: dict[tuple[Outcome, Outcome], Outcome] = {
        ("win", "win"): "win",  # wins twice
        ("win", "tie"): "win",  # wins once and draws once
        ("tie", "win"): "win",
        ("lose", "lose"): "lose",  # loses twice
        ("lose", "tie"): "lose",  # loses once and draws once
        ("tie", "lose"): "lose",
        ("tie", "tie"): "tie",  # draws twice
        ("win", "lose"): "tie",  # wins once and loses once
        ("lose", "win"): "tie",
    }
    assert {pair: decide([judge_margin(*pair)])[0] for pair in product(NAMES, NAMES)} == expected
    assert [judge_margin("win", "win"), judge_margin("tie", "lose"), judge_margin("lose", "win")] == [1, -0.5, 0]


# Rates


def rates_of(outcomes: list[Outcome | None], prompts: list[int], **more: int) -> Rates:
    result = rates(outcomes, Clusters(prompts, **more))
    assert result is not None
    return result


def test_rates_by_hand() -> None:
    # Prompt 0: win, lose, tie; prompt 1: win (and one without an outcome); prompt 2: lose, lose, win.
    outcomes: list[Outcome | None] = ["win", "lose", "tie", "win", None, "lose", "lose", "win"]
    result = rates_of(outcomes, [0, 0, 0, 1, 1, 2, 2, 2])
    assert result.win.value == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert result.lose.value == pytest.approx((1 / 3 + 0 + 2 / 3) / 3)
    assert result.tie.value == pytest.approx((1 / 3) / 3)
    assert result.delta.value == pytest.approx((0 + 1 - 1 / 3) / 3)
    assert (result.num_prompts, result.num_cells) == (3, 7)
    assert result.sign_p == 1.0  # prompt 0 is even, one won, one lost


def test_the_sign_test_by_hand() -> None:
    """Of 10 decided prompts 9 are won: 2·(1 + 10)/2¹⁰; a prompt with three seeds has one sign."""
    outcomes: list[Outcome | None] = ["win"] * 9 + ["lose", "tie"] + ["win", "lose", "tie"]
    result = rates_of(outcomes, [*range(11), 11, 11, 11])
    assert result.sign_p == pytest.approx(22 / 1024)


def test_a_against_a_is_ties_only() -> None:
    rewards = np.random.default_rng(0).normal(size=50).tolist()
    for outcomes in (by_reward(rewards, rewards), by_value(rewards, rewards)):
        result = rates_of(outcomes, list(range(50)))
        assert (result.win.value, result.lose.value, result.delta.value, result.tie.value) == (0, 0, 0, 1)
        upper = binomtest(0, 50).proportion_ci(0.95, method="exact").high
        assert result.win == result.lose
        assert (result.win.low, result.win.high) == pytest.approx((0, upper))
        assert (result.tie.low, result.tie.high) == pytest.approx((1 - upper, 1))
        assert (result.delta.low, result.delta.high) == pytest.approx((-upper, upper))
        assert result.sign_p == 1.0


@pytest.mark.parametrize(("num_prompts", "seeds", "missing"), [(1, 1, 0.0), (37, 1, 0.1), (101, 5, 0.3), (40, 7, 0.2)])
def test_swapping_mirrors_every_figure(num_prompts: int, seeds: int, missing: float) -> None:
    outcomes, prompts = some_outcomes(num_prompts, seeds, seed=3, missing=missing)
    result, other = rates_of(outcomes, prompts), rates_of([MIRRORED[o] for o in outcomes], prompts)
    assert (result.win, result.lose, result.tie) == (other.lose, other.win, other.tie)
    assert result.delta == mirror(other.delta)
    assert result.sign_p == other.sign_p
    second = some_outcomes(num_prompts, seeds, seed=4)[0]
    kappas = [
        agreed(first, [swap[o] for o in second], prompts)
        for first, swap in ((outcomes, {o: o for o in MIRRORED}), ([MIRRORED[o] for o in outcomes], MIRRORED))
    ]
    assert kappas[0] == kappas[1]


def test_the_order_of_cells_does_not_matter() -> None:
    outcomes, prompts = some_outcomes(60, 3, missing=0.2)
    order = np.random.default_rng(1).permutation(len(prompts))
    assert rates_of(outcomes, prompts) == rates_of([outcomes[n] for n in order], [prompts[n] for n in order])


def test_deterministic_by_seed() -> None:
    outcomes, prompts = some_outcomes(60, 1)
    assert rates_of(outcomes, prompts, seed=1) == rates_of(outcomes, prompts, seed=1)
    assert rates_of(outcomes, prompts, seed=1).win != rates_of(outcomes, prompts, seed=2).win


def test_seeds_of_a_prompt_stay_together() -> None:
    """The same prompts seen under ten equal seeds tell nothing new: the interval stays."""
    outcomes, prompts = some_outcomes(50, 1)
    once, again = rates_of(outcomes, prompts), rates_of(outcomes * 10, prompts * 10)
    assert (once.win, once.delta, once.sign_p) == (again.win, again.delta, again.sign_p)
    assert (again.num_prompts, again.num_cells) == (50, 500)
    values = [float(NAMES.index(cast(Outcome, o))) for o in outcomes]
    assert mean(values, Clusters(prompts)) == mean(values * 2, Clusters(prompts * 2))


def test_nothing_to_count() -> None:
    assert rates([None, None], Clusters([0, 1])) is None
    assert mean([None, None], Clusters([0, 1])) is None
    assert agreed(["win", None], [None, "win"], [0, 1]) is None


def test_mean_by_hand() -> None:
    result = mean([1.0, 2.0, None, 6.0, None], Clusters([0, 0, 0, 1, 2]))
    assert result and result.value == (1.5 + 6.0) / 2
    assert (result.low, result.high) == (1.5, 6.0)  # two prompts: as far as the draws go
    constant = mean([0.1] * 7, Clusters(range(7)))
    assert constant and constant.low == constant.value == constant.high == pytest.approx(0.1)


def test_ten_thousand_prompts_take_seconds() -> None:
    outcomes, prompts = some_outcomes(10_000, 1)
    start = time.perf_counter()
    rates_of(outcomes, prompts)
    assert time.perf_counter() - start < 15


# Differences


def test_differences_by_hand() -> None:
    change = difference([4.0, 6.0, None, 2.0], [1.0, 3.0, 5.0, 2.0], Clusters([0, 1, 2, 3]), ratio=True)
    assert change and change.mean.value == 2 and change.ratio and change.ratio.value == pytest.approx(2)
    assert change.sign_p == 0.5  # two of two
    assert difference([None], [1.0], Clusters([0])) is None


# Agreement


def agreed(first: list[Outcome | None], other: list[Outcome | None], prompts: list[int]) -> Agreement | None:
    return agreement(first, other, Clusters(prompts), system="a", evaluators=("reward", "judge"))


def test_kappa_by_hand() -> None:
    """Cohen's own kind of table: 20 both win, 5 + 10 apart, 15 both lose: observed 0.7, by chance 0.5."""
    outcomes: list[Outcome | None] = ["win"] * 25 + ["lose"] * 25 + [None]
    other: list[Outcome | None] = ["win"] * 20 + ["lose"] * 5 + ["win"] * 10 + ["lose"] * 15 + ["win"]
    result = agreed(outcomes, other, list(range(51)))
    assert result and result.kappa
    assert (result.observed, result.num_cells) == (0.7, 50)
    assert result.kappa.value == pytest.approx(0.4)
    assert 0.05 < result.kappa.low < 0.25 and 0.55 < result.kappa.high < 0.75  # ±1.96·0.13 by the usual formula
    assert (result.system, result.evaluators) == ("a", ("reward", "judge"))


def test_kappa_at_its_ends() -> None:
    outcomes, prompts = some_outcomes(40, 2)
    same = agreed(outcomes, outcomes, prompts)
    assert same and same.kappa == Interval(1, 1, 1) and same.observed == 1
    constant: list[Outcome | None] = ["win"] * 80
    both = agreed(constant, constant, prompts)
    assert both and both.kappa is None and both.observed == 1
    against: list[Outcome | None] = ["lose"] * 80
    apart = agreed(constant, against, prompts)
    assert apart and apart.kappa == Interval(0, 0, 0) and apart.observed == 0
    one_constant = agreed(outcomes, constant, prompts)
    assert one_constant and one_constant.kappa and one_constant.kappa.value == 0


def test_kappa_of_strangers_is_near_zero() -> None:
    outcomes, prompts = some_outcomes(2000, 1, seed=1)
    other, _ = some_outcomes(2000, 1, seed=2)
    other = [other[n] for n in np.argsort(prompts)]
    result = agreed(outcomes, other, prompts)
    assert result and result.kappa and result.kappa.low < 0 < result.kappa.high
    assert result.kappa.high - result.kappa.low < 0.15
