"""The model card of an export, in the hub's format, from the records of its run; and the upload to the hub."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError

from meetlm.config.errors import RunError
from meetlm.config.hub import hub_is_reachable
from meetlm.diagnostics.preference import PreferenceAccuracy
from meetlm.export.base import Export
from meetlm.export.exporters import EXPORTERS
from meetlm.export.parity import Parity
from meetlm.policy.loading import EMBEDDED, EMBEDDED_HUB_NAME
from meetlm.run.folder import Meet, read_record
from meetlm.run.levels import levels_text

CARD = "README.md"
"""File of the model card."""


def write_model_card(
    run: Path, export: Export, meet: Meet, to: str, parity: Parity | None, repository: str | None
) -> None:
    """Write ``README.md`` into the folder of an export.

    Args:
        run: Folder of the run.
        export: The export.
        meet: Contents of the run's ``meet.json``.
        to: Format of the export.
        parity: The result of the parity check; ``None`` without it.
        repository: Repository on the hub that the export is uploaded to; ``None`` = no upload.
    """
    record, exporter = read_record(run), EXPORTERS[to]()
    config, levels, usage = record["config"], export.levels, exporter.usage(export)
    download = None
    if repository is not None:
        local = repository.split("/")[-1]
        download, usage = f"hf download {repository} --local-dir {local}", usage.replace(str(export.folder), local)
    data = config["data"]
    name = EMBEDDED_HUB_NAME if config["model"]["name"] == EMBEDDED else config["model"]["name"]
    is_local = Path(name).expanduser().exists()
    names_hub_base = exporter.names_base and not Path(export.base).exists()
    data_name = data.get("path") or data.get("train_file") or data["source"]
    is_local_data = Path(data_name).expanduser().exists()
    card_data = ModelCardData(
        base_model=export.base if names_hub_base else None if is_local else name,
        base_model_relation="adapter" if names_hub_base else "finetune",
        datasets=None if is_local_data else [data_name],
        library_name=exporter.library,
        pipeline_tag="text-generation",
        tags=["meetlm", "controllable-generation", "alignment"],
    )
    card = ModelCard.from_template(
        card_data,
        template_str=(files("meetlm.export") / "model_card.md").read_text(encoding="utf-8"),
        title=f"{Path(name).name}, {meet.kind}, levels {', '.join(meet.levels)}",
        base_text="A local model" if is_local else f"[{name}](https://huggingface.co/{name})",
        holds=f"{len(levels)} level{'s' if len(levels) > 1 else ''} in the format {to}",
        levels={level: _weights_text(meet, weights) for level, weights in levels.items()},
        download=download,
        usage=usage,
        language="python" if "import " in usage else "",
        data_text=_data_text(meet, Path(data_name).name if is_local_data else data_name, record),
        settings=_settings(config, record),
        evaluation=_evaluation(run, meet),
        parity=str(parity) if parity else "The export was not compared with the run (`--no-verify`).",
        limits=_limits(meet),
    )
    card.save(export.folder / CARD)


def upload(folder: Path, repository: str, *, is_private: bool) -> str:
    """Upload the folder of an export to a model repository on the hub, which is created if there is none.

    Returns:
        Address of the repository.

    Raises:
        RunError: The hub cannot be reached or refuses the upload.
    """
    if not hub_is_reachable():
        raise RunError(f"--push-to-hub {repository}: the hub cannot be reached; the export is in {folder}")
    api = HfApi()
    try:
        address = api.create_repo(repository, private=is_private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload with meetlm")
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(f"--push-to-hub {repository}: {reason}; the export is in {folder}") from error
    return str(address)


def _weights_text(meet: Meet, weights: Any) -> str:
    return ", ".join(f"{name} {weight:g}" for name, weight in zip(meet.levels, weights, strict=True) if weight)


def _data_text(meet: Meet, name: str, record: dict[str, Any]) -> str:
    prompts = "conversations" if meet.conversational else "plain text"
    return (
        f"Data: `{name}`, read as `{meet.source}`, prompts as {prompts} (SHA-256 of the rows used: "
        f"`{record['data_sha256'][:16]}`). Levels: {levels_text(meet.levels)}."
    )


def _settings(config: dict[str, Any], record: dict[str, Any]) -> dict[str, str]:
    """Return the settings that determine the result, by name."""
    control = {f"control: {key}": _text(value) for key, value in config["control"].items() if value is not None}
    stages = {
        f"stage {stage['name']}": f"trains {' and '.join(stage['train'])} for {stage['epochs']:g} epochs at learning "
        f"rate {stage['lr']:g} ({stage['objective']['kind']})"
        for stage in config["stages"]
    }
    batch = {"examples per optimizer step": str(config["batch"]["pairs"]), "seed": str(config["seed"])}
    return {**control, **stages, **batch, **{f"version of {name}": of for name, of in record["versions"].items()}}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _evaluation(run: Path, meet: Meet) -> list[str]:
    """Return the results of the run: preference accuracy and the safe range."""
    file = run / "preference.json"
    entries = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    lines = [f"{moment}: {PreferenceAccuracy.from_dict(fields)}" for moment, fields in entries.items()]
    for key, limits in meet.dial.items():
        about = f" of {key}" if key else ""
        lines.append(
            f"safe range{about}: {limits['low']:g} to {limits['high']:g}, recommended {limits['recommended']:g} "
            "(`meet dial`)"
        )
    return lines or ["The run has not been evaluated."]


def _limits(meet: Meet) -> list[str]:
    limits = [
        "The levels follow the training data and change other properties of replies too, such as their length.",
        "Knowledge, safety and languages are those of the base model. Its licence and that of the data apply.",
    ]
    if not meet.dial:
        limits.append(
            "No safe range was measured (`meet dial`): replies beyond the trained levels may repeat themselves."
        )
    if meet.format.stop:
        limits.append(f"Replies must be cut at {', '.join(map(repr, meet.format.stop))}.")
    if meet.control.get("scope") == "response":
        limits.append(
            "The LoRA begins at the last token of the prompt: use `generate`, not a forward pass over prompt and reply."
        )
    return limits
