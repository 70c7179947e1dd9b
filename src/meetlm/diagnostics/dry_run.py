"""Runs tensor code for its memory alone: floating-point tensors have shapes and no data, so any size fits anywhere.

What is left real are integers and booleans (ids, positions, masks): code may look at them. The operators are those
that would run, below autograd, so what is kept for backward, recomputed under gradient checkpointing or cast under
autocast is what training keeps, recomputes and casts, for every architecture. Not seen is what a kernel takes for
itself while it runs, and what the memory allocator wastes (``allocator``).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from meetlm.diagnostics.allocator import NOTE

aten = torch.ops.aten
_INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
"""Operators whose second argument may hold masks: how many elements they choose is in their data."""

Event = tuple[int, int]
"""A block's key and its bytes as it is taken, or its key and -1 as it is given back; ``NOTE`` is the key of a note."""


class DryRun(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that live while it is active; those of :meth:`hollow` modules have no data.

    Attributes:
        live: Bytes of the tensors that live now.
        peak: Most bytes at a time since :meth:`forget_peak`.
        copies: Bytes that live now of copies of parameters in another type, such as autocast's.
        peak_without_copies: Most bytes at a time, ``copies`` left out.
        events: What was taken and given back, in order.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.copies = self.peak_without_copies = 0
        self.events: list[Event] = []
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._parameters: set[int] = set()
        self._number = 0

    def hollow(self, module: nn.Module) -> None:
        """Replace every parameter and buffer of ``module`` by one without data on the CPU, tied ones by one.

        Args:
            module: Such as a model on the device ``meta``. Nothing of it requires a gradient afterwards.
        """
        made: dict[int, Tensor] = {}
        for part in module.modules():
            for kept in (part._parameters, part._buffers):
                for name, tensor in kept.items():
                    if tensor is not None:
                        if id(tensor) not in made:
                            made[id(tensor)] = self._hollow(tensor)
                        kept[name] = made[id(tensor)]  # type: ignore[assignment]

    def watch(self, module: nn.Module) -> None:
        """Count what ``module`` holds already: a real one, to compare with."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._take(tensor, parameter=isinstance(tensor, nn.Parameter))

    def forget_peak(self) -> None:
        """Let the peaks start again from what lives now."""
        self.peak, self.peak_without_copies = self.live, self.live - self.copies

    def note(self, phase: int) -> None:
        """Note among the events what begins here: ``FORWARD``, ``BACKWARD`` or neither, ``DONE``."""
        self.events.append((NOTE, phase))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, on what has no data for its shapes alone, and count what it makes."""
        kwargs = dict(kwargs or {})
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if any(isinstance(one, FakeTensor) for one in given):
            if func in _INDEXED:
                args = (args[0], _places(args[1]), *args[2:])
            args, kwargs = tree_map_only(Tensor, self._like, (args, kwargs))
            made = self._shaped(func, args, kwargs)
        elif given:
            made = func(*args, **kwargs)
        else:
            made = self._shaped(func, args, kwargs)
            if not any(one.is_floating_point() for one in tree_leaves(made) if isinstance(one, Tensor)):
                made = func(*args, **kwargs)
        copies = func is aten._to_copy.default and self._of_parameter(given[0])
        for one in tree_leaves(made):
            if isinstance(one, Tensor):
                self._take(one, copy=copies)
        return made

    def _shaped(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._fake:
            return func(*args, **kwargs)

    def _like(self, tensor: Tensor) -> Tensor:
        """Return a tensor without data for a real one; a number stays, as it may have any device and type."""
        if isinstance(tensor, FakeTensor) or tensor.dim() == 0:
            return tensor
        with self._fake:
            return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)

    def _hollow(self, tensor: Tensor) -> Tensor:
        with self._fake:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        kept = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
        self._take(kept, parameter=isinstance(tensor, nn.Parameter))
        return kept

    def _of_parameter(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        return storage in self._known and self._known[storage] in self._parameters

    def _take(self, tensor: Tensor, *, parameter: bool = False, copy: bool = False) -> None:
        """Count a tensor's storage, if it is new, until it dies."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._number += 1
        key, size = self._number, storage.nbytes()
        self._known[storage] = key
        if parameter:
            self._parameters.add(key)
        weakref.finalize(storage, self._drop, key, size, size if copy else 0).atexit = False
        self.live += size
        self.copies += size if copy else 0
        self.peak = max(self.peak, self.live)
        self.peak_without_copies = max(self.peak_without_copies, self.live - self.copies)
        self.events.append((key, size))

    def _drop(self, key: int, size: int, copied: int) -> None:
        self.live -= size
        self.copies -= copied
        self.events.append((key, -1))


def _places(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Return indices with each real mask as the places that it chooses."""
    places: list[Tensor | None] = []
    for one in indices:
        if one is not None and not isinstance(one, FakeTensor) and one.dtype == torch.bool:
            places += one.nonzero().unbind(1)
        else:
            places.append(one)
    return places


class CudaAutocast(TorchFunctionMode):
    """Makes autocast of the CPU keep the types that autocast of CUDA does: its list of what runs in f32 is longer.

    PyTorch documents the list ("Ops that can autocast to float32"); here are those that models are made of.
    """

    _F32 = frozenset(
        {"pow", "__pow__", "__rpow__", "rsqrt", "reciprocal", "exp", "log", "sum", "cumsum", "prod", "norm"}
        | {"softmax", "log_softmax", "softplus", "layer_norm", "group_norm", "cross_entropy", "nll_loss"}
    )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call ``func``, with bf16 arguments as f32 where it is on the list."""
        if torch.is_autocast_enabled("cpu") and getattr(func, "__name__", "") in self._F32:
            args, kwargs = tree_map_only(Tensor, _f32, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _f32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
