"""Preference accuracy: did the levels separate? No judge, no sampling.

On held-out pairs, how often log p(chosen|x,good) − log p(chosen|x,bad) exceeds the same for the rejected completion.
A tie counts half, so a control whose levels are equal (a fresh LoRA) has exactly 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from meetlm.data.encoding import Encoder
from meetlm.data.example import PreferenceExample
from meetlm.data.levels import LevelledExample
from meetlm.policy.policy import Policy


@dataclass(frozen=True, slots=True)
class Rate:
    """A share with its 95% bootstrap interval over pairs."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class PreferenceAccuracy:
    """The result of :func:`preference_accuracy`.

    Attributes:
        pairs: Number of held-out pairs, one a prompt.
        by_sum: Accuracy with log-probs summed over a completion's tokens.
        by_token: With their mean over the tokens.
        shorter: How often the chosen completion is the shorter one, a tie counting half; ``1 − shorter`` is the
            accuracy of always taking the longer one.
        nll: Mean −log p a token of each completion under its own level (chosen at good, rejected at bad), in nats.
    """

    pairs: int
    by_sum: Rate
    by_token: Rate
    shorter: Rate
    nll: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def preference_accuracy(
    policy: Policy,
    encoder: Encoder,
    examples: Sequence[PreferenceExample],
    *,
    good: int = -1,
    bad: int = 0,
    on_done: Callable[[int], object] | None = None,
) -> PreferenceAccuracy:
    """Return the accuracy of the margin good − bad on pairs.

    Args:
        policy: Scores; left as it was.
        encoder: Of the policy's control.
        examples: One a prompt, so that the bootstrap over pairs is one over prompts.
        good: Index of the better level.
        bad: Index of the worse level.
        on_done: Called with the number of sequences scored; there are four a pair.
    """
    levels = range(encoder.num_levels)
    logps, counts = {}, {}
    for side in ("chosen", "rejected"):
        for name, level in (("good", levels[good]), ("bad", levels[bad])):
            # One call for each level over the same rows: equal shapes, so equal levels give equal bits.
            rows = [LevelledExample(e.prompt, getattr(e, side), level) for e in examples]
            logps[side, name], counts[side] = policy.score([encoder.encode(row) for row in rows], on_done=on_done)
    margin = {side: logps[side, "good"] - logps[side, "bad"] for side in counts}
    total = logps["chosen", "good"].sum() + logps["rejected", "bad"].sum()
    return PreferenceAccuracy(
        pairs=len(examples),
        by_sum=rate(wins(margin["chosen"].numpy(), margin["rejected"].numpy())),
        by_token=rate(wins(*((margin[side] / counts[side]).numpy() for side in ("chosen", "rejected")))),
        shorter=rate(wins(counts["rejected"].numpy(), counts["chosen"].numpy())),
        nll=float(-total / (counts["chosen"].sum() + counts["rejected"].sum())),
    )


def rate(outcomes: NDArray[np.float64], *, resamples: int = 2000, seed: int = 0) -> Rate:
    """Return the mean of ``outcomes`` [S] with its 95% percentile bootstrap interval.

    Outcomes that are all the same give an interval of no width.
    """
    mean = float(outcomes.mean())
    if np.ptp(outcomes) == 0:
        return Rate(mean, mean, mean)
    interval = stats.bootstrap(
        (outcomes,), np.mean, n_resamples=resamples, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Rate(mean, float(interval.low), float(interval.high))


def wins(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """1 where left is greater, ½ where equal."""
    outcomes: NDArray[np.float64] = (left > right) + 0.5 * (left == right)
    return outcomes
