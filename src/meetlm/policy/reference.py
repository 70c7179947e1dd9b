"""Log-probs under a reference: computed once, before anything moves, and kept by a hash of model and data.

No second model is in memory: the reference is the policy itself as it is now.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from meetlm.config.reporter import SILENT, Reporter
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
    """Return log p(y|x, level) [S] f64 of sequences under ``policy`` as it is, from the cache where it is there.

    Args:
        policy: The reference; left as it was.
        sequences: Of one completion each.
        folder: The cache; ``reference`` in :func:`cache_dir` by default.
        reporter: Shows the number of sequences that are scored.
    """
    file = (folder or cache_dir() / "reference") / f"{_key(policy, sequences)}.safetensors"
    if file.is_file():
        return load_file(file)["logps"]
    logps, _ = policy.score(sequences, reporter=reporter)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    save_file({"logps": logps}, partial)
    partial.replace(file)
    return logps


def _key(policy: Policy, sequences: Sequence[Encoded]) -> str:
    """Hash of weights, device (rounding differs) and every token; of the control only where a token obeys it."""
    controlled = any(any(span.weights) for sequence in sequences for span in sequence.spans)
    parts = [sha256_of(policy.lm), policy.device.type, policy.layout]
    if controlled:
        parts += [sha256_of(policy.control), policy.control.settings.model_dump_json()]
    for sequence in sequences:
        (span,) = sequence.spans
        parts.append(repr((sequence.ids, span.start, span.weights if controlled else ())))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
