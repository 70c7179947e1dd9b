"""Direct preference optimization (Rafailov et al., 2023, eq. 7)."""

from __future__ import annotations

from functools import partial
from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from meetlm.objectives.base import OBJECTIVES, Loss, Objective, ObjectiveKind, ObjectiveSettings


class DPOSettings(ObjectiveSettings):
    """Direct preference optimization."""

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0, description="strength β of the KL penalty")


def dpo(logps: Tensor, reference: Tensor | None, *, beta: float) -> Loss:
    """Return −Σ log σ(r_w − r_l) over pairs, with implicit rewards r = β (log π(y|x) − log π_ref(y|x)).

    Args:
        logps: [2P], log π(y|x) of chosen, rejected, chosen, …, summed over tokens, in nats.
        reference: [2P], the same under the reference policy.
        beta: Strength β of the KL penalty.

    Returns:
        The loss, and the sums ``rewards/chosen``, ``rewards/rejected``, ``rewards/margins``, ``rewards/accuracies``.
    """
    assert reference is not None, "DPO requires the log-probs of a reference"
    rewards = beta * (logps - reference.to(logps.dtype))
    chosen, rejected = rewards[0::2], rewards[1::2]
    margins = chosen - rejected
    sums = {
        "rewards/chosen": chosen.sum(),
        "rewards/rejected": rejected.sum(),
        "rewards/margins": margins.sum(),
        "rewards/accuracies": (margins > 0).to(logps.dtype).sum(),
    }
    return Loss(-functional.logsigmoid(margins).sum(), {name: value.detach() for name, value in sums.items()})


def _build(settings: DPOSettings) -> Objective:
    return partial(dpo, beta=settings.beta)


OBJECTIVES.register("dpo")(ObjectiveKind(DPOSettings, _build, is_pairwise=True))
