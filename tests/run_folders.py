"""Write finished runs, models and data sets into temporary folders."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from meetlm.data.prompt_format import FormatSpec, PromptFormat
from meetlm.policy.fingerprint import sha256_of
from meetlm.policy.policy import Policy
from meetlm.recipes.config import RunConfig, load_config
from meetlm.run.folder import Meet, write_result
from tiny import CONTROLS, TRAINED, items_of, pairs, stage, text_format, tiny_lm, tiny_policy, tiny_tokenizer, trainer

SIDES = ("chosen", "rejected")


def trained(architecture: str, kind: str, folder: Path, *, steps: int = 2, **changes: Any) -> Policy:
    """Return a policy trained for ``steps`` steps, at a learning rate that changes its outputs."""
    policy = tiny_policy(architecture, kind, dtype=torch.float32, move=0.1 if kind == "lora" else 0.0, **changes)
    parts = ["control", "lm"] if kind in TRAINED else ["lm"]
    trainer(policy, items_of(policy), folder, stage(parts, steps=steps)).train()
    policy.eval()
    return policy


def finished(
    folder: Path, architecture: str, kind: str, *, policy: Policy | None = None, source: str = "hh", **changes: Any
) -> Path:
    """Write the run of ``policy``, or of a tiny policy trained here, and return the run's folder."""
    policy = policy or trained(architecture, kind, folder / "stage", **changes)
    settings = policy.control.settings
    meet = Meet(
        run="tiny",
        kind=kind,
        levels=policy.control.levels,
        default_level=policy.control.levels.best_level,
        control=json.loads(settings.model_dump_json()),
        lm_sha256=sha256_of(policy.lm),
        format=FormatSpec(None, "auto", ("\n\nHuman:",)),
        conversational=False,
        source=source,
    )
    run = folder / "run"
    run.mkdir(parents=True)
    write_result(run, meet, policy, text_format().tokenizer)
    return run


def write_pairs(path: Path, count: int, *, chat: bool = False) -> Path:
    """Write ``count`` pairs as JSON lines: HH transcripts, or conversations in TRL's columns."""
    with path.open("w") as lines:
        for example in pairs(count):
            if chat:
                prompt = [{"role": "user", "content": example.prompt.text().split(":")[1].split("\n")[0].strip()}]
                sides = {
                    side: [{"role": "assistant", "content": reply.content.strip()}]
                    for side, reply in zip(SIDES, example.replies, strict=True)
                }
                lines.write(json.dumps({"prompt": prompt, **sides}) + "\n")
            else:
                texts = [example.prompt.text() + reply.content for reply in example.replies]
                sides = dict(zip(SIDES, texts, strict=True))
                lines.write(json.dumps(sides) + "\n")
    return path


def local_model(folder: Path, architecture: str, **tokenizer: Any) -> Path:
    """Write a tiny model with its tokenizer."""
    with warnings.catch_warnings():
        lm = tiny_lm(architecture, dtype=torch.float32)
        lm.save_pretrained(folder)
    tiny_tokenizer(**tokenizer).save_pretrained(folder)
    return folder


def config_for(
    folder: Path,
    architecture: str,
    kind: str,
    *overrides: str,
    stages: Sequence[dict[str, Any]] | None = None,
    chat: bool = False,
    **tokenizer: Any,
) -> RunConfig:
    """Return a configuration over a local model and a small local data set, both written into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    default = [
        {"name": "step1", "train": ["control"], "lr": 1e-2, "epochs": 1},
        {"name": "step2", "train": ["control", "lm"], "lr": 1e-3, "epochs": 1},
    ]
    if kind not in TRAINED:
        default = [{"name": "tune", "train": ["lm"], "lr": 1e-3, "epochs": 1}]
    file = folder / "config.yaml"
    raw = {
        "recipe": "mine",
        "model": {"name": str(local_model(folder / "lm", architecture, **tokenizer)), "device": "cpu"},
        "data": {
            "source": "pairs" if chat else "hh",
            "train_file": str(write_pairs(folder / "train.jsonl", 12, chat=chat)),
            "eval_file": str(write_pairs(folder / "test.jsonl", 6, chat=chat)),
            "max_length": 128,
        },
        "control": CONTROLS[kind],
        "batch": {"pairs": 4, "micro_pairs": 2},
        "stages": list(stages or default),
    }
    file.write_text(json.dumps(raw))
    return load_config(None, file, overrides)


def prompt_format_of(run: Path) -> PromptFormat:
    """Return the format that a run was saved with."""
    import meetlm

    return meetlm.load(run).format
