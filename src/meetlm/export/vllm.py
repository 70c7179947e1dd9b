"""Export to vLLM: a PEFT folder per level or mix, and the command that serves them.

vLLM requires another version of transformers than meetlm, so both cannot be in one environment: the check reads the
folders with transformers and PEFT, and vLLM's rules for adapters are checked by their documentation (vLLM 0.32).
"""

from __future__ import annotations

import json
import shlex

from meetlm.controls.lora import LoRA
from meetlm.export.base import EXPORTERS, Export
from meetlm.export.peft import PeftExporter

MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that ``vllm serve --max-lora-rank`` accepts."""


@EXPORTERS.register("vllm")
class VllmExporter(PeftExporter):
    """Writes what the exporter to PEFT writes, and refuses what vLLM does not load."""

    tool = "transformers and PEFT (vLLM itself was not run)"
    library = "vllm"

    def failure_reason(self, export: Export) -> str | None:
        """Return why vLLM cannot load the levels."""
        control = export.policy.control
        if not isinstance(control, LoRA):
            return f"vLLM serves LoRAs, and the control is of kind {control.settings.kind!r}: serve --to merged"
        if control.scope == "response":
            return "vLLM has no activated LoRA, which scope response requires: train with scope all"
        if max_lora_rank(export) is None:
            return f"vLLM loads LoRAs of rank {MAX_LORA_RANKS[-1]} at most, and a level or mix has more: use --max-rank"
        return super().failure_reason(export)

    def usage(self, export: Export) -> str:
        """Return the command that serves the model with all exported levels, and a request."""
        names = {level: json.dumps({"name": level, "path": str(export.folder / level)}) for level in export.levels}
        model = next(iter(names))
        return (
            f"vllm serve {shlex.quote(export.base)} --tokenizer {shlex.quote(str(export.folder))} --enable-lora "
            f"--max-lora-rank {max_lora_rank(export)} --max-loras {len(names)} "
            f"--lora-modules {' '.join(map(shlex.quote, names.values()))}\n\n"
            "curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d "
            + shlex.quote(json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}]}))
        )


def max_lora_rank(export: Export) -> int | None:
    """Return the smallest value of ``--max-lora-rank`` that all exported LoRAs fit; ``None`` if there is none."""
    control = export.policy.control
    assert isinstance(control, LoRA)
    rank = max(sum(map(bool, weights)) for weights in export.levels.values()) * control.rank
    if export.settings.max_rank is not None:
        rank = min(rank, export.settings.max_rank)
    return next((accepted for accepted in MAX_LORA_RANKS if accepted >= rank), None)
