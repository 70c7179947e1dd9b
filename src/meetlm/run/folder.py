"""The files of a run: configuration, model, control and ``meet.json``, each written under a temporary name first."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from meetlm.config.errors import RunError
from meetlm.config.files import PARTIAL, sync, write_atomic
from meetlm.config.overrides import flatten
from meetlm.config.reporter import SILENT, Reporter
from meetlm.config.versions import git_hash, versions
from meetlm.config.yaml_files import read_yaml, validate
from meetlm.controls.build import parse_control
from meetlm.data.fitted_levels import FittedLevels
from meetlm.data.levels import LevelSpace
from meetlm.data.prompt_format import FormatSpec
from meetlm.data.settings import DataSettings
from meetlm.export.peft import export_levels, peft_failure_reason
from meetlm.policy.loading import EMBEDDED, ModelSettings, end_tokens
from meetlm.policy.policy import Policy
from meetlm.recipes.config import RunConfig
from meetlm.run.levels import Level, calibrated_level, dial_warning, level_text, resolve_level

MEET, CONFIG, MODEL, CONTROL, LEVELS = "meet.json", "config.yaml", "model", "control.safetensors", "controls"

EXECUTION_ONLY = (
    "batch.micro_pairs",
    "batch.save_steps",
    "batch.keep_checkpoints",
    "batch.log_steps",
    "batch.report_to",
    "model.device",
    "model.gradient_checkpointing",
)
"""Settings that do not change the result of a run: they may change when it continues."""


@dataclass(frozen=True, slots=True)
class Meet:
    """The contents of ``meet.json``, which :func:`meetlm.load` reads beside the weights.

    Attributes:
        run: Id of the run: name of its folder and start of its configuration's hash.
        kind: Kind of the control.
        levels: The levels, in the order of the stacked parameters.
        default_level: Level of requests without a level: the best one or what `meet dial` recommends; empty if no
            attribute has an order.
        control: Settings of the control.
        lm_sha256: Hash of the language model that the control belongs to.
        format: The pinned prompt format.
        conversational: Whether prompts are conversations.
        source: Format of the training data, which decides how a prompt of plain text is formatted.
        schemes: How feedback becomes levels, with the thresholds of scores; empty in runs of version 0.1.
        dial: For each attribute that `meet dial` has calibrated, its safe range and recommended setting.
    """

    run: str
    kind: str
    levels: LevelSpace
    default_level: str | dict[str, float]
    control: dict[str, Any]
    lm_sha256: str
    format: FormatSpec
    conversational: bool
    source: str
    schemes: list[dict[str, Any]] = field(default_factory=list)
    dial: dict[str, dict[str, Any]] = field(default_factory=dict)

    def resolve(
        self, level: Level | None, guidance: float = 0.0, *, reporter: Reporter = SILENT
    ) -> str | dict[str, float]:
        """Return the level of a request: its name, or weights of levels.

        A request without a level gets the default level; with guidance, which `meet dial` calibrates at the best
        level, it gets the best level.

        Args:
            level: The level in the request.
            guidance: Strength of guidance.
            reporter: Shows a recommended setting that is used, and a warning about a setting outside the safe range.

        Raises:
            ConfigError: As of :func:`resolve_level`.
        """
        best = self.levels.best_level
        default = best if guidance else self.default_level
        resolved = resolve_level(self.levels, default if level is None else level)
        if level is None and default != best:
            reporter.message(f"level {level_text(resolved)}: recommended by `meet dial`, the default of this run")
        if warning := dial_warning(self.levels, self.dial, resolved, guidance):
            reporter.warning(warning)
        return resolved

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; the attributes of the levels beside their names."""
        levels = {"levels": list(self.levels), "attributes": self.levels.to_dict()}
        return {**asdict(self), **levels, "format": self.format.to_dict()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Meet:
        """Return what :meth:`to_dict` wrote; runs of version 0.1 have names of levels alone."""
        names, attributes = fields["levels"], fields.get("attributes")
        levels = LevelSpace.from_dict(attributes) if attributes else LevelSpace.of_names(*names)
        rest = {name: value for name, value in fields.items() if name != "attributes"}
        return cls(**{**rest, "levels": levels, "format": FormatSpec.from_dict(fields["format"])})


def write_config(
    folder: Path,
    config: RunConfig,
    data_fingerprint: str,
    pinned: dict[str, Any] | None = None,
    pinned_levels: list[dict[str, Any]] | None = None,
) -> None:
    """Write the resolved configuration with versions, git hash and the fingerprint of the data.

    A run in the folder continues: the settings that decide its result must be the same, those of
    :data:`EXECUTION_ONLY` are replaced. A finished run is compared and not changed.

    Args:
        folder: Folder of the run; created.
        config: The configuration.
        data_fingerprint: Fingerprint of the rows that are used.
        pinned: Spec of the prompt format, for :func:`read_pinned`; one that is pinned already stays.
        pinned_levels: Level schemes of the data, for :func:`read_pinned_levels`; those that are pinned already stay.

    Raises:
        RunError: The folder holds a run of another configuration or other data; names each key that differs.
    """
    resolved = config.model_dump(mode="json")
    old = _read_config(folder)
    if old is None:
        folder.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {
            "config": resolved,
            "data_sha256": data_fingerprint,
            "versions": versions("meetlm", "torch", "transformers", "accelerate", "datasets"),
            "python": platform.python_version(),
            "git": git_hash(),
        }
    else:
        _refuse_changes(folder, old, config, data_fingerprint)
        if (folder / MEET).exists():
            return
        record = {**old, "config": resolved}
    if pinned is not None:
        record.setdefault("format_pinned", pinned)
    if pinned_levels is not None:
        record.setdefault("levels_pinned", pinned_levels)
    if record != old:
        write_atomic(folder / CONFIG, yaml.safe_dump(record, sort_keys=False))


def pin_lm(folder: Path, sha256: str, sweep_sha256: str | None = None) -> None:
    """Record the hash of the language model that a run starts from, or compare it with the recorded hash.

    Args:
        folder: Folder of the run.
        sha256: Hash of the language model.
        sweep_sha256: Hash of the language model that the other runs of the sweep started from.

    Raises:
        RunError: The run, or others of its sweep, started from another language model.
    """
    record = _read_config(folder)
    assert record is not None, "write_config() comes first"
    for runs, recorded in (("the run", record.get("lm_sha256")), ("other runs of the sweep", sweep_sha256)):
        if recorded is not None and recorded != sha256:
            raise RunError(
                f"{folder}: {runs} started from another language model; {record['config']['model']['name']!r} has "
                f"changed since (hash {recorded[:8]}…, now {sha256[:8]}…); choose another folder or remove it"
            )
    if "lm_sha256" not in record:
        write_atomic(folder / CONFIG, yaml.safe_dump({**record, "lm_sha256": sha256}, sort_keys=False))


def read_lm(folders: Iterable[Path]) -> str | None:
    """Return the recorded hash of the language model that the runs in ``folders`` started from; ``None`` for no run."""
    records = (_read_config(folder) or {} for folder in folders)
    return next((record["lm_sha256"] for record in records if "lm_sha256" in record), None)


def read_pinned(folder: Path) -> dict[str, Any] | None:
    """Return the spec of the prompt format that a run has pinned; ``None`` if there is none."""
    pinned: dict[str, Any] | None = (_read_config(folder) or {}).get("format_pinned")
    return pinned


def read_pinned_levels(folder: Path) -> FittedLevels | None:
    """Return the level schemes that a run has pinned in its configuration, or in ``meet.json``; ``None`` for none."""
    pinned = (_read_config(folder) or {}).get("levels_pinned")
    if pinned is None and (folder / MEET).is_file():
        pinned = read_meet(folder, weights=False).schemes or None
    return None if pinned is None else FittedLevels.from_dict(pinned)


def read_data_settings(folder: Path) -> DataSettings:
    """Return the data settings of a run.

    Raises:
        RunError: The configuration is missing.
        ConfigError: The configuration was written by a version of meetlm with other settings.
    """
    _refuse_missing(folder)
    record = _read_config(folder)
    if record is None:
        raise RunError(f"{folder} has no {CONFIG}, so the data of the run are unknown; pass --data.path")
    return validate(DataSettings, record["config"]["data"], {}, str(folder / CONFIG))


def read_model_settings(folder: Path) -> ModelSettings:
    """Return the settings of the base model, which a run started from.

    Raises:
        RunError: The configuration is missing.
    """
    return validate(ModelSettings, read_record(folder)["config"]["model"], {}, str(folder / CONFIG))


def read_record(folder: Path) -> dict[str, Any]:
    """Return the contents of ``config.yaml``: the configuration, versions and hashes of a run.

    Raises:
        RunError: The configuration is missing.
    """
    record = _read_config(folder)
    if record is None:
        raise RunError(f"{folder} has no {CONFIG}, so its data and settings are unknown")
    return record


def unchanged_hub_model(folder: Path, meet: Meet) -> str | None:
    """Return the hub name of the model that a run started from, if training has not changed it; else ``None``."""
    record = read_record(folder)
    name = record["config"]["model"]["name"]
    is_changed = record.get("lm_sha256") != meet.lm_sha256
    return None if is_changed or name == EMBEDDED or Path(name).expanduser().exists() else name


def write_dial(folder: Path, dial: dict[str, dict[str, Any]]) -> Meet:
    """Record in ``meet.json`` the safe ranges of attributes and the resulting default level.

    What is recorded about other attributes stays.
    """
    meet = read_meet(folder, weights=False)
    dial = {**meet.dial, **dial}
    meet = replace(meet, dial=dial, default_level=calibrated_level(meet.levels, dial))
    write_atomic(folder / MEET, json.dumps(meet.to_dict(), indent=2) + "\n")
    return meet


def _read_config(folder: Path) -> dict[str, Any] | None:
    return read_yaml(folder / CONFIG)[0] if (folder / CONFIG).exists() else None


def _refuse_missing(folder: Path) -> None:
    if not folder.is_dir():
        raise RunError(f"no such folder: {folder}; expected the folder of a run, written by `meet train`")


def _refuse_changes(folder: Path, old: dict[str, Any], config: RunConfig, data_fingerprint: str) -> None:
    """Refuse to continue a run with other settings or data.

    Raises:
        RunError: Names each key that differs.
    """
    try:  # settings that are new in this version have their defaults
        old_config = RunConfig.model_validate(old["config"])
    except ValidationError as error:
        version = old.get("versions", {}).get("meetlm", "of another version")
        raise RunError(
            f"{folder} holds a run of meetlm {version}, whose settings this version cannot read; choose another folder "
            "or remove it"
        ) from error
    before, now = _values_by_key(old_config), _values_by_key(config)
    changes = [
        f"{key} was {before.get(key, 'absent')}, is now {now.get(key, 'absent')}"
        for key in dict.fromkeys((*before, *now))
        if key not in EXECUTION_ONLY and before.get(key) != now.get(key)
    ]
    kind = "another configuration" if changes else "other data"
    if old["data_sha256"] != data_fingerprint:
        changes.append(
            f"the rows used have changed: data_sha256 was {old['data_sha256'][:8]}…, is now {data_fingerprint[:8]}…"
        )
    if changes:
        raise RunError("\n  ".join([f"{folder} holds a run of {kind}; choose another folder or remove it", *changes]))


def _values_by_key(config: RunConfig) -> dict[str, str]:
    """Return the value of each setting as JSON, by its dotted key as an option names it."""
    values = config.model_dump(mode="json")
    values["stages"] = {stage["name"]: stage for stage in values["stages"]}
    return {key: json.dumps(value, ensure_ascii=False) for key, value in flatten(values)}


def write_result(
    folder: Path, meet: Meet, policy: Policy, tokenizer: PreTrainedTokenizerBase, base: str | None = None
) -> None:
    """Write the model, the control, its levels as PEFT folders where PEFT can express them, and last ``meet.json``.

    Args:
        folder: Folder of the run.
        meet: Contents of ``meet.json``.
        policy: The trained policy.
        tokenizer: Tokenizer of the model.
        base: Hub name of the model for the PEFT folders, where training has not changed it; by default the run's model.
    """
    partial = folder / f"result{PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    if policy.lm.generation_config is not None:  # so that other tools stop where replies end
        policy.lm.generation_config.eos_token_id = sorted(end_tokens(policy.lm, tokenizer))
    policy.lm.save_pretrained(partial / MODEL)
    tokenizer.save_pretrained(partial / MODEL)
    state = {name: tensor.detach().contiguous() for name, tensor in policy.control.state_dict().items()}
    if state:
        save_file(state, partial / CONTROL)
    if peft_failure_reason(policy.control) is None:
        export_levels(policy.control, partial / LEVELS, base or (folder / MODEL).resolve())
    sync(partial)
    for path in sorted(partial.iterdir()):
        shutil.rmtree(folder / path.name, ignore_errors=True)
        path.replace(folder / path.name)
    partial.rmdir()
    sync(folder, deep=False)
    write_atomic(folder / MEET, json.dumps(meet.to_dict(), indent=2) + "\n")
    sync(folder, deep=False)  # from here on the checkpoints may be removed


def read_meet(folder: Path, *, weights: bool = True) -> Meet:
    """Return a finished run's ``meet.json``.

    Args:
        folder: Folder of the run.
        weights: Refuse a run whose weights were removed.

    Raises:
        RunError: There is no finished run, its weights were removed, or another version of meetlm has written it.
    """
    _refuse_missing(folder)
    path = folder / MEET
    if not path.is_file():
        is_started = (folder / CONFIG).exists()
        problem = (
            "is an unfinished run; repeat its `meet train` command"
            if is_started
            else "is not a folder that `meet train` wrote"
        )
        raise RunError(f"{folder} {problem} (it has no {MEET})")
    try:
        fields = {"source": "pairs", **json.loads(path.read_text())}
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged (not a JSON object); restore the file or train again") from error
    try:
        meet = Meet.from_dict(fields)
    except KeyError as error:
        raise RunError(f"{path} is damaged or was written by another version of meetlm: {error} is missing") from error
    except TypeError as error:
        raise RunError(f"{path} is damaged or was written by another version of meetlm: {error}") from error
    parse_control(meet.control, str(path))
    if weights and not (folder / MODEL / "config.json").is_file():
        raise RunError(
            f"{folder / MODEL} is missing: the weights of the run were removed (`meet sweep --keep-weights` keeps them)"
        )
    return meet
