"""Models that cannot be used are refused in one line, before anything is trained; weights are hashed once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel, T5Config, T5ForConditionalGeneration

from meetlm.config.errors import ConfigError
from meetlm.policy import checkpoint, fingerprint
from meetlm.policy.fingerprint import sha256_of
from meetlm.policy.loading import ModelSettings, load_lm, load_skeleton, load_tokenizer
from run_folders import local_model
from tiny import tiny_tokenizer

WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
SHAPE = {"vocab_size": 320, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return local_model(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def model(llama: Path, tmp_path: Path) -> Path:
    """A copy of a tiny model that a test may damage."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


def load(model: Path | str, device: Any = "cpu") -> Any:
    return load_lm(ModelSettings(name=str(model), device=device))


def change_weights(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(model / WEIGHTS)
    change(weights)
    save_file(weights, model / WEIGHTS, metadata={"format": "pt"})


def change_config(model: Path, **changes: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))


def lack_a_layer(model: Path) -> None:
    change_weights(model, lambda weights: [weights.pop(name) for name in list(weights) if "layers.1." in name])


def have_another_shape(model: Path) -> None:
    change_weights(model, lambda weights: weights.update({"model.embed_tokens.weight": torch.ones(300, 24)}))


def need_code(model: Path) -> None:
    change_config(model, model_type="other", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})


def lose_tokenizer(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a layer is missing": (lack_a_layer, r"has no weights for model\.layers\.1\.\S+ and 8 more"),
    "other shapes": (have_another_shape, r"embed_tokens.weight has the shape \[300, 24\] .* and \[320, 24\] by config"),
    "truncated weights": (
        lambda model: (model / WEIGHTS).write_bytes((model / WEIGHTS).read_bytes()[:3000]),
        "model.safetensors is truncated or damaged",
    ),
    "pointer for weights": (lambda model: (model / WEIGHTS).write_text(LFS_POINTER), "is a Git LFS pointer"),
    "pointer for the tokenizer": (
        lambda model: (model / TOKENIZER).write_text(LFS_POINTER),
        "tokenizer.json is a Git LFS pointer .* `git lfs pull`",
    ),
    "broken tokenizer": (lambda model: (model / TOKENIZER).write_text("{broken"), "tokenizer.json is not valid JSON"),
    "no tokenizer": (lose_tokenizer, "has no tokenizer files"),
    "broken config": (lambda model: (model / "config.json").write_text("{"), "config.json is not valid JSON"),
    "quantised": (
        lambda model: change_config(model, quantization_config={"quant_method": "gptq", "bits": 4, "dataset": "c4"}),
        "requires optimum|requires gptqmodel",
    ),
    "code of its own": (need_code, "its own code"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_a_one_line_error(damage: str, model: Path) -> None:
    change, message = DAMAGES[damage]
    change(model)
    with pytest.raises(ConfigError, match=message) as caught:
        load(model)
    text = str(caught.value)
    assert str(model) in text
    assert "\n" not in text and len(text) < 600


def test_an_encoder_is_not_causal(tmp_path: Path) -> None:
    config = BertConfig(**SHAPE, hidden_size=24, num_hidden_layers=2, intermediate_size=32)
    BertLMHeadModel(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="not a causal language model: in BertLMHeadModel positions see later"):
        load(tmp_path)
    config.is_decoder = True
    BertLMHeadModel(config).save_pretrained(tmp_path)
    load(tmp_path)


def test_an_encoder_decoder_is_not_causal(tmp_path: Path) -> None:
    config = T5Config(vocab_size=320, d_model=24, num_layers=1, num_heads=4, d_ff=32, d_kv=6)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    for loader in (load, lambda model: load_skeleton(str(model))):
        with pytest.raises(ConfigError, match="T5 is not a causal language model$"):
            loader(tmp_path)


def test_an_adapter_is_not_a_model(model: Path) -> None:
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "gpt2", "peft_type": "LORA"}))
    for loader in (load, lambda model: load_skeleton(str(model)), lambda model: load_tokenizer(str(model))):
        with pytest.raises(ConfigError, match="is a PEFT adapter, not a whole model: merge it into its base model"):
            loader(model)


def test_a_run_is_not_a_model(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"is a run; its language model is '{model}'"):
        load(tmp_path)


@pytest.fixture
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "hub_is_reachable", lambda: False)


@pytest.mark.usefixtures("_no_hub")
@pytest.mark.parametrize("name", ["runs/modle", "nobody/nothing", "./modle", "a/b/c", "pyproject.toml"])
def test_a_mistyped_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").touch()
    with pytest.raises(ConfigError, match=f"'{name}'(: no such folder, |.* is a file)"):
        load_tokenizer(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device(llama: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.device is 'cuda', and torch finds no CUDA device"):
        load(llama, "cuda")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return the list of the modules that are hashed from now on."""
    modules: list[object] = []
    digest = fingerprint._digest
    monkeypatch.setattr(fingerprint, "_digest", lambda module: (modules.append(module), digest(module))[1])
    return modules


def test_weights_are_hashed_once(model: Path, hashed: list[object]) -> None:
    lm, _ = load(model)
    first = sha256_of(lm)
    assert [sha256_of(lm), len(hashed)] == [first, 1]
    again, _ = load(model)
    assert [sha256_of(again), len(hashed)] == [first, 1], "the files have not changed"
    with torch.no_grad():
        again.lm_head.weight[0, 0] += 1
    assert sha256_of(again) != first
    again.lm_head.weight.data = lm.lm_head.weight.data.clone()
    assert [sha256_of(again), len(hashed)] == [first, 3]
    again.lm_head.weight.grad = torch.ones_like(again.lm_head.weight)
    torch.optim.AdamW([again.lm_head.weight], fused=True).step()  # raises no version counter
    assert sha256_of(again) != first


def test_changed_files_are_hashed_again(model: Path, hashed: list[object]) -> None:
    first = sha256_of(load(model)[0])
    change_weights(model, lambda weights: weights["lm_head.weight"].add_(1))
    assert sha256_of(load(model)[0]) != first
    assert len(hashed) == 2
