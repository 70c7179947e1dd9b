"""GGUF exports on llama.cpp's own server; broken exports fail the check."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import meetlm
from gemma import gemma_run
from llama_cpp_source import CONVERTER
from meetlm.config.errors import RunError
from meetlm.data.prompt_format import PromptFormat
from meetlm.export.base import Export
from meetlm.export.gguf import GgufExporter
from meetlm.export.llama_server import LlamaServer
from meetlm.export.settings import ExportSettings
from meetlm.llama_cpp import payload
from meetlm.policy.loading import embedded_lm
from meetlm.recipes.config import RunConfig
from meetlm.run.execute import execute
from run_folders import config_for
from tiny import tiny_lm

pytest.importorskip("xllamacpp")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not CONVERTER.is_dir(), reason="no converters of llama.cpp: make test-integrations gets them"),
]
AS_LLAMA_CPP = {"query_pre_attn_scalar": 8, "sliding_window": 512, "layer_types": ["sliding_attention"] * 2}
"""Settings of Gemma 3 that llama.cpp does not read from a file: the size of a head, and five of six layers slide."""
BOS_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def export(run: Path, out: Path, to: str = "gguf", levels: Any = (), **settings: Any) -> Any:
    stated = ExportSettings(converter=CONVERTER, **{"outtype": "f32", **settings})
    return meetlm.export_run(run, to, levels, out=out, limit=1, settings=stated)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer, which llama.cpp knows, with a template that writes BOS."""
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(embedded_lm())
    tokenizer.bos_token, tokenizer.chat_template = "<|endoftext|>", BOS_TEMPLATE
    return tokenizer


def run_of(folder: Path, kind: str, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Train a tiny Gemma 3 and return its run."""
    config = config_for(folder / "inputs", "gemma3", kind, chat=True)
    model = folder / "inputs" / "lm"
    tiny_lm("gemma3", vocab_size=len(tokenizer), **AS_LLAMA_CPP).float().save_pretrained(model)
    tokenizer.save_pretrained(model)
    execute(config, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    return run_of(tmp_path_factory.mktemp("gemma"), "lora", tokenizer)


def test_smollm2(tmp_path: Path) -> None:
    """The real model at good, bad, a mix with a negative weight and no adapter, and a reply over HTTP."""
    config = config_for(tmp_path / "inputs", "llama", "lora", chat=True)
    model = config.model.model_copy(update={"name": "smollm2"})
    stage = config.stages[0].model_copy(update={"lr": 2e-3})
    execute(RunConfig.model_validate({**dict(config), "model": model, "stages": (stage,)}), tmp_path / "run")
    for outtype in ("f16", "q8_0", "f32"):
        result = export(tmp_path / "run", tmp_path / "gguf", outtype=outtype)
        assert result.parity.num_prompts == 4
    served = json.loads((result.folder / "levels.json").read_text())
    files = [result.folder / adapter["file"] for adapter in served["adapters"]]
    server = LlamaServer(result.folder / served["model"], files, 256)
    messages = [{"role": "user", "content": "How are you?"}]
    aligned = meetlm.load(tmp_path / "run", device="cpu")
    for level in ("good", "bad"):
        body = {"messages": messages, "max_tokens": 5, "temperature": 0, **payload(level, result.folder)}
        reply = server.post("/v1/chat/completions", **body)["choices"][0]["message"]["content"]
        assert reply.strip() == aligned.generate([messages], level, max_new_tokens=5)[0]


@pytest.mark.own_environment
def test_gemma3_270m(tmp_path: Path) -> None:
    """A real model with BOS in its template and a tokenizer of SentencePiece."""
    result = export(gemma_run(tmp_path, "lora"), tmp_path / "gguf", outtype="f16")
    assert result.parity.num_prompts == 4


def test_slider_and_ollama(gemma: Path, tmp_path: Path) -> None:
    result = export(gemma, tmp_path / "slider", slider=True)
    assert result.parity.num_prompts == 3 and "--lora-scaled slider.gguf:1" in result.usage
    result = export(gemma, tmp_path / "ollama", "ollama", [{"good": 1.5, "bad": -0.5}])
    assert result.parity.num_prompts == 1 and {"Modelfile", "model.gguf"} <= set(result.files)


def test_soft_prompt(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    result = export(run_of(tmp_path, "soft-prompt", tokenizer), tmp_path / "gguf", levels=["good"])
    assert result.parity.num_prompts == 1 and "good-f32.gguf" in result.files


def swap_adapters(export: Export) -> None:
    good, bad = export.folder / "good.gguf", export.folder / "bad.gguf"
    good.rename(export.folder / "other.gguf")
    bad.rename(good)
    (export.folder / "other.gguf").rename(bad)


def test_swapped_adapters_fail(gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write: Callable[..., None] = GgufExporter.write

    def write_swapped(self: GgufExporter, export: Export, **more: Any) -> None:
        write(self, export, **more)
        swap_adapters(export)

    monkeypatch.setattr(GgufExporter, "write", write_swapped)
    with pytest.raises(RunError, match="largest difference"):
        export(gemma, tmp_path / "gguf")


@pytest.mark.parametrize("to", ["gguf", "ollama"])
@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("<|im_start|>", "<|im_start|> "),
        ("{{ bos_token }}", ""),
        ("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"),
    ],
)
def test_another_template_fails(
    text: str, wrong: str, to: str, gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: Callable[..., Any] = PromptFormat.exported_tokenizer

    def with_wrong_template(self: PromptFormat) -> Any:
        tokenizer = copy.copy(exported(self))
        assert text in tokenizer.chat_template
        tokenizer.chat_template = tokenizer.chat_template.replace(text, wrong)
        return tokenizer

    monkeypatch.setattr(PromptFormat, "exported_tokenizer", with_wrong_template)
    with pytest.raises(RunError, match="token ids of the prompt differ"):
        export(gemma, tmp_path / "out", to, ["good"] if to == "ollama" else ())
