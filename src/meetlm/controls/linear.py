"""Linear layers that read one input, and what LoRA adds to them, as one node of the graph.

For layers i of one input x: y_i = x·W_i + b_i, and with LoRA + g ⊙ (x·A_iᵀ)·B_i, g the gate of each token. Layers of
one input (q, k and v; gate and up) are one node: one narrow product finds all their x·A_iᵀ, and the gradient of x is
one tensor that every layer adds to.

M tokens, n layers, K levels, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from meetlm.controls.low_rank import Reach
from meetlm.controls.products import add_product, onednn_is_faster, product

KINDS = (nn.Linear, Conv1D)
"""Layers that go forward as :class:`Layers` does; a class made of them may not."""
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers of one module that read the same input, and so can be one node. That they do is seen as they run."""


@dataclass(frozen=True, slots=True)
class Layers:
    """Linear layers of one input and what LoRA adds to them, if anything.

    Attributes:
        modules: ``nn.Linear``, or all transformers' ``Conv1D``, whose weights are [in, out].
        down: A of each, [K, r, in]; empty without LoRA.
        up: B of each, [K, r, out]; empty without LoRA.
    """

    modules: Sequence[nn.Module]
    down: Sequence[Tensor] = ()
    up: Sequence[Tensor] = ()

    def forward(self, x: Tensor, reach: Reach | None = None) -> tuple[Tensor, ...]:
        """Return y_i [R, T, out] for x [R, T, in], in autocast's type where it is on, else in that of the weights."""
        kind = x.device.type
        weights = [cast(Tensor, layer.weight) for layer in self.modules]
        biases = [cast(Tensor | None, layer.bias) for layer in self.modules]
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weights[0].dtype
        tensors = [None if one is None else one.to(dtype) for one in (*weights, *biases, *self.down, *self.up)]
        transposed = isinstance(self.modules[0], Conv1D)
        with torch.autocast(kind, enabled=False):
            outputs: tuple[Tensor, ...] = _Node.apply(  # type: ignore[no-untyped-call]
                x.flatten(0, -2).to(dtype), reach, len(weights), transposed, *tensors
            )
        return tuple(one.view(*x.shape[:-1], -1) for one in outputs)


class _Node(torch.autograd.Function):
    """The arithmetic of :class:`Layers` over x [M, in], and its derivative."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, reach: Reach | None, count: int, transposed: bool, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        weights, biases, downs, ups = _groups(tensors, count)
        lows = reach.down(x, downs) if reach else []
        outputs = []
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            y = product(x, weight.T if transposed else weight, bias)
            if reach:
                reach.add_up(y, [lows[i]], [ups[i]])
            outputs.append(y)
        needs_x = any(ctx.needs_input_grad[4 : 4 + count]) or reach is not None
        ctx.save_for_backward(x if needs_x else None, *lows, *weights, *downs, *ups)
        ctx.reach, ctx.transposed = reach, transposed
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Any, ...]:
        count, reach = len(outer), ctx.reach
        x, *saved = ctx.saved_tensors
        lows, saved = (saved[:count], saved[count:]) if reach else ([], saved)
        weights, downs, ups, _ = _groups(saved, count)
        wants_x, *wanted = ctx.needs_input_grad
        of_weights, of_biases, of_downs, of_ups = _groups(wanted[3:], count)
        dx: Tensor | None = None
        gradients: list[Tensor | None] = [None] * len(wanted[3:])
        low_gradients, reached = [], []
        for i, dy in enumerate(outer):
            if dy is None:
                continue
            reached.append(i)
            if reach:
                low_gradients += reach.down(dy, [ups[i]])
            if wants_x:
                left = weights[i] if ctx.transposed else weights[i].T
                dx = product(dy, left) if dx is None else add_product(dx, dy, left)
            if of_weights[i]:
                gradients[i] = product(x.T, dy.T) if ctx.transposed else product(dy.T, x.T)
            if of_biases[i]:
                gradients[count + i] = dy.sum(dim=0)
            if reach and of_ups[i]:
                (gradients[3 * count + i],) = reach.outer([lows[i]], dy, [ups[i]])
        if reach and dx is not None:
            reach.add_up(dx, low_gradients, [downs[i] for i in reached])
        if reach and any(of_downs[i] for i in reached):
            found = reach.outer(low_gradients, x, [downs[i] for i in reached])
            for i, gradient in zip(reached, found, strict=True):
                gradients[2 * count + i] = gradient
        return dx, None, None, None, *gradients


def _groups(values: Sequence[Any], count: int) -> list[list[Any]]:
    """Return four groups of ``count`` values, the last ones empty where there are no more."""
    return [list(values[start : start + count]) for start in range(0, 4 * count, count)]


class Together:
    """The forward of layers that read one input: the first to be called computes all, the others take theirs.

    Args:
        compute: Returns the output of each for an input.
    """

    def __init__(self, compute: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        self._compute = compute
        self._input: Tensor | None = None
        self._ready: dict[int, Tensor] = {}

    def __call__(self, place: int, x: Tensor) -> Tensor:
        """Return the output of the layer at ``place`` for x [R, T, in]."""
        if self._input is not x or place not in self._ready:
            self._input, self._ready = x, dict(enumerate(self._compute(x)))
        output = self._ready.pop(place)
        if not self._ready:
            self._input = None
        return output


def join(layers: Mapping[str, nn.Module], compute: Callable[[list[str], Tensor], tuple[Tensor, ...]]) -> None:
    """Replace how layers go forward.

    Args:
        layers: By module path.
        compute: Returns the output of each of some of the paths, which read one input, for that input.
    """
    for paths in _siblings(layers):
        together = Together(partial(compute, paths))
        for place, path in enumerate(paths):
            layers[path].forward = partial(together, place)


def use_fast_products(model: PreTrainedModel) -> None:
    """Replace how the linear layers of ``model`` go forward, where torch's own way is not the fastest here.

    Layers that go forward in a way of their own already, as LoRA's do, are left.
    """
    if model.device.type != "cpu" or not onednn_is_faster():
        return
    layers = {
        path: layer for path, layer in model.named_modules() if type(layer) in KINDS and "forward" not in vars(layer)
    }
    join(layers, partial(_plain, layers))


def _plain(layers: Mapping[str, nn.Module], paths: list[str], x: Tensor) -> tuple[Tensor, ...]:
    return Layers([layers[path] for path in paths]).forward(x)


def _siblings(targets: Iterable[str]) -> list[list[str]]:
    """Return module paths in groups: those that ``SIBLINGS`` names together in one parent, every other one alone."""
    groups: dict[tuple[str, object], list[str]] = {}
    for path in targets:
        parent, _, name = path.rpartition(".")
        family = next((names for names in SIBLINGS if name in names), name)
        groups.setdefault((parent, family), []).append(path)
    return list(groups.values())
