"""Each level of a control as a standard PEFT folder: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from meetlm.config.errors import RunError
from meetlm.controls.base import Control


def export_levels(control: Control, folder: Path, base: Path) -> list[Path]:
    """Write one PEFT folder a level.

    Args:
        control: With parameters.
        folder: Where; the levels' names are the folders in it.
        base: The model that the adapters belong to, for ``base_model_name_or_path``.

    Returns:
        The folders written.

    Raises:
        RunError: PEFT cannot express the control; says why (:func:`peft_failure_reason`).
    """
    why = peft_failure_reason(control)
    if why:
        raise RunError(f"no PEFT export: {why}")
    config = control.peft_config()
    assert config is not None
    written = []
    for index, level in enumerate(control.levels):
        target = folder / level
        target.mkdir(parents=True, exist_ok=True)
        save_file(control.level_state(index), target / "adapter_model.safetensors", metadata={"format": "pt"})
        full = {
            **config,
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(base),
            "inference_mode": True,
        }
        (target / "adapter_config.json").write_text(json.dumps(full, indent=2) + "\n")
        written.append(target)
    return written


def peft_failure_reason(control: Control) -> str | None:
    """Return why PEFT cannot express ``control``, or ``None`` where it can."""
    if control.peft_config() is not None:
        return None
    if control.settings.placement == "before_response":
        return "PEFT puts a prompt first; this control stands before the response"
    return f"a control of kind {control.settings.kind!r} has no weights for PEFT to load"
