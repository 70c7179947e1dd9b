"""Checks of a checkpoint before anything is trained: that it exists, that its files are complete, that it is causal.

Each error is one line: what is wrong and what to do.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from meetlm.config.errors import ConfigError
from meetlm.config.hub import hub_is_reachable

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_LFS_POINTER = b"version https://git-lfs"
_SHOWN = 300
"""Most characters of a library's message."""


def find_checkpoint(name: str) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` for a folder or a hub name.

    Raises:
        ConfigError: There is no such model, the hub cannot be reached and is not cached, or it is a PEFT adapter.
    """
    folder = Path(name).expanduser()
    arguments: dict[str, Any] = {"pretrained_model_name_or_path": str(folder), "trust_remote_code": False}
    if folder.is_dir():
        if not (folder / "config.json").is_file() and (folder / "model" / "config.json").is_file():
            raise ConfigError(f"model {name!r} is a run; its language model is {str(folder / 'model')!r}")
        adapter = find_adapter_config_file(str(folder))
    else:
        offline = not _hub_has(name, folder)
        arguments |= {"pretrained_model_name_or_path": name, "local_files_only": offline}
        adapter = find_adapter_config_file(name, local_files_only=offline)
    if adapter:
        raise ConfigError(
            f"model {name!r} is a PEFT adapter, not a whole model: merge it into its base model "
            "(AutoPeftModelForCausalLM.from_pretrained(…).merge_and_unload().save_pretrained(FOLDER), and save the "
            "tokenizer there too), then set model.name to FOLDER"
        )
    return arguments


def _hub_has(name: str, folder: Path) -> bool:
    """Return whether to ask the hub for ``name``; ``False`` if only its cache can be read.

    Raises:
        ConfigError: ``name`` is not a hub name, or the hub cannot be reached and its cache does not have the model.
    """
    if folder.exists():
        raise ConfigError(f"model {name!r} is a file; expected a folder or a hub name")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"model {name!r}: no such folder, and it is not a hub name") from error
    if hub_is_reachable():
        return True
    if cached_folder(name) is None:
        raise ConfigError(
            f"model {name!r}: no such folder, not in the hub's local cache, and the hub cannot be reached; "
            "pass the path of a local folder"
        )
    return False


def cached_folder(name: str) -> Path | None:
    """Return the folder of a model, which may be in the hub's cache; ``None`` if there is none."""
    if Path(name).is_dir():
        return Path(name)
    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def failure_reason(name: str, error: Exception) -> str:
    """Return in one line why loading the model or the tokenizer ``name`` raised ``error``."""
    folder = Path(name).expanduser()
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    if folder.is_dir() and not files:
        return "the folder is empty"
    damaged = next(((file.name, reason) for file in files if (reason := _file_failure_reason(file))), None)
    if damaged:
        return f"{damaged[0]} {damaged[1]}"
    if files and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        return "the folder has no tokenizer files: copy those of its base model there (tokenizer.json, …)"
    text = str(error).strip() or type(error).__name__
    unknown = re.match(r"Unrecognized configuration class <class '[\w.]*?(\w+)Config'>", text)
    if unknown:
        return f"{unknown[1]} is not a causal language model"
    if "trust_remote_code" in text:
        return "it requires its own code (trust_remote_code), which meetlm does not run; use a model of transformers"
    return text.splitlines()[0][:_SHOWN]


def _file_failure_reason(file: Path) -> str | None:
    """Return what is wrong with one file of a checkpoint, or ``None``."""
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
            return "is a Git LFS pointer and not the file itself: run `git lfs pull`"
    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                pass
    except ValueError as error:
        return f"is not valid JSON ({error}): copy or download it again"
    except Exception as error:  # safetensors' own errors have no common base class
        return f"is truncated or damaged ({error}): copy or download it again"
    return None


def check_loading(name: str, info: dict[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights of the model, which would be random numbers.

    Args:
        name: The model's name.
        info: What ``from_pretrained(output_loading_info=True)`` returns beside the model.

    Raises:
        ConfigError: Weights are missing or have another shape; names the first.
    """
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        key, stored, expected = mismatched[0]
        raise ConfigError(
            f"model {name!r} cannot be used: {key} has the shape {list(stored)} in the checkpoint and {list(expected)} "
            f"by config.json{_and_more(mismatched)}; expected the config.json that belongs to the weights"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ConfigError(
            f"model {name!r} cannot be used: the checkpoint has no weights for {missing[0]}{_and_more(missing)}; "
            "expected a complete checkpoint of a causal language model"
        )


def _and_more(keys: list[Any]) -> str:
    return f" and {len(keys) - 1} more" if len(keys) > 1 else ""


@torch.no_grad()
def check_causal(name: str, lm: PreTrainedModel) -> None:
    """Refuse a model whose logits depend on later tokens: it would see the tokens that it is trained to predict.

    Raises:
        ConfigError: Another last token changes earlier logits.
    """
    table = lm.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    ids = (torch.arange(4, device=lm.device) % (len(table) - 1))[None]
    changed = ids.clone()
    changed[0, -1] = len(table) - 1
    logits, changed_logits = (lm(row, use_cache=False).logits[0, :-1].float() for row in (ids, changed))
    if float((logits - changed_logits).abs().max()) > 1e-5 * float(logits.abs().max()):
        raise ConfigError(
            f"model {name!r} is not a causal language model: in {type(lm).__name__} positions see later tokens; "
            "expected a model such as Llama, Qwen or GPT-2"
        )
