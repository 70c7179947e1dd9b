"""The language-modelling objective of the paper's eqs. 1 and 2: −Σ log M(y | x, θ_c, θ) over completions."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from meetlm.objectives.base import OBJECTIVES, Loss, ObjectiveKind, ObjectiveSettings


class NLLSettings(ObjectiveSettings):
    """Negative log-likelihood."""

    kind: Literal["nll"] = "nll"


def nll(logps: Tensor, reference: Tensor | None = None) -> Loss:
    """Return the summed negative log-likelihood; its unit is the token (eqs. 1 and 2).

    Args:
        logps: [S], log p(y|x, level) of each completion, summed over its tokens, in nats.
        reference: Not used.
    """
    del reference
    return Loss(-logps.sum())


OBJECTIVES.register("nll")(ObjectiveKind(NLLSettings, lambda settings: nll, is_pairwise=False))
