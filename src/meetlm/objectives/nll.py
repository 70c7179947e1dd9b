"""The language-modelling objective of eqs. 1 and 2: −Σ log M(y | x, θ_c, θ) over the completions of a batch."""

from __future__ import annotations

from torch import Tensor

from meetlm.objectives.base import OBJECTIVES


@OBJECTIVES.register("nll")
def nll(logps: Tensor) -> Tensor:
    """Return the summed negative log-likelihood.

    Args:
        logps: [S], log p(y|x, level) of each sequence, summed over its tokens.

    Returns:
        A scalar, in nats; the loop divides it by the number of trained tokens of the whole optimizer step.
    """
    return -logps.sum()
