"""The registry of objectives: pure functions from the log-probs of a batch to a sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny
from torch import Tensor

from meetlm.config.kinds import parse_field
from meetlm.config.registry import Registry
from meetlm.config.settings import Settings


class ObjectiveSettings(Settings):
    """Settings that all objectives share; a subclass fixes ``kind`` and adds further settings."""

    kind: str = Field(description="kind of objective")


@dataclass(frozen=True, slots=True)
class Loss:
    """The value of an objective for a batch.

    Attributes:
        total: Differentiable scalar; the training loop divides it by the number of units of the optimizer step.
        sums: Scalars to log, summed over the units of this batch; the training loop logs their means.
    """

    total: Tensor
    sums: dict[str, Tensor] = field(default_factory=dict)


Objective = Callable[[Tensor, Tensor | None], Loss]
"""Computes a loss from log p(y|x, level) of a batch's completions under policy and reference, in nats, both [S]."""


@dataclass(frozen=True)
class ObjectiveKind:
    """One entry of the registry.

    Attributes:
        settings: Settings class of the objective.
        build: Returns the objective for these settings.
        is_pairwise: Whether its unit is a pair (chosen, rejected, chosen, … in the batch) rather than a token. Such an
            objective also receives log-probs under the reference model: the policy before the stage.
    """

    settings: type[ObjectiveSettings]
    build: Callable[[Any], Objective]
    is_pairwise: bool


OBJECTIVES: Registry[ObjectiveKind] = Registry("objective")

AnyObjectiveSettings = Annotated[
    SerializeAsAny[ObjectiveSettings], BeforeValidator(partial(parse_field, OBJECTIVES, ObjectiveSettings))
]
"""A pydantic field type that reads and writes the settings of any registered kind."""
