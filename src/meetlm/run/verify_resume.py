"""Whether a killed run continues exactly: a short run without interruption beside one that is killed in every stage.

Both are processes of their own, started as a user starts them. What is compared is everything that a run leaves on
disk, but for wall-clock times: weights, optimizer, random states, metrics, preference accuracy, and the exported model.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers.trainer_pt_utils import safe_globals

from meetlm.config.errors import RunError
from meetlm.config.files import MANIFEST
from meetlm.config.reporter import SILENT, Reporter
from meetlm.recipes.config import RunConfig
from meetlm.run.folder import MEET
from meetlm.training.run_stage import DONE

CLOCK = ("seconds", "tokens_per_second", "generated_at", "speed")
"""Keys of values that a clock measures, which differ between two equal runs."""
PARTS = {
    "weights": r"\.safetensors$",
    "optimizer and scheduler": r"(optimizer|scheduler)\.pt$",
    "random states": r"\.pth$",
    "metrics": r"(metrics\.jsonl|preference\.json|trainer_state\.json|open_log\.json)$",
    "other files": "",
}
"""What a run's files hold, by patterns of their names; the first that matches counts."""
SAVE_STEPS = 2


@dataclass(frozen=True, slots=True)
class Comparison:
    """One part of two runs.

    Attributes:
        part: A key of :data:`PARTS`.
        num_files: Number of files in the uninterrupted run.
        hashes: Hash of the part in the uninterrupted and in the resumed run.
        differing: Names of the files that differ or that one run lacks.
    """

    part: str
    num_files: int
    hashes: tuple[str, str]
    differing: tuple[str, ...]


def file_hashes(folder: Path) -> dict[str, str]:
    """Return a hash of each file in a folder, by its relative name.

    Values of :data:`CLOCK` and the folder's own path are left out. Of torch's files the tensors and numbers count.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): _hash(path, folder) for path in files}


def compare(whole: Path, resumed: Path) -> list[Comparison]:
    """Compare the files of two runs."""
    runs = file_hashes(whole), file_hashes(resumed)
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for name in sorted(runs[0].keys() | runs[1].keys()):
        part = next(part for part, pattern in PARTS.items() if re.search(pattern, name))
        parts[part].append(name)
    comparisons = []
    for part, names in parts.items():
        left, right = ([(name, run[name]) for name in names if name in run] for run in runs)
        differing = tuple(name for name in names if runs[0].get(name) != runs[1].get(name))
        hashes = hashlib.sha256(repr(left).encode()).hexdigest(), hashlib.sha256(repr(right).encode()).hexdigest()
        comparisons.append(Comparison(part, len(left), hashes, differing))
    return comparisons


def verify_resume(
    config: RunConfig, folder: Path, *, steps: int = 6, reporter: Reporter = SILENT
) -> tuple[list[Comparison], list[str]]:
    """Train a short version of a configuration twice, once without interruption and once killed in every stage.

    Args:
        config: The configuration. Each stage has ``steps`` optimizer steps, on as many examples as half of them use.
        folder: Folder for the two runs.
        steps: Optimizer steps per stage.
        reporter: Shows what is being done.

    Returns:
        The comparison, and a line for each kill.

    Raises:
        RunError: A run fails.
    """
    file = folder / "config.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(_shortened(config, steps).model_dump(mode="json"), sort_keys=False))
    whole, resumed = (folder / name / "run" for name in ("uninterrupted", "resumed"))
    reporter.message("training without interruption")
    _finish(file, whole)
    kills = []
    for stage in config.stages:
        reporter.message(f"training; SIGKILL in {stage.name}")
        kills.append(_kill_in(stage.name, file, resumed, steps))
        reporter.message(kills[-1])
    reporter.message("continuing to the end")
    _finish(file, resumed)
    return compare(whole, resumed), kills


def _shortened(config: RunConfig, steps: int) -> RunConfig:
    """Return the configuration with few steps per stage, over two epochs of few examples."""
    fields = config.model_dump(mode="json")
    for stage in fields["stages"]:
        stage |= {"epochs": 1e-6, "min_steps": steps}
    fields["optim"]["epochs"] = None
    fields["batch"] |= {"save_steps": SAVE_STEPS, "keep_checkpoints": True, "report_to": []}
    examples = config.batch.pairs * -(-steps // 2)
    for key, most in (("limit_train", examples), ("limit_eval", 8)):
        stated = fields["data"][key]
        fields["data"][key] = most if stated is None else min(stated, most)
    return RunConfig.model_validate(fields)


def _start(file: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "meetlm", "train", "--config", str(file), "--out", str(out), "--quiet"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _finish(file: Path, out: Path) -> None:
    process = _start(file, out)
    _, messages = process.communicate()
    if process.returncode or not (out / MEET).is_file():
        raise RunError(f"the run in {out} ended with exit code {process.returncode}: {messages.strip()[-500:]}")


def _kill_in(stage: str, file: Path, out: Path, steps: int) -> str:
    """Kill a run with SIGKILL at a random moment of a stage, after a checkpoint, and return when that was."""
    last = random.randint(SAVE_STEPS + 1, steps - 1)
    metrics = out / stage / "metrics.jsonl"
    process = _start(file, out)
    while process.poll() is None and _num_lines(metrics) < last:
        time.sleep(0.001)
    process.kill()
    _, messages = process.communicate()
    if process.returncode >= 0 and process.returncode != 0:
        raise RunError(f"the run in {out} ended with exit code {process.returncode}: {messages.strip()[-500:]}")
    at = "after its last step" if (out / stage / DONE).is_file() else f"after step {_num_lines(metrics)} of {steps}"
    return f"{stage}: killed {at}"


def _num_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def _hash(file: Path, folder: Path) -> str:
    if file.suffix in (".pt", ".pth"):
        with safe_globals():  # type: ignore[no-untyped-call]
            state = torch.load(file, map_location="cpu", weights_only=True)
        parts = map(repr, _flat(state))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    contents = file.read_bytes()
    if file.suffix in (".json", ".jsonl"):
        text = contents.decode().replace(str(folder.resolve()), "RUN").replace(str(folder), "RUN")
        texts = text.splitlines() if file.suffix == ".jsonl" else [text]
        contents = json.dumps([_without_clock(json.loads(text)) for text in texts]).encode()
    return hashlib.sha256(contents).hexdigest()


def _without_clock(value: Any) -> Any:
    """Return a JSON value without the keys of :data:`CLOCK`."""
    if isinstance(value, dict):
        return {key: _without_clock(inner) for key, inner in value.items() if key not in CLOCK}
    return [_without_clock(inner) for inner in value] if isinstance(value, list) else value


def _flat(value: Any, path: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield each leaf of a nested state with its path; arrays as type, shape and a hash of their bytes."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _flat(inner, (*path, index))
    else:
        if isinstance(value, Tensor):
            value = value.contiguous().view(torch.uint8).numpy() if value.dim() else value.reshape(1).numpy()
        data = hashlib.sha256(value.tobytes()).hexdigest() if hasattr(value, "tobytes") else value
        yield (*path, str(getattr(value, "dtype", "")), getattr(value, "shape", ()), data)
