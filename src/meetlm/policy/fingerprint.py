"""Hashes of weights: they identify the model that a cached number or a control belongs to.

A large model takes minutes to hash, so each state of its weights is hashed once: a hash stays in memory until a
checksum changes, which costs a tenth of the time; the hash of a model as loaded stays on disk until its files change.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import Tensor, nn

from meetlm.config.files import write_atomic

State = tuple[tuple[str, torch.dtype, int, int, int], ...]
"""Name, dtype, address, version counter and checksum of each tensor. Fused optimizers do not raise the counter."""

WEIGHT_FILES = ("*.safetensors", "*.bin", "config.json")


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A module as it was loaded: its state then, and the file on disk that holds its hash."""

    state: State
    cache: Path


_HASHES: WeakKeyDictionary[nn.Module, tuple[State, str]] = WeakKeyDictionary()
_LOADED: WeakKeyDictionary[nn.Module, _Loaded] = WeakKeyDictionary()


def sha256_of(module: nn.Module) -> str:
    """Return a hash of every parameter and buffer of a module, names included."""
    state = _state(module)
    cached = _HASHES.get(module)
    if cached is not None and cached[0] == state:
        return cached[1]
    loaded = _LOADED.get(module)
    cache = loaded.cache if loaded is not None and loaded.state == state else None
    if cache is not None and cache.is_file():
        sha256 = cache.read_text()
    else:
        sha256 = _digest(module)
        if cache is not None:
            with suppress(OSError):  # a cache that cannot be written only costs time
                cache.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(cache, sha256)
    _HASHES[module] = state, sha256
    return sha256


def remember_files(module: nn.Module, model: Path, cache: Path) -> None:
    """Keep the hash of a module that was just loaded in ``cache``, under the size and time of each of its files.

    Args:
        module: As loaded, unchanged.
        model: The folder of the files that it was loaded from.
        cache: Folder of the hashes; created when the first hash is computed.
    """
    files = sorted(file for pattern in WEIGHT_FILES for file in model.glob(pattern))
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    dtypes = sorted({str(tensor.dtype) for tensor in module.state_dict().values()})
    key = json.dumps([str(model.resolve()), transformers.__version__, dtypes, stats])
    _LOADED[module] = _Loaded(_state(module), cache / hashlib.sha256(key.encode()).hexdigest())


def _state(module: nn.Module) -> State:
    tensors = module.state_dict().items()
    return tuple((name, t.dtype, t.data_ptr(), t._version, _checksum(t)) for name, t in tensors)


def _checksum(tensor: Tensor) -> int:
    """Return the sum of a tensor's bytes, eight at a time."""
    data = _bytes(tensor)
    num_aligned = len(data) // 8 * 8
    return int(data[:num_aligned].view(torch.int64).sum()) + int(data[num_aligned:].sum())


def _bytes(tensor: Tensor) -> Tensor:
    data = tensor.detach().contiguous().flatten().view(torch.uint8)
    return data.clone() if data.storage_offset() % 8 else data  # to be read as int64


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        data: Any = _bytes(tensor.cpu()).numpy()
        digest.update(data)
    return digest.hexdigest()
