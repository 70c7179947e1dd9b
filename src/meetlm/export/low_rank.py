"""LoRA factors as PEFT names them: merged into a weight, or approximated at a smaller rank.

R rank. A is [R, in], B is [out, R]; the change of a weight is B·A times the LoRA's scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
"""What PEFT writes around the path of a layer."""


def factors(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the path of each layer, its A and its B."""
    for name in state:
        if name.endswith(A):
            path = name.removeprefix(PREFIX).removesuffix(A)
            yield path, state[name], state[f"{PREFIX}{path}{B}"]


def truncate(state: Mapping[str, Tensor], rank: int) -> tuple[dict[str, Tensor], float]:
    """Return the best approximation of B·A of each layer at a smaller rank, by SVD, and its relative error.

    The error is the Frobenius norm of what is left out, over that of the whole, across all layers.
    """
    truncated, left_out, whole = {}, 0.0, 0.0
    for path, a, b in factors(state):
        basis_b, rest_b = torch.linalg.qr(b.double())
        basis_a, rest_a = torch.linalg.qr(a.double().T)
        left, values, right = torch.linalg.svd(rest_b @ rest_a.T)
        root = values[:rank].sqrt()
        truncated[f"{PREFIX}{path}{A}"] = (root[:, None] * right[:rank] @ basis_a.T).to(a.dtype).contiguous()
        truncated[f"{PREFIX}{path}{B}"] = (basis_b @ left[:, :rank] * root).to(b.dtype).contiguous()
        left_out += float(values[rank:].square().sum())
        whole += float(values.square().sum())
    return truncated, (left_out / whole) ** 0.5 if whole else 0.0
