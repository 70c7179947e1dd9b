"""Export to PEFT: a folder per level or mix, with ``adapter_config.json`` and ``adapter_model.safetensors``.

A mix of LoRAs is one LoRA: the factors of its levels one after the other, which is exact. A soft prompt is PEFT's
prompt tuning. A LoRA of scope ``response`` is PEFT's activated LoRA: it begins at the last occurrence of an invocation
token, which is the last token of every prompt. In ``generate`` this is exact. In a forward pass over prompt and reply a
reply that has the token moves the beginning, and a prompt without the token turns the LoRA off without a message.
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
from meetlm.controls.lora import LoRA
from meetlm.data.example import Weights
from meetlm.export.base import EXPORTERS, Export, Exporter
from meetlm.export.low_rank import truncate
from meetlm.export.parity import ParityCase, ToolOutput
from meetlm.export.settings import ExportSettings
from meetlm.export.with_transformers import rendered_ids, reply_logits


@EXPORTERS.register("peft")
class PeftExporter(Exporter):
    """Writes a PEFT folder per level or mix, and the tokenizer with the run's chat template beside them."""

    tool = "transformers and PEFT"
    library = "peft"
    options: tuple[str, ...] = ("max_rank",)
    names_base = True

    def failure_reason(self, export: Export) -> str | None:
        """Return why PEFT cannot express the control, or has nothing to load."""
        require_extra("peft", "peft", "--to peft")
        control = export.policy.control
        if not all(map(any, export.levels.values())):
            return "all weights of a level are 0, which is the base model"
        if export.settings.max_rank is not None and not isinstance(control, LoRA):
            return f"--max-rank has no effect on a control of kind {control.settings.kind!r}: leave it out"
        if control.scope == "response":
            return _activation_failure_reason(export)
        return peft_failure_reason(control)

    def write(self, export: Export, *, reporter: Reporter = SILENT) -> None:
        """Write the folders."""
        control, max_rank = export.policy.control, export.settings.max_rank
        begins_at = next(iter(export.last_tokens)) if control.scope == "response" else None
        for level, weights in export.levels.items():
            folder = export.folder / level
            error = write_adapter(control, weights, folder, export.base, max_rank=max_rank, begins_at=begins_at)
            if error:
                reporter.message(f"level {level}: rank {max_rank} leaves out {error:.2%} of the LoRA (Frobenius norm)")
        export.format.exported_tokenizer().save_pretrained(export.folder)

    def read(self, export: Export, cases: Sequence[ParityCase]) -> Iterator[ToolOutput]:
        """Load the base model and all folders with PEFT, and generate."""
        from peft import PeftModel

        base = export.base if Path(export.base).is_dir() else export.model  # a hub name is not downloaded
        tokenizer = AutoTokenizer.from_pretrained(export.folder)
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        adapters = {level: f"level-{number}" for number, level in enumerate(export.levels)}  # PEFT refuses a dot
        for level, adapter in adapters.items():
            if isinstance(model, PeftModel):
                model.load_adapter(str(export.folder / level), adapter)
            else:
                model = PeftModel.from_pretrained(model, export.folder / level, adapter).eval()
        for case in cases:
            model.set_adapter(adapters[case.level])
            ids = rendered_ids(tokenizer, case.prompt)
            log_probs = reply_logits(model, ids, case).log_softmax(dim=-1)
            yield ToolOutput((*export.policy.control.slot(case.weights), *ids), log_probs.gather(1, case.candidates))

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


def _activation_failure_reason(export: Export) -> str | None:
    """Return why PEFT's activated LoRA cannot begin where the run's does, at the last token of every prompt."""
    if len(export.last_tokens) == 1:
        return None
    return (
        f"PEFT's activated LoRA begins at a fixed token, and the held-out prompts end in {len(export.last_tokens)} "
        "different ones; train with scope all"
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


def write_adapter(
    control: Control,
    weights: Weights,
    folder: Path,
    base: str | Path,
    *,
    max_rank: int | None = None,
    begins_at: int | None = None,
) -> float:
    """Write a level or mix as a PEFT folder.

    Args:
        control: A control that PEFT can express.
        weights: Level weights [K].
        folder: The folder; created.
        base: As of :func:`export_levels`.
        max_rank: Largest rank of a LoRA; one of higher rank is approximated.
        begins_at: Token from which on a LoRA acts, at its last place in the prompt; ``None`` = on all tokens.

    Returns:
        The relative error of the approximation (Frobenius norm of all layers); 0 without any.
    """
    state, error = control.adapter_state(weights), 0.0
    config: dict[str, Any] = {
        **(control.peft_config(weights) or {}),
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "inference_mode": True,
    }
    if begins_at is not None:
        config["alora_invocation_tokens"] = [begins_at]
    if max_rank is not None and config["r"] > max_rank:
        state, error = truncate(state, max_rank)
        config |= {"r": max_rank, "lora_alpha": config["lora_alpha"] * max_rank / config["r"]}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return error


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
        return "a LoRA of scope response is an activated LoRA of PEFT, which `meet export RUN --to peft` writes"
    if control.peft_config(control.levels.weights([0])) is not None:
        return None
    if control.settings.placement == "before_response" and control.state_dict():
        return "PEFT puts a soft prompt first; this control is placed before the response"
    return f"a control of kind {control.settings.kind!r} has no weights for PEFT to load"
