"""Export of each level as a standard PEFT folder: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save_file

from meetlm.config.errors import RunError
from meetlm.config.files import write_atomic
from meetlm.controls.base import Control


def export_levels(control: Control, folder: Path, base: str | Path) -> list[Path]:
    """Write one PEFT folder per level.

    Args:
        control: A control with parameters.
        folder: The parent folder; each level's folder has the level's name.
        base: Hub name or absolute path of the model that the adapters belong to, for ``base_model_name_or_path``.

    Returns:
        The folders written.

    Raises:
        RunError: PEFT cannot express the control (:func:`peft_failure_reason`).
    """
    reason = peft_failure_reason(control)
    if reason:
        raise RunError(f"no PEFT export: {reason}")
    config = control.peft_config()
    assert config is not None
    folders = []
    for index, level in enumerate(control.levels):
        level_folder = folder / level
        level_folder.mkdir(parents=True, exist_ok=True)
        weights = level_folder / "adapter_model.safetensors"
        save_file(control.level_state(index), weights, metadata={"format": "pt"})
        adapter_config = {
            **config,
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(base),
            "inference_mode": True,
        }
        (level_folder / "adapter_config.json").write_text(json.dumps(adapter_config, indent=2) + "\n")
        folders.append(level_folder)
    return folders


def update_base_paths(folder: Path, base: Path) -> None:
    """Write where the base model is now into the levels' folders, if the run was moved since they were written.

    PEFT's Auto classes load the model from this path; a relative path would depend on the reader's working directory.
    The name of a model on the hub stays.
    """
    for file in folder.glob("*/adapter_config.json"):
        adapter_config = json.loads(file.read_text(encoding="utf-8"))
        recorded = adapter_config["base_model_name_or_path"]
        if Path(recorded).is_absolute() and recorded != str(base):
            adapter_config["base_model_name_or_path"] = str(base)
            with suppress(OSError):  # a run on a read-only disk still generates
                write_atomic(file, json.dumps(adapter_config, indent=2) + "\n")


def peft_failure_reason(control: Control) -> str | None:
    """Return why PEFT cannot express ``control``; ``None`` if it can."""
    if control.peft_config() is not None:
        return None
    if control.scope == "response":
        return "PEFT applies a LoRA to the prompt as well; this control has scope response"
    if control.settings.placement == "before_response":
        return "PEFT puts a soft prompt first; this control is placed before the response"
    return f"a control of kind {control.settings.kind!r} has no weights for PEFT to load"
