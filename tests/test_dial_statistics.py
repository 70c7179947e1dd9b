"""Calibration of a dial by hand: trend, safe range, recommended setting, side effects, Pareto front."""

from __future__ import annotations

import numpy as np
import pytest

from meetlm.config.errors import ConfigError
from meetlm.evaluation.dial import (
    Curve,
    Dial,
    calibrate,
    find_front,
    find_trend,
    hypervolume,
    pareto_front,
    repetition,
)
from meetlm.evaluation.outcomes import Column
from meetlm.evaluation.statistics import Clusters

SETTINGS = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0]
PROMPTS = 40
CLUSTERS = Clusters(range(PROMPTS), resamples=300)


def curve(name: str, means: list[float], noise: float = 0.1, *, higher: bool | None = True, seed: int = 0) -> Curve:
    """A measure with a mean per setting; prompts differ in the same way at every setting."""
    rng = np.random.default_rng(seed)
    prompts = rng.normal(size=PROMPTS)
    values: list[Column] = [[float(mean + p + rng.normal(0, noise)) for p in prompts] for mean in means]
    return Curve.measured(name, name, higher, values, CLUSTERS)


def dial(score: list[float], nll: list[float] | None = None, *, higher: bool = True) -> Dial:
    fluency = [(curve("NLL", nll or [0.0] * 6, 0.01, higher=False, seed=1), 0.5)]
    others = [curve("words", [0, 0, 0, 0.5, 1, 2], seed=2), curve("level", [0.0] * 6, seed=3)]
    return calibrate("", SETTINGS, CLUSTERS, curve("score", score, higher=higher), fluency, others)


def test_a_rising_score_is_recommended_up_to_where_fluency_breaks() -> None:
    calibration = dial([0, 1, 2, 3, 4, 6], [0, 0, 0, 0.1, 0.3, 2])
    assert calibration.reference == 1 and calibration.safe == (0, 2) and calibration.recommended == 2
    assert list(calibration.broken) == [3] and "NLL is 2.00 above that at 1" in calibration.broken[3]
    assert (
        calibration.trend.rises
        and calibration.trend.p < 1e-6
        and calibration.trend.tau
        and calibration.trend.tau.low > 0.8
    )
    assert calibration.gain and calibration.gain.value == pytest.approx(2, abs=0.1) and calibration.gain.low > 1.8
    assert calibration.reach and calibration.reach.value == pytest.approx(4, abs=0.1)
    limits = calibration.limits()
    assert (limits["low"], limits["high"], limits["recommended"], limits["num_prompts"]) == (0, 2, 2, PROMPTS)
    length, level = calibration.side_effects
    assert length.change.low > 0.8 and length.relative and 0.1 < length.relative < 1
    assert level.relative is not None and level.relative < 0.1


def test_settings_beyond_a_broken_one_are_not_safe() -> None:
    calibration = dial([0, 1, 2, 3, 4, 5], [0, 0, 0, 2, 0, 0])
    assert (
        calibration.safe == (0, 1) and calibration.recommended == 1 and calibration.gain and calibration.gain.value == 0
    )


def test_trained_levels_are_safe_and_settings_below_them_are_compared_with_the_worst() -> None:
    score = curve("score", [0, 1, 2, 3, 4, 5])
    fluency = [(curve("NLL", [4, 2.2, 2, 1, 0, 0], 0.01, higher=False), 0.5)]
    calibration = calibrate("", [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5], CLUSTERS, score, fluency, [])
    assert calibration.safe == (-0.5, 1.5)
    assert list(calibration.broken) == [-1] and "NLL is 2.00 above that at 0" in calibration.broken[-1]


def test_a_score_that_falls_is_named_and_does_not_rise() -> None:
    calibration = dial([0, 1, 2, 1, 0, 0])
    assert (
        calibration.recommended == 1 and not calibration.trend.rises and calibration.trend.falls == [(1, 1.5), (1.5, 2)]
    )


def test_less_may_be_better() -> None:
    calibration = dial([5, 4, 3, 2, 1, 0], higher=False)
    assert (
        calibration.recommended == 3
        and calibration.trend.rises
        and calibration.gain
        and calibration.gain.value == pytest.approx(-3, abs=0.1)
    )


def test_noise_is_no_trend() -> None:
    """One-sided at 5%: of 60 dials without an effect, 3 are expected to look as if the score rose."""
    called = 0
    for seed in range(60):
        values = curve("score", [0.0] * 6, 1.0, seed=seed).values
        called += find_trend(SETTINGS, values, CLUSTERS).p < 0.05
    assert called <= 8


def test_a_constant_score_has_no_trend() -> None:
    trend = find_trend(SETTINGS, [[1.0] * PROMPTS] * 6, CLUSTERS)
    assert (trend.p, trend.falls, trend.rises) == (1.0, [], False) and trend.tau and trend.tau.value == 0
    trend_of_two = find_trend([0, 1], [[0.0] * PROMPTS, [1.0] * PROMPTS], CLUSTERS)
    assert trend_of_two.rises


def test_too_few_prompts_or_no_score_are_refused() -> None:
    few = Clusters(range(4))
    score = Curve.measured("score", "", True, [[1.0] * 4] * 2, few)
    with pytest.raises(ConfigError, match="at least 2 settings and 8 prompts"):
        calibrate("", [0, 1], few, score, [], [])
    empty = Curve.measured("score", "", True, [[1.0] * PROMPTS, [None] * PROMPTS], CLUSTERS)
    with pytest.raises(ConfigError, match="score has no value for any reply at setting 1"):
        calibrate("", [0, 1], CLUSTERS, empty, [], [])


def test_repetition_by_hand() -> None:
    assert repetition("a b c d") == 0 and repetition("a b c") is None
    assert repetition("a b c d a b c d") == pytest.approx(1 - 4 / 5)


def test_pareto_front_and_hypervolume_by_hand() -> None:
    points = np.array([[0, 3], [1, 1], [2, 2], [3, 0], [2, 1], [0, 3]], dtype=float)
    assert [tuple(points[index]) for index in pareto_front(points)] == [(0, 3), (2, 2), (3, 0)]
    # Above (0, 0): a square of 2 × 2; the points on the axes add nothing.
    assert hypervolume(points, np.zeros(2)) == 4
    assert hypervolume(points, np.array([-1.0, -1.0])) == 1 * 4 + 2 * 3 + 1 * 1


def test_the_front_of_two_dials() -> None:
    pairs = [(a, b) for a in (0.0, 1.0) for b in (0.0, 1.0)]
    first = [curve("a", [a], seed=4).values[0] for a, _ in pairs]
    second = [curve("b", [b], seed=5).values[0] for _, b in pairs]
    front = find_front(("tone", "length"), pairs, first, second, CLUSTERS)
    assert [front.settings[index] for index in front.front][-1][0] == 1 and (0.0, 0.0) not in [
        front.settings[index] for index in front.front
    ]
    assert front.hypervolume.value == pytest.approx(1, abs=0.1) and front.hypervolume.low < 1.1
