"""Exported levels load with PEFT, and the model loads without meetlm; both give the same logits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import meetlm
from combinations import each_value
from meetlm.config.errors import RunError
from meetlm.data.example import Prompt
from meetlm.export.peft import export_levels, peft_failure_reason
from meetlm.generation.decoding import Branch
from meetlm.run.aligned import Aligned
from run_folders import finished
from tiny import ARCHITECTURES, TRAINED, first_logits

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's
TEXTS = ("\n\nHuman: What is rice?\n\nAssistant:", "Hi")


def ours(aligned: Aligned, text: str, level: str) -> Tensor:
    weights = aligned.weights(level)
    return first_logits(aligned.policy, [Branch(tuple(aligned.encoder.prompt(Prompt(text), weights)), weights)])[0]


@each_value(architecture=ARCHITECTURES, kind=TRAINED)
def test_peft_gives_our_logits(architecture: str, kind: str, tmp_path: Path) -> None:
    folder = finished(tmp_path, architecture, kind)
    aligned = meetlm.load(folder)
    assert "meet" not in (folder / "model" / "config.json").read_text()
    assert not [name for name in load_file(folder / "model" / "model.safetensors") if "lora" in name or "/" in name]
    for level in ("bad", "good"):
        base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        adapted = peft.PeftModel.from_pretrained(base, folder / "controls" / level).eval()
        for text in TEXTS:
            ids = torch.tensor([aligned.format.prompt_ids(Prompt(text))])
            with torch.no_grad():
                theirs = adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
            assert float((ours(aligned, text, level) - theirs).abs().max()) < 1e-4
        assert float((ours(aligned, text, "bad") - ours(aligned, text, "good")).abs().max()) > 1e-2


def test_both_levels_in_one_peft_model(tmp_path: Path) -> None:
    folder = finished(tmp_path, "llama", "lora")
    aligned = meetlm.load(folder)
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, folder / "controls" / "good", adapter_name="good").eval()
    adapted.load_adapter(folder / "controls" / "bad", adapter_name="bad")
    ids = torch.tensor([aligned.format.prompt_ids(Prompt(TEXTS[0]))])
    for level in ("bad", "good"):
        adapted.set_adapter(level)
        with torch.no_grad():
            assert float((adapted(ids).logits[0, -1] - ours(aligned, TEXTS[0], level)).abs().max()) < 1e-4


@pytest.mark.parametrize("kind", ["lora", "soft-prompt"])
def test_auto_peft_finds_the_model(kind: str, tmp_path: Path) -> None:
    """``base_model_name_or_path`` is this run's model in any working directory, and after the run was moved."""
    folder = finished(tmp_path, "llama", kind)
    folder = folder.rename(tmp_path / "moved")
    aligned = meetlm.load(folder)
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(folder / "controls" / "good", dtype=torch.float32).eval()
    ids = torch.tensor([aligned.format.prompt_ids(Prompt(TEXTS[1]))])
    with torch.no_grad():
        assert float((adapted(ids).logits[0, -1] - ours(aligned, TEXTS[1], "good")).abs().max()) < 1e-4


def test_before_response_has_no_peft_export(tmp_path: Path) -> None:
    folder = finished(tmp_path, "llama", "soft-prompt", placement="before_response")
    control = meetlm.load(folder).policy.control
    assert not (folder / "controls").exists()
    assert peft_failure_reason(control) == "PEFT puts a soft prompt first; this control is placed before the response"
    with pytest.raises(RunError, match="PEFT puts a soft prompt first"):
        export_levels(control, tmp_path / "out", folder / "model")
    assert not (tmp_path / "out").exists()


def test_text_has_no_peft_export(tmp_path: Path) -> None:
    folder = finished(tmp_path, "llama", "text")
    assert not (folder / "controls").exists()
    assert not (folder / "control.safetensors").exists()
    assert "'text' has no weights" in str(peft_failure_reason(meetlm.load(folder).policy.control))


@pytest.mark.parametrize("kind", TRAINED)
def test_files(kind: str, tmp_path: Path) -> None:
    folder = finished(tmp_path, "llama", kind)
    stacked = load_file(folder / "control.safetensors")
    for index, level in enumerate(("bad", "good")):
        config = json.loads((folder / "controls" / level / "adapter_config.json").read_text())
        state = load_file(folder / "controls" / level / "adapter_model.safetensors")
        assert config["task_type"] == "CAUSAL_LM"
        assert config["base_model_name_or_path"] == str((folder / "model").resolve())
        if kind == "lora":
            assert config["modules_to_save"] is None
            name = "model.layers.0.self_attn.q_proj"
            a, b = (state[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
            assert torch.equal(a, stacked[f"a.{name.replace('.', '/')}"][index])
            assert torch.equal(b, stacked[f"b.{name.replace('.', '/')}"][index].T)
        else:
            assert list(state) == ["prompt_embeddings"]
            assert torch.equal(state["prompt_embeddings"], stacked["prompt"][index])


def test_the_model_loads_without_meetlm(tmp_path: Path) -> None:
    folder = finished(tmp_path, "llama", "lora")
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM as A, AutoTokenizer as T\n"
        f"lm = A.from_pretrained({str(folder / 'model')!r}); T.from_pretrained({str(folder / 'model')!r})\n"
        "assert not any(m.startswith('meetlm') for m in sys.modules)\n"
        "print(lm.config._attn_implementation, float(lm(torch.arange(4, 20)[None]).logits.detach().sum()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    attention, total = result.stdout.split()
    assert attention == "sdpa"
    lm = meetlm.load(folder).policy.lm
    zero = torch.zeros(1, 1, 2)
    control = meetlm.load(folder).policy.control
    control.set_level_weights(zero)
    fresh = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    assert float(total) == pytest.approx(float(fresh(torch.arange(4, 20)[None]).logits.detach().sum()), rel=1e-4)
    assert lm.config._attn_implementation == "meet_varlen"
