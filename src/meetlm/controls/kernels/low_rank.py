"""The narrow products of LoRA over stacked factors, two ways: dense, and by segments of tokens of one level.

M tokens, K levels, r rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from meetlm.controls.kernels.products import add_product, product
from meetlm.controls.lora_reference import LevelRouting

MAX_DENSE_ROWS = 128
"""Largest K·r for which every token goes through all rows of the factors."""
MIN_SEGMENT_TOKENS = 16
"""Least mean length of a segment: shorter ones cost more calls than they save."""


class Router(ABC):
    """Which rows of a stacked factor [K, r, ·] each token goes through."""

    @abstractmethod
    def down(self, x: Tensor, factor: Tensor) -> Tensor:
        """Return the gated product g ⊙ (x·factorᵀ), [M, r or K·r], of x [M, in] and a factor [K, r, in]."""

    @abstractmethod
    def add_up(self, y: Tensor, low: Tensor, factor: Tensor) -> None:
        """Add low·factor to y [M, out] in place; ``low`` is a result of :meth:`down`, the factor is [K, r, out]."""

    @abstractmethod
    def factor_gradient(self, low: Tensor, x: Tensor, factor: Tensor) -> Tensor:
        """Return lowᵀ·x in the shape of ``factor`` [K, r, in]; x is [M, in]."""


@dataclass(frozen=True, slots=True)
class DenseRouting(Router):
    """Every token goes through all K·r rows.

    Attributes:
        gate: Level weights, each repeated r times, [M, K·r].
    """

    gate: Tensor

    def down(self, x: Tensor, factor: Tensor) -> Tensor:
        """See :class:`Router`."""
        return product(x, factor.flatten(0, 1)).mul_(self.gate)

    def add_up(self, y: Tensor, low: Tensor, factor: Tensor) -> None:
        """See :class:`Router`."""
        add_product(y, low, factor.flatten(0, 1).T)

    def factor_gradient(self, low: Tensor, x: Tensor, factor: Tensor) -> Tensor:
        """See :class:`Router`."""
        return product(low.T, x.T).view(factor.shape)


@dataclass(frozen=True, slots=True)
class SegmentedRouting(Router):
    """Each token goes through the r rows of its own level. A segment is a run of tokens of one level.

    Attributes:
        levels: Level of each segment.
        lengths: Tokens of each segment.
        gate: Weight of its level for each token, [M, 1].
    """

    levels: Sequence[int]
    lengths: list[int]
    gate: Tensor

    def down(self, x: Tensor, factor: Tensor) -> Tensor:
        """See :class:`Router`."""
        low = x.new_empty(len(x), factor.shape[1])
        for level, x_segment, low_segment in self._segments(x, low):
            low_segment.copy_(product(x_segment, factor[level]))
        return low.mul_(self.gate)

    def add_up(self, y: Tensor, low: Tensor, factor: Tensor) -> None:
        """See :class:`Router`."""
        for level, low_segment, y_segment in self._segments(low, y):
            add_product(y_segment, low_segment, factor[level].T)

    def factor_gradient(self, low: Tensor, x: Tensor, factor: Tensor) -> Tensor:
        """See :class:`Router`."""
        gradient = torch.zeros_like(factor)
        for level, low_segment, x_segment in self._segments(low, x):
            add_product(gradient[level], low_segment.T, x_segment.T)
        return gradient

    def _segments(self, left: Tensor, right: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        parts = torch.split(left, self.lengths), torch.split(right, self.lengths)
        return zip(self.levels, *parts, strict=True)


class FusedRouting(LevelRouting):
    """A routing that also holds which of the two ways is the faster one for it."""

    @cached_property
    def router(self) -> Router:
        """The segments, where K·r is large, each token has one level and segments are long enough; else dense."""
        is_wide = self.weights.shape[1] * self.rank > MAX_DENSE_ROWS
        return (segments_of(self.weights) if is_wide else None) or DenseRouting(self.gate)


def segments_of(weights: Tensor) -> SegmentedRouting | None:
    """Return the segments of level weights [M, K]; ``None`` if a token mixes levels or segments are short."""
    if int((weights != 0).sum(dim=1).max()) > 1:
        return None
    levels, lengths = torch.unique_consecutive(weights.abs().argmax(dim=1), return_counts=True)
    if len(levels) * MIN_SEGMENT_TOKENS > len(weights):
        return None
    return SegmentedRouting(levels.tolist(), lengths.tolist(), weights.sum(dim=1, keepdim=True))
