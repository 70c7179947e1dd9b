"""What LoRA adds to linear layers, in the same node of the graph as the layers themselves.

For layers i that read one input x: y_i = x·W_i + g ⊙ (x·A_iᵀ)·B_i, g the gate of each token. Layers of one input (q, k
and v; gate and up) are one node: one narrow product finds all their x·A_iᵀ, and every further product adds into the
tensor that the one before it made, forward and backward, so nothing as large as x or y_i is made only to be added.

M tokens, n layers, K levels, r rank. Knows no model and no name of a level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


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
        low = x @ _rows(factors).T
        low.view(len(x), len(factors), -1).mul_(self.gate[:, None])
        return list(low.chunk(len(factors), dim=1))

    def add_up(self, y: Tensor, lows: Sequence[Tensor], factors: Sequence[Tensor]) -> None:
        """See :class:`Reach`."""
        y.addmm_(_joined(lows), _rows(factors))

    def outer(self, lows: Sequence[Tensor], x: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """See :class:`Reach`."""
        found = _joined(lows).T @ x
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
                torch.mm(part, factor[level].T, out=out)
            lows.append(low.mul_(self.gate))
        return lows

    def add_up(self, y: Tensor, lows: Sequence[Tensor], factors: Sequence[Tensor]) -> None:
        """See :class:`Reach`."""
        for low, factor in zip(lows, factors, strict=True):
            for level, part, out in zip(
                self.levels, torch.split(low, self.lengths), torch.split(y, self.lengths), strict=True
            ):
                out.addmm_(part, factor[level])

    def outer(self, lows: Sequence[Tensor], x: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """See :class:`Reach`."""
        found = [torch.zeros_like(one) for one in like]
        for low, gradient in zip(lows, found, strict=True):
            for level, part, of_x in zip(
                self.levels, torch.split(low, self.lengths), torch.split(x, self.lengths), strict=True
            ):
                gradient[level].addmm_(part.T, of_x)
        return found


@dataclass(frozen=True, slots=True)
class Layers:
    """Linear layers of one input and their factors.

    Attributes:
        weights: [out, in] each, or [in, out] where ``transposed``.
        biases: [out] each, ``None`` where a layer has none.
        down: A of each, [K, r, in].
        up: B of each, [K, r, out].
        transposed: Whether weights are [in, out], as GPT-2's are.
    """

    weights: list[Tensor]
    biases: list[Tensor | None]
    down: list[Tensor]
    up: list[Tensor]
    transposed: bool = False

    def forward(self, x: Tensor, reach: Reach) -> tuple[Tensor, ...]:
        """Return y_i [R, T, out] for x [R, T, in], in autocast's type where it is on, else in that of the weights."""
        kind = x.device.type
        autocasts = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocasts else self.weights[0].dtype
        tensors = [
            None if one is None else one.to(dtype) for one in (*self.weights, *self.biases, *self.down, *self.up)
        ]
        with torch.autocast(kind, enabled=False):
            outputs: tuple[Tensor, ...] = _Node.apply(  # type: ignore[no-untyped-call]
                x.flatten(0, -2).to(dtype), reach, len(self.weights), self.transposed, *tensors
            )
        return tuple(one.view(*x.shape[:-1], -1) for one in outputs)


class _Node(torch.autograd.Function):
    """The arithmetic of :class:`Layers` over x [M, in], and its derivative."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, reach: Reach, count: int, transposed: bool, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        weights, biases, downs, ups = _quarters(tensors, count)
        lows = reach.down(x, downs)
        outputs = []
        for weight, bias, low, up in zip(weights, biases, lows, ups, strict=True):
            right = weight if transposed else weight.T
            y = x @ right if bias is None else torch.addmm(bias, x, right)
            reach.add_up(y, [low], [up])
            outputs.append(y)
        ctx.save_for_backward(x, *lows, *weights, *downs, *ups)
        ctx.reach, ctx.transposed = reach, transposed
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Any, ...]:
        count, reach = len(outer), ctx.reach
        x, *saved = ctx.saved_tensors
        lows, weights, downs, ups = _quarters(saved, count)
        wants_x, *wanted = ctx.needs_input_grad
        of_weights, of_biases, of_downs, of_ups = _quarters(wanted[3:], count)
        dx: Tensor | None = None
        gradients: list[Tensor | None] = [None] * (4 * count)
        low_gradients, reached = [], []
        for i, dy in enumerate(outer):
            if dy is None:
                continue
            reached.append(i)
            low_gradients += reach.down(dy, [ups[i]])
            if wants_x:
                left = weights[i].T if ctx.transposed else weights[i]
                dx = dy @ left if dx is None else dx.addmm_(dy, left)
            if of_weights[i]:
                gradients[i] = x.T @ dy if ctx.transposed else dy.T @ x
            if of_biases[i]:
                gradients[count + i] = dy.sum(dim=0)
            if of_ups[i]:
                (gradients[3 * count + i],) = reach.outer([lows[i]], dy, [ups[i]])
        if dx is not None:
            reach.add_up(dx, low_gradients, [downs[i] for i in reached])
        if any(of_downs[i] for i in reached):
            found = reach.outer(low_gradients, x, [downs[i] for i in reached])
            for i, gradient in zip(reached, found, strict=True):
                gradients[2 * count + i] = gradient
        return dx, None, None, None, *gradients


def _quarters(values: Sequence[Any], count: int) -> list[list[Any]]:
    return [list(values[start : start + count]) for start in range(0, 4 * count, count)]


def _rows(factors: Sequence[Tensor]) -> Tensor:
    """Return stacked factors [K, r, ·] as rows [n·K·r, ·], without a copy where there is one."""
    return _joined([one.flatten(0, 1) for one in factors], dim=0)


def _joined(parts: Sequence[Tensor], dim: int = 1) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)
