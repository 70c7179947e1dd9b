"""A run on disk: what is written where, and ``meet.json``. Written beside its place, then renamed."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from meetlm.config.errors import RunError
from meetlm.config.files import write_atomic
from meetlm.controls.build import parse_control
from meetlm.data.prompt_format import FormatSpec
from meetlm.export.peft import export_levels, why_not_peft
from meetlm.policy.policy import Policy
from meetlm.recipes.config import RunConfig

MEET, CONFIG, MODEL, CONTROL, LEVELS = "meet.json", "config.yaml", "model", "control.safetensors", "controls"


@dataclass(frozen=True, slots=True)
class Meet:
    """``meet.json``: what :func:`meetlm.load` needs beside the weights.

    Attributes:
        run: The run's id: its folder's name and the start of its configuration's hash.
        kind: Of the control.
        levels: In the order of the stacked parameters.
        default_level: Used where none is asked for.
        control: The control's settings.
        lm_sha256: Of the language model that the control belongs to.
        format: The pinned prompt format.
        conversational: Whether prompts are conversations.
    """

    run: str
    kind: str
    levels: tuple[str, ...]
    default_level: str
    control: dict[str, Any]
    lm_sha256: str
    format: FormatSpec
    conversational: bool


def write_config(folder: Path, config: RunConfig, data_fingerprint: str) -> None:
    """Write the resolved configuration with versions, git hash and the data's fingerprint.

    Raises:
        RunError: The folder holds a run of another configuration or other data.
    """
    resolved = json.loads(config.model_dump_json())
    path = folder / CONFIG
    if path.exists():
        old = yaml.safe_load(path.read_text())
        for name, new in (("config", resolved), ("data_sha256", data_fingerprint)):
            if old.get(name) != new:
                raise RunError(f"{folder} holds a run with another {name}; choose another folder or remove it")
        return
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "config": resolved,
        "data_sha256": data_fingerprint,
        "versions": {name: version(name) for name in ("meetlm", "torch", "transformers", "accelerate", "datasets")},
        "python": platform.python_version(),
        "git": _git_hash(),
    }
    write_atomic(path, yaml.safe_dump(record, sort_keys=False))


def write_result(folder: Path, meet: Meet, policy: Policy, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the final model, the control, its levels as PEFT folders where PEFT can say them; last ``meet.json``."""
    partial = folder / f"{MODEL}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    policy.lm.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    partial.rename(folder / MODEL)
    state = {name: tensor.detach().contiguous() for name, tensor in policy.control.state_dict().items()}
    if state:
        save_file(state, folder / CONTROL)
    if why_not_peft(policy.control) is None:
        export_levels(policy.control, folder / LEVELS, (folder / MODEL).resolve())
    write_atomic(folder / MEET, json.dumps({**asdict(meet), "format": meet.format.to_dict()}, indent=2) + "\n")


def read_meet(folder: Path) -> Meet:
    """Return a finished run's ``meet.json``.

    Raises:
        RunError: There is none, or a part of the run is missing.
    """
    path = folder / MEET
    if not path.is_file():
        state = "is not a run" if not (folder / CONFIG).exists() else "is a run that has not finished"
        raise RunError(f"{folder} {state}: there is no {MEET} in it")
    fields = json.loads(path.read_text())
    meet = Meet(**{**fields, "levels": tuple(fields["levels"]), "format": FormatSpec.from_dict(fields["format"])})
    parse_control(meet.control)
    if not (folder / MODEL / "config.json").is_file():
        raise RunError(f"{folder / MODEL} is missing: the run's weights were dropped")
    return meet


def _git_hash() -> str | None:
    """Return the commit that the package's own checkout is at; ``None`` for an installed package."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
