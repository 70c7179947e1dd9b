"""A run on disk: what is written where, and ``meet.json``. Written beside its place, then renamed."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from meetlm.config.errors import RunError
from meetlm.config.files import sync, write_atomic
from meetlm.config.versions import git_hash, versions
from meetlm.config.yaml_files import check, read_yaml
from meetlm.controls.build import parse_control
from meetlm.data.prompt_format import FormatSpec
from meetlm.data.settings import DataSettings
from meetlm.export.peft import export_levels, peft_failure_reason
from meetlm.policy.policy import Policy
from meetlm.recipes.config import RunConfig

MEET, CONFIG, MODEL, CONTROL, LEVELS = "meet.json", "config.yaml", "model", "control.safetensors", "controls"

EXECUTION_ONLY = (
    "batch.micro_pairs",
    "batch.save_steps",
    "batch.log_steps",
    "batch.report_to",
    "model.device",
    "model.gradient_checkpointing",
)
"""Keys that say how a run is carried out and not what comes of it: they may change when it goes on."""


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
        source: Name of the data source that the run was trained on: how a bare prompt is to be put.
    """

    run: str
    kind: str
    levels: tuple[str, ...]
    default_level: str
    control: dict[str, Any]
    lm_sha256: str
    format: FormatSpec
    conversational: bool
    source: str


def write_config(folder: Path, config: RunConfig, data_fingerprint: str, pinned: dict[str, Any] | None = None) -> None:
    """Write the resolved configuration with versions, git hash and the data's fingerprint.

    Where the folder holds a run already, that run goes on: what decides its result has to be the same, and keys of
    :data:`EXECUTION_ONLY` are taken over from ``config``. A finished run is compared and stays as it is.

    Args:
        folder: The run's; created.
        config: Resolved.
        data_fingerprint: Of the rows used.
        pinned: The prompt format's spec, for :func:`read_pinned`; what a run has pinned already stays.

    Raises:
        RunError: The folder holds a run of another configuration or other data; names each key that differs.
    """
    resolved = json.loads(config.model_dump_json())
    old = _read_config(folder)
    if old is None:
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "config": resolved,
            "data_sha256": data_fingerprint,
            "versions": versions("meetlm", "torch", "transformers", "accelerate", "datasets"),
            "python": platform.python_version(),
            "git": git_hash(),
        }
    else:
        _check_same(folder, old, resolved, data_fingerprint)
        if (folder / MEET).exists():
            return
        record = {**old, "config": resolved}
    if pinned is not None:
        record.setdefault("format_pinned", pinned)
    if record != old:
        write_atomic(folder / CONFIG, yaml.safe_dump(record, sort_keys=False))


def pin_lm(folder: Path, sha256: str, of_others: str | None = None) -> None:
    """Note the hash of the language model that a run begins with, or compare it with the one noted.

    Args:
        folder: The run's.
        sha256: Of its language model.
        of_others: Of the runs that it is compared with, which have to have the same.

    Raises:
        RunError: The run, or others of its sweep, began with another one.
    """
    record = _read_config(folder)
    assert record is not None, "write_config() comes first"
    for whose, before in (("it", record.get("lm_sha256")), ("others of its sweep", of_others)):
        if before not in (None, sha256):
            raise RunError(
                f"{folder}: {whose} began with another language model; what {record['config']['model']['name']!r} "
                f"names has changed since (hash {before[:8]}…, now {sha256[:8]}…); choose another folder or remove it"
            )
    if "lm_sha256" not in record:
        write_atomic(folder / CONFIG, yaml.safe_dump({**record, "lm_sha256": sha256}, sort_keys=False))


def read_lm(folders: Iterable[Path]) -> str | None:
    """Return the hash of the language model that runs began with, of the first that has one on record."""
    records = (_read_config(folder) or {} for folder in folders)
    return next((record["lm_sha256"] for record in records if "lm_sha256" in record), None)


def read_pinned(folder: Path) -> dict[str, Any] | None:
    """Return the prompt format's spec that a run was started with; ``None`` where there is no run or none in it."""
    pinned: dict[str, Any] | None = (_read_config(folder) or {}).get("format_pinned")
    return pinned


def read_data_settings(folder: Path) -> DataSettings:
    """Return the data settings that a run was made with.

    Raises:
        RunError: Its configuration is missing.
        ConfigError: It was written by a version with other settings.
    """
    record = _read_config(folder)
    if record is None:
        raise RunError(f"{folder / CONFIG} is missing, so the run's own data are not known")
    return check(DataSettings, record["config"]["data"], {}, str(folder / CONFIG))


def _read_config(folder: Path) -> dict[str, Any] | None:
    return read_yaml(folder / CONFIG)[0] if (folder / CONFIG).exists() else None


def _check_same(folder: Path, old: dict[str, Any], resolved: dict[str, Any], data_fingerprint: str) -> None:
    before, now = dict(_flat(old["config"])), dict(_flat(resolved))
    said = [
        f"{key} was {before.get(key, 'absent')}, is now {now.get(key, 'absent')}"
        for key in dict.fromkeys((*before, *now))
        if key not in EXECUTION_ONLY and before.get(key) != now.get(key)
    ]
    what = "another configuration"
    if not said and old["data_sha256"] != data_fingerprint:
        what, said = "other data", [f"the rows used have changed: data_sha256 was {old['data_sha256'][:8]}…"]
    if said:
        text = "\n  ".join([f"{folder} holds a run of {what}; choose another folder or remove it", *said])
        raise RunError(text)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted key of every value, as an override would name it, and the value as YAML has it."""
    if isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value) and value:
        value = {item["name"]: item for item in value}
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, json.dumps(value, ensure_ascii=False)


def write_result(folder: Path, meet: Meet, policy: Policy, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the final model, the control, its levels as PEFT folders where PEFT can say them; last ``meet.json``."""
    partial = folder / f"{MODEL}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    policy.lm.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    sync(partial)
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    partial.rename(folder / MODEL)
    state = {name: tensor.detach().contiguous() for name, tensor in policy.control.state_dict().items()}
    if state:
        save_file(state, folder / CONTROL)
        sync(folder / CONTROL)
    if peft_failure_reason(policy.control) is None:
        export_levels(policy.control, folder / LEVELS, (folder / MODEL).resolve())
        sync(folder / LEVELS)
    sync(folder, deep=False)
    write_atomic(folder / MEET, json.dumps({**asdict(meet), "format": meet.format.to_dict()}, indent=2) + "\n")
    sync(folder, deep=False)  # checkpoints may go now


def read_meet(folder: Path, *, weights: bool = True) -> Meet:
    """Return a finished run's ``meet.json``.

    Args:
        folder: The run.
        weights: Refuse a run whose weights were dropped.

    Raises:
        RunError: There is none, or a part of the run is missing.
    """
    path = folder / MEET
    if not path.is_file():
        state = "is not a run" if not (folder / CONFIG).exists() else "is a run that has not finished"
        raise RunError(f"{folder} {state}: there is no {MEET} in it")
    fields = {"source": "pairs", **json.loads(path.read_text())}
    try:
        meet = Meet(**{**fields, "levels": tuple(fields["levels"]), "format": FormatSpec.from_dict(fields["format"])})
    except (KeyError, TypeError) as error:
        raise RunError(f"{path} was written by another version of meetlm: {error}") from error
    parse_control(meet.control)
    if weights and not (folder / MODEL / "config.json").is_file():
        raise RunError(
            f"{folder / MODEL} is missing: the run's weights were dropped (meet sweep --keep-weights keeps them)"
        )
    return meet
