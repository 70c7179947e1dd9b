"""Export to vLLM: a PEFT folder per level or mix, and the command that serves them.

vLLM requires another version of transformers than meetlm, so both cannot be in one environment. The check runs vLLM in
its own environment, whose Python is an option; without it, transformers and PEFT read the folders.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from meetlm.config.errors import ConfigError, RunError
from meetlm.controls.lora import LoRA
from meetlm.export.base import EXPORTERS, Export
from meetlm.export.parity import ParityCase, ToolOutput
from meetlm.export.peft import PeftExporter
from meetlm.export.settings import ExportSettings

MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that ``vllm serve --max-lora-rank`` accepts."""
READER = Path(__file__).with_name("vllm_reader.py")


@EXPORTERS.register("vllm")
class VllmExporter(PeftExporter):
    """Writes what the exporter to PEFT writes, and refuses what vLLM does not load."""

    library = "vllm"
    options = ("max_rank", "vllm")

    def tool_name(self, settings: ExportSettings) -> str:
        """Return ``vLLM`` if the check runs it."""
        return "vLLM" if settings.vllm else "transformers and PEFT (without --vllm, vLLM itself is not run)"

    def failure_reason(self, export: Export) -> str | None:
        """Return why vLLM cannot load the levels.

        Raises:
            ConfigError: ``--vllm`` is no Python that has vLLM.
        """
        control = export.policy.control
        if not isinstance(control, LoRA):
            return f"vLLM serves LoRAs, and the control is of kind {control.settings.kind!r}: serve --to merged"
        if control.scope == "response":
            return "vLLM has no activated LoRA, which scope response requires: train with scope all"
        if max_lora_rank(export) is None:
            return f"vLLM loads LoRAs of rank {MAX_LORA_RANKS[-1]} at most, and a level or mix has more: use --max-rank"
        if export.settings.vllm is not None:
            _check_python(export.settings.vllm)
        return super().failure_reason(export)

    def read(self, export: Export, cases: Sequence[ParityCase]) -> Iterator[ToolOutput]:
        """Load the model and the LoRAs with vLLM, or with PEFT where no vLLM is stated."""
        return super().read(export, cases) if export.settings.vllm is None else _read_with_vllm(export, cases)

    def tolerance(self, settings: ExportSettings) -> float:
        """Return the tolerance of f32 arithmetic: of vLLM's kernels, or of PEFT."""
        return 0.01 if settings.vllm else super().tolerance(settings)

    def usage(self, export: Export) -> str:
        """Return the command that serves the model with all exported levels, and a request."""
        names = {level: json.dumps({"name": level, "path": str(export.folder / level)}) for level in export.levels}
        model = next(iter(names))
        path = "/v1/chat/completions" if export.is_chat else "/v1/completions"
        prompt = {"messages": [{"role": "user", "content": "Hello!"}]} if export.is_chat else {"prompt": "…"}
        return (
            f"vllm serve {shlex.quote(export.base)} --tokenizer {shlex.quote(str(export.folder))} --enable-lora "
            f"--max-lora-rank {max_lora_rank(export)} --max-loras {len(names)} "
            f"--lora-modules {' '.join(map(shlex.quote, names.values()))}\n\n"
            f"curl http://127.0.0.1:8000{path} -H 'Content-Type: application/json' -d "
            + shlex.quote(json.dumps({"model": model, **prompt}, ensure_ascii=False))
        )


def max_lora_rank(export: Export) -> int | None:
    """Return the smallest value of ``--max-lora-rank`` that all exported LoRAs fit; ``None`` if there is none."""
    control = export.policy.control
    assert isinstance(control, LoRA)
    rank = max(sum(map(bool, weights)) for weights in export.levels.values()) * control.rank
    if export.settings.max_rank is not None:
        rank = min(rank, export.settings.max_rank)
    return next((accepted for accepted in MAX_LORA_RANKS if accepted >= rank), None)


def _check_python(python: Path) -> None:
    try:
        done = subprocess.run([python, "-I", "-c", "import vllm"], capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise ConfigError(
            f"--vllm {python}: {error.strerror}; expected the Python of an environment with vLLM"
        ) from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ConfigError(f"--vllm {python} cannot import vLLM ({reason}); install vLLM in an environment of its own")


def _read_with_vllm(export: Export, cases: Sequence[ParityCase]) -> Iterator[ToolOutput]:
    """Run :data:`READER` with the stated Python.

    Raises:
        RunError: vLLM fails.
    """
    engine = {
        "model": export.base if Path(export.base).is_dir() else str(export.model),  # a hub name is not downloaded
        "tokenizer": str(export.folder),
        "dtype": "float32",
        "enforce_eager": True,
        "enable_lora": True,
        "max_lora_rank": max_lora_rank(export),
        "max_loras": len(export.levels),
        "max_model_len": max(len(case.ids) + len(case.reply) for case in cases) + 8,
        "max_num_seqs": 1,
    }
    jobs = [
        {
            **({"messages": case.prompt.messages()} if case.prompt.is_chat else {"text": case.prompt.text()}),
            "lora": str(export.folder / case.level),
            "reply": case.reply,
            "candidates": case.candidates.tolist(),
        }
        for case in cases
    ]
    with TemporaryDirectory() as temporary:
        asked, answered = Path(temporary) / "cases.json", Path(temporary) / "results.json"
        asked.write_text(json.dumps({"engine": engine, "cases": jobs}), encoding="utf-8")
        command = [str(export.settings.vllm), "-I", str(READER), str(asked), str(answered)]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=offline)
        if done.returncode:
            raise RunError("\n  ".join(["vLLM fails on the export:", *done.stderr.strip().splitlines()[-5:]]))
        results = json.loads(answered.read_text(encoding="utf-8"))
    for result in results:
        yield ToolOutput(tuple(result["ids"]), torch.tensor(result["log_probs"]))
