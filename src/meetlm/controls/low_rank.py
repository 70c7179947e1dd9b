"""What LoRA adds to linear layers of one input: the narrow products, over stacked factors of all levels.

M tokens, K levels, r rank. Knows no model and no name of a level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meetlm.controls.products import add_product, product


class Reach(ABC):
    """Which rows of stacked factors [K, r, ·] each token reaches, and with what gate."""

    @abstractmethod
    def down(self, x: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
        """Return g ⊙ (x·factorᵀ) for each factor [K, r, in]; x is [M, in]."""

    @abstractmethod
    def add_up(self, y: Tensor, lows: Sequence[Tensor], factors: Sequence[Tensor]) -> None:
        """Add low·factor to y [M, out] for each factor [K, r, out]; lows as :meth:`down` returns them."""

    @abstractmethod
    def outer(self, lows: Sequence[Tensor], x: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """Return lowᵀ·x for each low, of the shape of ``like``'s: the gradient of a factor."""


@dataclass(frozen=True, slots=True)
class Wide(Reach):
    """Every token through all K·r rows.

    Attributes:
        gate: Each level's weight, r times each, [M, K·r].
    """

    gate: Tensor

    def down(self, x: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
        """See :class:`Reach`."""
        low = product(x, _rows(factors))
        low.view(len(x), len(factors), -1).mul_(self.gate[:, None])
        return list(low.chunk(len(factors), dim=1))

    def add_up(self, y: Tensor, lows: Sequence[Tensor], factors: Sequence[Tensor]) -> None:
        """See :class:`Reach`."""
        add_product(y, _joined(lows), _rows(factors).T)

    def outer(self, lows: Sequence[Tensor], x: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """See :class:`Reach`."""
        found = product(_joined(lows).T, x.T)
        return [part.view(one.shape) for part, one in zip(found.chunk(len(lows)), like, strict=True)]


@dataclass(frozen=True, slots=True)
class Runs(Reach):
    """Each token through the r rows of its own level: runs of tokens of one level.

    Attributes:
        levels: Of each run.
        lengths: Their tokens.
        gate: Weight of its level for each token, [M, 1].
    """

    levels: list[int]
    lengths: list[int]
    gate: Tensor

    def down(self, x: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
        """See :class:`Reach`."""
        lows = []
        for factor in factors:
            low = x.new_empty(len(x), factor.shape[1])
            for level, part, out in zip(
                self.levels, torch.split(x, self.lengths), torch.split(low, self.lengths), strict=True
            ):
                out.copy_(product(part, factor[level]))
            lows.append(low.mul_(self.gate))
        return lows

    def add_up(self, y: Tensor, lows: Sequence[Tensor], factors: Sequence[Tensor]) -> None:
        """See :class:`Reach`."""
        for low, factor in zip(lows, factors, strict=True):
            for level, part, out in zip(
                self.levels, torch.split(low, self.lengths), torch.split(y, self.lengths), strict=True
            ):
                add_product(out, part, factor[level].T)

    def outer(self, lows: Sequence[Tensor], x: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """See :class:`Reach`."""
        found = [torch.zeros_like(one) for one in like]
        for low, gradient in zip(lows, found, strict=True):
            for level, part, of_x in zip(
                self.levels, torch.split(low, self.lengths), torch.split(x, self.lengths), strict=True
            ):
                add_product(gradient[level], part.T, of_x.T)
        return found


def _rows(factors: Sequence[Tensor]) -> Tensor:
    """Return stacked factors [K, r, ·] as rows [n·K·r, ·], without a copy where there is one."""
    return _joined([one.flatten(0, 1) for one in factors], dim=0)


def _joined(parts: Sequence[Tensor], dim: int = 1) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)
