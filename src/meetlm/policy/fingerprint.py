"""Hashes of weights: what a cached number or a control belongs to."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def sha256_of(module: nn.Module) -> str:
    """Return a hash of every parameter and buffer of a module, names included."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
