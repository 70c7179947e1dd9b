"""The length-controlled win rate, on simulated judges."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from meetlm.diagnostics.intervals import Interval
from meetlm.evaluation.controlled import controlled_win
from meetlm.evaluation.outcomes import Outcome
from meetlm.evaluation.statistics import Clusters

NAMES: tuple[Outcome, ...] = ("win", "tie", "lose")


def judged(kind: str, num_prompts: int = 600, seeds: int = 1, seed: int = 0) -> Iterator[list[float]]:
    """Yield outcomes (as numbers), our lengths, their lengths, prompts, where ours tend to be longer."""
    rng = np.random.default_rng(seed)
    theirs = rng.gamma(4.0, 20.0, size=num_prompts * seeds)
    ours = rng.gamma(4.0, 20.0, size=num_prompts * seeds) + 60
    better = rng.random(num_prompts * seeds)
    if kind == "length":
        codes = np.where(ours > theirs, 0, 2)
    elif kind == "quality":
        codes = np.where(better < 0.3, 0, np.where(better < 0.5, 1, 2))
    else:  # both: σ(−0.6 + 1.5·tanh(d/s))
        x = np.tanh((ours - theirs) / (ours - theirs).std())
        codes = np.where(better < 1 / (1 + np.exp(0.6 - 1.5 * x)), 0, 2)
    yield from (codes.tolist(), ours.tolist(), theirs.tolist(), np.repeat(np.arange(num_prompts), seeds).tolist())


def controlled(kind: str, *, swap: bool = False, **more: int) -> Interval:
    codes, ours, theirs, prompts = judged(kind, **more)
    if swap:
        codes, ours, theirs = [2 - code for code in codes], theirs, ours
    outcomes: list[Outcome | None] = [NAMES[int(code)] for code in codes]
    result = controlled_win(outcomes, list(ours), list(theirs), Clusters([int(p) for p in prompts], resamples=500))
    assert isinstance(result, Interval)
    return result


def test_a_judge_of_length_alone_is_undone() -> None:
    """The raw rate is 0.87; what is left of it are 0.05, since a finite φ is not quite a step."""
    raw, undone, inside = [], [], 0
    for seed in range(20):
        codes = next(judged("length", seed=seed))
        raw.append(sum(code == 0 for code in codes) / len(codes))
        result = controlled("length", seed=seed)
        undone.append(result.value)
        inside += result.low < 0.5 < result.high
    assert min(raw) > 0.8
    assert np.mean(undone) == pytest.approx(0.5, abs=0.07)
    assert inside >= 16


def test_a_judge_blind_to_length_is_left_alone() -> None:
    codes = next(judged("quality"))
    raw = sum(1 - code / 2 for code in codes) / len(codes)
    result = controlled("quality")
    assert result.value == pytest.approx(raw, abs=0.03)
    assert result.low < raw < result.high
    assert result.high - result.low < 0.2


def test_quality_is_found_below_length() -> None:
    """By the raw rate the system is better; at equal lengths it is not: σ(−0.6) is 0.35."""
    codes = next(judged("both"))
    assert sum(1 - code / 2 for code in codes) / len(codes) > 0.5
    result = controlled("both")
    assert result.value == pytest.approx(1 / (1 + math.exp(0.6)), abs=0.06)
    assert result.high < 0.5


@pytest.mark.parametrize("kind", ["length", "quality", "both"])
@pytest.mark.parametrize("seeds", [1, 3])
def test_swapping_mirrors_the_controlled_rate(kind: str, seeds: int) -> None:
    result = controlled(kind, num_prompts=80, seeds=seeds)
    other = controlled(kind, num_prompts=80, seeds=seeds, swap=True)
    assert (result.value, result.low, result.high) == pytest.approx(
        (1 - other.value, 1 - other.high, 1 - other.low), abs=1e-14
    )


def test_seeds_stay_together_in_the_controlled_rate() -> None:
    codes, ours, theirs, prompts = judged("both", num_prompts=60)
    outcomes: list[Outcome | None] = [NAMES[int(code)] for code in codes]
    places = [int(prompt) for prompt in prompts]
    once = controlled_win(outcomes, ours, theirs, Clusters(places, resamples=300))
    again = controlled_win(outcomes * 4, ours * 4, theirs * 4, Clusters(places * 4, resamples=300))
    assert isinstance(once, Interval) and isinstance(again, Interval)
    assert (once.value, once.low, once.high) == pytest.approx((again.value, again.low, again.high), abs=1e-9)


def test_where_length_cannot_be_controlled() -> None:
    four = [0, 1, 2, 3]

    def reason(outcomes: list[Outcome | None], ours: list[float | None]) -> str | None:
        result = controlled_win(outcomes, ours, [5.0] * 4, Clusters(four))
        return result if isinstance(result, str) else None

    mixed: list[Outcome | None] = ["win", "lose", "tie", "win"]
    assert reason(["win"] * 4, [3.0, 4.0, 6.0, 7.0]) == "every cell has the same outcome"
    assert reason(mixed, [7.0] * 4) == "the difference in length does not vary"
    assert "every reply is longer than the baseline's" in (reason(mixed, [6.0, 7.0, 8.0, 9.0]) or "")
    assert "every reply is shorter than the baseline's" in (reason(mixed, [1.0, 2.0, 3.0, 4.0]) or "")
    assert reason([None, "win", None, None], [1.0, None, 2.0, 3.0]) == "no cell has an outcome and both lengths"
    assert reason(mixed, [3.0, 4.0, 6.0, 7.0]) is None
    ties = controlled_win(["tie"] * 4, [3.0, 4.0, 6.0, 7.0], [5.0] * 4, Clusters(four))
    assert ties == Interval(0.5, 0.5, 0.5)
