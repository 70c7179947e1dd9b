"""The registry of objectives: pure functions from the log-probs of a batch to a summed loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from meetlm.config.registry import Registry

Objective = Callable[[Tensor], Tensor]
"""Sequence log-probs [S], in the order of the batch (chosen, rejected, chosen, …), to a scalar to be divided."""

OBJECTIVES: Registry[Objective] = Registry("objective")
