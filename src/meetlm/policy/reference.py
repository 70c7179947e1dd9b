"""Log-probs under a reference policy: computed once, before training changes anything, and cached on disk.

The reference is the policy as it is at that time, so no second model is in memory. The cache key is a hash of the
model and the data.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from meetlm.config.reporter import SILENT, Reporter
from meetlm.config.world import World
from meetlm.data.encoding import Encoded
from meetlm.policy.fingerprint import sha256_of
from meetlm.policy.loading import cache_dir
from meetlm.policy.policy import Policy


def reference_logps(
    policy: Policy,
    sequences: Sequence[Encoded],
    folder: Path | None = None,
    *,
    reporter: Reporter = SILENT,
) -> Tensor:
    """Return log p(y|x, level) [S] f64, in nats, of sequences under ``policy`` as it is, cached.

    Args:
        policy: The reference; it is not changed.
        sequences: Sequences of one completion each.
        folder: Folder of the cache; by default ``reference`` in :func:`cache_dir`.
        reporter: Shows the progress.
    """
    file = (folder or cache_dir() / "reference") / f"{_key(policy, sequences)}.safetensors"
    world = World.current()
    stored = world.from_main(lambda: load_file(file)["logps"] if file.is_file() else None)
    if stored is not None:
        return stored
    logps, _ = policy.score(sequences, reporter=reporter)
    if world.is_main:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        save_file({"logps": logps}, partial)
        partial.replace(file)
    return logps


def _key(policy: Policy, sequences: Sequence[Encoded]) -> str:
    """Return a hash of weights, device (rounding differs), layout and all tokens.

    The control is included only where a token has level weights that are not zero.
    """
    uses_control = any(any(span.weights) for sequence in sequences for span in sequence.spans)
    parts = [sha256_of(policy.lm), policy.device.type, policy.layout]
    if uses_control:
        parts += [sha256_of(policy.control), policy.control.settings.model_dump_json()]
    for sequence in sequences:
        (span,) = sequence.spans
        parts.append(repr((sequence.ids, span.start, span.weights if uses_control else ())))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
