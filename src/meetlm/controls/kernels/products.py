"""Matrix products of linear layers, by the library that is faster on this processor.

torch computes f32 products on CPUs with MKL, which does not use AVX-512 on processors of other makers: on an AMD
processor it reached 0.45 of the speed of oneDNN; on an older one, where AVX-512 is no faster, 0.95
(LOG.md, 2026-11-25). torch includes oneDNN, but its own layers do not use it for f32. The choice depends on
the processor only, so that a run can be repeated bit for bit.

M rows.
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
"""Up to this many columns of x, MKL adds a product in place: oneDNN would first make a tensor of y's size."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x·weightᵀ + bias, [M, out]. For autograd functions only: the result may have no graph.

    Args:
        x: [M, in], of any strides.
        weight: [out, in], of any strides.
        bias: [out] or ``None``.
    """
    if _uses_onednn(x):
        if not (weight.is_contiguous() or weight.T.is_contiguous()):
            weight = weight.contiguous()  # oneDNN has no kernel for gaps between rows: 1000 times slower
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y
    return functional.linear(x, weight, bias)


def add_product(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Add x·weightᵀ to y [M, out] in place and return it; see :func:`product`."""
    if _uses_onednn(x) and x.shape[1] > NARROW:
        return y.add_(product(x, weight))
    return y.addmm_(x, weight.T)


def _uses_onednn(x: Tensor) -> bool:
    # oneDNN has no product over zero columns, such as the gradient of a weight that no token reached.
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[1] > 0 and onednn_is_faster()


@lru_cache(maxsize=1)
def onednn_is_faster() -> bool:
    """Whether f32 products on this CPU use oneDNN: it has AVX-512 and is not an Intel processor."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and not _is_by_intel()
    )


def _is_by_intel() -> bool:
    try:
        description = CPUINFO.read_text()
    except OSError:  # not Linux
        description = platform.processor()
    return "GenuineIntel" in description
