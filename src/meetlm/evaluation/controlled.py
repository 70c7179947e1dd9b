"""A win rate with the effect of length removed, since a judge may prefer longer replies (paper sections 4.4, 4.7).

The method follows AlpacaEval 2 (Dubois, Galambosi, Liang and Hashimoto, 2024, "Length-Controlled AlpacaEval",
arXiv:2404.04475): a logistic regression predicts the outcome of a cell from the quality of the system and the
difference in length. With the length term set to zero, it predicts how often the system would win at equal lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from meetlm.diagnostics.intervals import Array, Interval, draws, percentile_ends
from meetlm.evaluation.outcomes import POINTS, Outcome
from meetlm.evaluation.statistics import Clusters

_BLOCK = 30_000
"""Numbers per block of resamples, so that the arrays of a fit stay in the processor's cache."""
_MAX_STEPS = 200


def controlled_win(
    outcomes: Sequence[Outcome | None],
    lengths: Sequence[float | None],
    baseline_lengths: Sequence[float | None],
    clusters: Clusters,
    *,
    ridge: float = 0.1,
) -> Interval | str:
    """Return the win rate that the system would have at equal lengths, with its 95% interval over prompts.

    If it cannot be estimated, return the reason as a clause. Ties count as half a win.

    The model is P(win) = σ(θ + φ·tanh(d / s)), with d the system's length minus the baseline's in a cell and s the
    standard deviation of d over all cells. A win counts 1, a tie ½, a loss 0. θ and φ maximise the log-likelihood, in
    which each prompt has weight 1, divided among its cells, minus ridge·φ²/2, which keeps φ finite if length alone
    decides the outcomes. The result is σ(θ), the prediction at d = 0. AlpacaEval's term for the difficulty of an
    instruction is left out: it requires many systems on the same prompts. For the interval
    (:mod:`meetlm.diagnostics.intervals`) the model is fitted to every resample with s fixed. A resample with only wins
    counts as 1, a resample with only losses as 0.

    Args:
        outcomes: The outcome of each cell.
        lengths: Lengths of the system's replies, in any unit (AlpacaEval: characters).
        baseline_lengths: Lengths of the baseline's replies. Cells without an outcome or a length are ignored.
        clusters: The cells' prompts; their training runs are not used.
        ridge: Strength of the penalty on φ. Of the values from 0.01 to 1, 0.1 had the smallest error on simulated
            judges. For a judge that prefers the longer reply, with a win rate of 0.87 and a true result of 0.5, the
            mean estimate is 0.57 on 128 prompts, 0.55 on 600 and 0.52 on 3,000 (with ridge 1: 0.65, 0.60 and 0.55).
    """
    cells = zip(clusters.prompts, outcomes, lengths, baseline_lengths, strict=True)
    counted = [(p, POINTS[o] / 2, a - b) for p, o, a, b in cells if o is not None and a is not None and b is not None]
    if not counted:
        return "no cell has an outcome and both lengths"
    scores = np.array([scores for _, scores, _ in counted])
    difference = np.array([difference for _, _, difference in counted], dtype=np.float64)
    if np.ptp(scores) == 0 and scores[0]:
        return "every cell has the same outcome"
    if np.ptp(difference) == 0:
        return "the difference in length does not vary"
    if difference.min() > 0 or difference.max() < 0:
        comparative = "shorter" if difference.max() < 0 else "longer"
        return f"every reply is {comparative} than the baseline's, so equal lengths were not seen"
    _, row, sizes = np.unique([prompt for prompt, _, _ in counted], return_inverse=True, return_counts=True)
    x, weights = np.tanh(difference / difference.std()), 1 / sizes[row]
    theta, phi = (float(value[0]) for value in _fit(weights[None], scores, x, ridge, (0.0, 0.0)))
    counts = draws((1,) * len(sizes), clusters.seed, clusters.resamples)
    step = max(_BLOCK // len(scores), 1)
    drawn = [
        _fit(counts[start : start + step][:, row] * weights, scores, x, ridge, (theta, phi))[0]
        for start in range(0, clusters.resamples, step)
    ]
    low, high = percentile_ends(np.concatenate(drawn), len(sizes))
    return Interval(*(float(expit(value)) for value in (theta, low, high)))


def _fit(weights: Array, scores: Array, x: Array, ridge: float, start: tuple[float, float]) -> tuple[Array, Array]:
    """Fit the model to many weightings of the same cells at once, by Newton's method.

    The formulas use p − ½ = tanh(·/2)/2, an odd function, so that exchanging the systems only changes the sign of θ.

    Args:
        weights: Weights [R, C] of the cells.
        scores: Outcome − ½ of each cell [C].
        x: tanh(d / s) of each cell [C].
        ridge: As in :func:`controlled_win`.
        start: Initial θ and φ.

    Returns:
        θ [R] and φ [R]; θ is infinite if all cells with nonzero weight have the same outcome.
    """
    theta, phi = np.full(len(weights), start[0]), np.full(len(weights), start[1])
    only_wins, only_losses = weights @ (scores < 0.5) == 0, weights @ (scores > -0.5) == 0
    theta[only_wins], theta[only_losses] = np.inf, -np.inf
    active = np.flatnonzero(~only_wins & ~only_losses)
    for _ in range(_MAX_STEPS):
        if not len(active):
            return theta, phi
        w = weights[active]
        half = np.tanh((theta[active, None] + phi[active, None] * x) / 2) / 2
        residual, curvature = w * (scores - half), w * (0.25 - half**2)
        g0, g1 = residual.sum(axis=1), residual @ x - ridge * phi[active]
        h00, h01, h11 = curvature.sum(axis=1), curvature @ x, curvature @ (x * x) + ridge
        determinant = h00 * h11 - h01 * h01
        # Steps are at most 1, since a full step may overshoot to a flat part of the curve.
        step0 = np.clip((h11 * g0 - h01 * g1) / determinant, -1, 1)
        step1 = np.clip((h00 * g1 - h01 * g0) / determinant, -1, 1)
        theta[active] += step0
        phi[active] += step1
        active = active[np.maximum(abs(step0), abs(step1)) > 1e-10]
    raise RuntimeError(f"the length-controlled fit of {len(active)} resamples did not converge in {_MAX_STEPS} steps")
