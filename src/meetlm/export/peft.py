"""Export to PEFT: a folder per level or mix, with ``adapter_config.json`` and ``adapter_model.safetensors``.

A mix of LoRAs is one LoRA: the factors of its levels one after the other, which is exact. A soft prompt is PEFT's
prompt tuning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from meetlm.config.errors import RunError
from meetlm.config.extras import require_extra
from meetlm.config.files import write_atomic
from meetlm.config.reporter import SILENT, Reporter
from meetlm.controls.base import Control
from meetlm.data.example import Weights
from meetlm.export.base import EXPORTERS, Export, Exporter
from meetlm.export.parity import ParityCase, ToolOutput
from meetlm.export.settings import ExportSettings
from meetlm.export.with_transformers import rendered_ids, reply_log_probs


@EXPORTERS.register("peft")
class PeftExporter(Exporter):
    """Writes a PEFT folder per level or mix, and the tokenizer with the run's chat template beside them."""

    tool = "transformers and PEFT"
    options = ("max_rank",)

    def failure_reason(self, export: Export) -> str | None:
        """Return why PEFT cannot express the control, or has nothing to load."""
        require_extra("peft", "peft", "--to peft")
        reason = peft_failure_reason(export.policy.control)
        if reason is None and not all(map(any, export.levels.values())):
            return "all weights of a level are 0, which is the base model"
        return reason

    def write(self, export: Export, *, reporter: Reporter = SILENT) -> None:
        """Write the folders."""
        del reporter
        for level, weights in export.levels.items():
            write_adapter(export.policy.control, weights, export.folder / level, export.base)
        export.format.exported_tokenizer().save_pretrained(export.folder)

    def read(self, export: Export, cases: Sequence[ParityCase]) -> Iterator[ToolOutput]:
        """Load each folder with PEFT onto the base model, and generate."""
        from peft import PeftModel

        base = export.base if Path(export.base).is_dir() else export.model  # a hub name is not downloaded
        tokenizer = AutoTokenizer.from_pretrained(export.folder)
        control, model, level = export.policy.control, None, None
        for case in cases:
            if case.level != level:
                lm = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
                model, level = PeftModel.from_pretrained(lm, export.folder / case.level).eval(), case.level
            ids = rendered_ids(tokenizer, case.prompt)
            log_probs = reply_log_probs(model, ids, case)
            yield ToolOutput((*control.slot(case.weights), *ids), log_probs.gather(1, case.candidates))

    def tolerance(self, settings: ExportSettings) -> float:
        """Return the tolerance of f32 arithmetic in another order."""
        del settings
        return 1e-3

    def usage(self, export: Export) -> str:
        """Return code that loads a level."""
        folder = export.folder / next(iter(export.levels))
        return (
            "from peft import AutoPeftModelForCausalLM\n"
            "from transformers import AutoTokenizer\n\n"
            f"model = AutoPeftModelForCausalLM.from_pretrained({str(folder)!r})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({str(export.folder)!r})"
        )


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
    folders = []
    for index, level in enumerate(control.levels):
        write_adapter(control, control.levels.weights([index]), folder / level, base)
        folders.append(folder / level)
    return folders


def write_adapter(control: Control, weights: Weights, folder: Path, base: str | Path) -> None:
    """Write a level or mix as a PEFT folder.

    Args:
        control: A control that PEFT can express.
        weights: Level weights [K].
        folder: The folder; created.
        base: As of :func:`export_levels`.
    """
    config: dict[str, Any] = {
        **(control.peft_config(weights) or {}),
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(control.adapter_state(weights), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


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
    if control.scope == "response":
        return "PEFT applies a LoRA to the prompt as well; this control has scope response"
    if control.settings.placement == "before_response":
        return "PEFT puts a soft prompt first; this control is placed before the response"
    if control.peft_config(control.levels.weights([0])) is None:
        return f"a control of kind {control.settings.kind!r} has no weights for PEFT to load"
    return None
