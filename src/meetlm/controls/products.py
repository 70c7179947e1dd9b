"""Matrix products of linear layers, by the library that is fast on this processor.

torch takes f32 products on the CPU to MKL, which leaves AVX-512 of other makers' processors unused: on one by AMD it
reached 0.45 of what oneDNN does, on an older one, no faster with AVX-512, 0.95 (LOG.md, 2026-11-25). oneDNN
is in torch as well, but torch's own layers take nothing in f32 there. Which library is taken depends on the processor
alone, so that a run can be repeated bit for bit.
"""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

CPUINFO = Path("/proc/cpuinfo")
NARROW = 16
"""Most columns of x with which a product is added in place by MKL: oneDNN would make a tensor as large as y first."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x·weightᵀ + bias, [M, out]. For nodes that know their gradient: there may be no graph.

    Args:
        x: [M, in], of any strides.
        weight: [out, in], of any strides.
        bias: [out] or none.
    """
    if _by_onednn(x):
        if not (weight.is_contiguous() or weight.T.is_contiguous()):
            weight = weight.contiguous()  # a thousand times slower else: oneDNN has no kernel for gaps between rows
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return found
    return functional.linear(x, weight, bias)


def add_product(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Add x·weightᵀ to y [M, out] in place and return it; see :func:`product`."""
    if _by_onednn(x) and x.shape[1] > NARROW:
        return y.add_(product(x, weight))
    return y.addmm_(x, weight.T)


def _by_onednn(x: Tensor) -> bool:
    # It has no product over nothing: the gradient of a weight that no token reached.
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[1] > 0 and onednn_is_faster()


@lru_cache(maxsize=1)
def onednn_is_faster() -> bool:
    """Whether f32 products on this CPU go to oneDNN: it has AVX-512 and is not by Intel."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and not _is_by_intel()
    )


def _is_by_intel() -> bool:
    try:
        maker = CPUINFO.read_text()
    except OSError:  # no Linux: its name has the maker's
        maker = platform.processor()
    return "GenuineIntel" in maker
