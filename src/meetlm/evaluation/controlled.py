"""A win rate with the effect of length taken out, since a judge may prefer what is longer (paper sections 4.4, 4.7).

After AlpacaEval 2 (Dubois, Galambosi, Liang and Hashimoto, 2024, "Length-Controlled AlpacaEval", arXiv:2404.04475): a
logistic regression explains who won a cell by how good the system is and by how much longer its reply is; with the
second term set to zero it says how often the system would win at equal lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meetlm.diagnostics.intervals import Interval, draws, percentile_ends
from meetlm.evaluation.outcomes import Outcome

_SIDES: dict[Outcome, float] = {"win": 0.5, "tie": 0.0, "lose": -0.5}
_CHUNK = 30_000  # numbers of a block of resamples: what a step of the fit makes of them stays in the cache
_STEPS = 200


@dataclass(frozen=True, slots=True)
class Controlled:
    """A length-controlled win rate, or why there is none.

    Attributes:
        win: In [0, 1], ties counting half; ``None`` where it cannot be estimated.
        reason: Why it is ``None``, in one clause; else ``None``.
    """

    win: Interval | None
    reason: str | None


def controlled_win(
    outcomes: Sequence[Outcome | None],
    ours: Sequence[float | None],
    theirs: Sequence[float | None],
    prompts: Sequence[int],
    *,
    ridge: float = 0.1,
    seed: int = 0,
    resamples: int = 2000,
) -> Controlled:
    """Return the win rate that the system would have at equal lengths, with its 95% interval over prompts.

    The model is P(win) = σ(θ + φ·tanh(d / s)), with d the system's length minus the baseline's in a cell and s the
    standard deviation of d over all cells. A win counts 1, a tie ½, a loss 0. θ and φ maximise the log-likelihood, in
    which each prompt weighs 1 and its cells share that, minus ridge·φ²/2, which keeps φ finite where length alone
    decides. The result is σ(θ): the prediction at d = 0, the same for every prompt. AlpacaEval's term for the
    difficulty of an instruction is left out: it needs many systems on the same prompts. The interval is that of
    :mod:`meetlm.diagnostics.intervals`, with s fixed and the model fitted again to every resample; a resample with
    wins only counts as 1, with losses only as 0, as is their limit. ``tests/test_length_control.py`` holds its coverage
    within 95 ± 2 on 128 and 600 prompts.

    Args:
        outcomes: One a cell.
        ours: Lengths of the system's replies, in any unit (AlpacaEval takes characters).
        theirs: Lengths of the baseline's. A cell counts where it has an outcome and both lengths.
        prompts: The prompt of each cell.
        ridge: How strongly φ is held towards 0, as by a normal prior of variance 1 / ridge. Of 1 … 0.01, on simulated
            judges, 0.1 had the least error. A judge of length alone that lets the longer system win 0.87 comes out, on
            average, at 0.57 on 128 prompts, 0.55 on 600 and 0.52 on 3,000 (with ridge 1: 0.65, 0.60 and 0.55).
        seed: Of the resampling.
        resamples: Drawn for the interval.
    """
    cells = zip(prompts, outcomes, ours, theirs, strict=True)
    kept = [(p, _SIDES[o], a - b) for p, o, a, b in cells if o is not None and a is not None and b is not None]
    if not kept:
        return Controlled(None, "no cell has an outcome and both lengths")
    side = np.array([one for _, one, _ in kept])
    longer = np.array([one for _, _, one in kept], dtype=np.float64)
    if np.ptp(side) == 0 and side[0]:
        return Controlled(None, "every cell has the same outcome")
    if np.ptp(longer) == 0:
        return Controlled(None, "the difference of lengths does not vary")
    if longer.min() > 0 or longer.max() < 0:
        which = "shorter" if longer.max() < 0 else "longer"
        return Controlled(None, f"every reply is {which} than the baseline's, so none tells of equal lengths")
    _, place, sizes = np.unique([one for one, _, _ in kept], return_inverse=True, return_counts=True)
    fit = _Fit(side, np.tanh(longer / longer.std()), ridge)
    share = 1 / sizes[place]
    theta, phi = (float(one[0]) for one in fit(share[None], (0.0, 0.0)))
    counts = draws((1,) * len(sizes), seed, resamples)
    step = max(_CHUNK // len(side), 1)
    drawn = [fit(counts[at : at + step][:, place] * share, (theta, phi))[0] for at in range(0, resamples, step)]
    low, high = percentile_ends(np.concatenate(drawn), len(sizes))
    return Controlled(Interval(_rate(theta), _rate(low), _rate(high)), None)


def _rate(theta: float) -> float:
    return float(0.5 + np.tanh(theta / 2) / 2)


class _Fit:
    """Newton's method on θ and φ for many weightings of the same cells at once.

    All is written with p − ½ = tanh(·/2)/2, an odd function, so that swapping the systems turns the sign of θ and
    changes nothing else.

    Args:
        side: Outcome − ½ of each cell [C].
        x: tanh(d / s) of each cell [C].
        ridge: As in :func:`controlled_win`.
    """

    def __init__(self, side: NDArray[np.float64], x: NDArray[np.float64], ridge: float) -> None:
        self.side, self.x, self.ridge = side, x, ridge

    def __call__(
        self, weights: NDArray[np.float64], start: tuple[float, float]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return θ [R] and φ [R] under ``weights`` [R, C]; θ is infinite where all that weighs has one outcome."""
        theta, phi = np.full(len(weights), start[0]), np.full(len(weights), start[1])
        won, lost = weights @ (self.side < 0.5) == 0, weights @ (self.side > -0.5) == 0
        theta[won], theta[lost] = np.inf, -np.inf
        open_ = np.flatnonzero(~won & ~lost)
        for _ in range(_STEPS):
            if not len(open_):
                return theta, phi
            up, along = self._step(weights[open_], theta[open_], phi[open_])
            theta[open_] += up
            phi[open_] += along
            open_ = open_[np.maximum(abs(up), abs(along)) > 1e-10]
        raise RuntimeError(f"the length-controlled fit of {len(open_)} resamples did not settle in {_STEPS} steps")

    def _step(
        self, weights: NDArray[np.float64], theta: NDArray[np.float64], phi: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        half = np.tanh((theta[:, None] + phi[:, None] * self.x) / 2) / 2
        residual, curvature = weights * (self.side - half), weights * (0.25 - half**2)
        g0, g1 = residual.sum(axis=1), residual @ self.x - self.ridge * phi
        h00, h01 = curvature.sum(axis=1), curvature @ self.x
        h11 = curvature @ (self.x * self.x) + self.ridge
        det = h00 * h11 - h01 * h01
        # Short steps: a full one may overshoot to where the curve is flat.
        return np.clip((h11 * g0 - h01 * g1) / det, -1, 1), np.clip((h00 * g1 - h01 * g0) / det, -1, 1)
