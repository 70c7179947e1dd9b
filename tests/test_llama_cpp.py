"""Exports to llama.cpp, Ollama and vLLM, without these programs: levels as scales, commands, refused runs."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

import meetlm
from meetlm.config.errors import ConfigError, RunError
from meetlm.config.overrides import Override
from meetlm.data.levels import Attribute, LevelSpace
from meetlm.data.prompt_format import pin_format
from meetlm.export.base import Export
from meetlm.export.converter import LORA_CONVERTER, MODEL_CONVERTER
from meetlm.export.exporters import EXPORTERS
from meetlm.export.levels_file import Adapter, ServedLevels
from meetlm.export.ollama import go_template, modelfile
from meetlm.export.settings import ExportSettings
from meetlm.export.vllm import MAX_LORA_RANKS
from meetlm.llama_cpp import payload
from meetlm.run.execute import execute
from run_folders import config_for
from tiny import CHATML, text_format, tiny_policy, tiny_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # PEFT's
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning"),  # PEFT's
]
VLLM_REFUSES = (
    "modules_to_save",
    "use_dora",
    "lora_bias",
    "alora_invocation_tokens",
    "layer_replication",
    "rank_pattern",
)
"""Fields of PEFT's configuration with which vLLM 0.32 loads no LoRA, or another one."""
TWO = LevelSpace((Attribute("tone", ("casual", "formal")), Attribute("length", ("brief", "detailed"))))


@pytest.fixture
def scale(tmp_path: Path) -> Path:
    levels = LevelSpace.of_names("q0", "q1", "q2")
    ServedLevels("base-f16.gguf", levels, tuple(Adapter(f"{name}.gguf", name) for name in levels)).write(tmp_path)
    return tmp_path


def scales(level: Any, export: Path) -> list[float]:
    lora = payload(level, export)["lora"]
    assert [entry["id"] for entry in lora] == list(range(len(lora)))
    return [entry["scale"] for entry in lora]


def test_payload_of_a_scale(scale: Path) -> None:
    assert scales("q2", scale) == [0, 0, 1]
    assert scales({"q2": 1.5, "q0": -0.5}, scale) == [-0.5, 0, 1.5]
    assert scales(0.25, scale) == [0.5, 0.5, 0]
    assert scales(1.25, scale) == [0, -0.5, 1.5]
    assert scales({"q0": 0.0}, scale) == [0, 0, 0]
    with pytest.raises(ConfigError, match="level 'q3' is unknown"):
        payload("q3", scale)


def test_payload_of_attributes(tmp_path: Path) -> None:
    ServedLevels("base-f16.gguf", TWO, tuple(Adapter(f"{name}.gguf", name) for name in TWO)).write(tmp_path)
    assert scales({"tone": "formal", "length": 0.25}, tmp_path) == [0, 1, 0.75, 0.25]
    assert scales("length=brief", tmp_path) == [0, 0, 1, 0]


def test_payload_of_a_slider(tmp_path: Path) -> None:
    levels = LevelSpace.of_names("q0", "q1", "q2")
    ServedLevels("q0-f16.gguf", levels, (Adapter("slider.gguf", "q2", "q0"),)).write(tmp_path)
    assert scales("q0", tmp_path) == [0]
    assert scales("q2", tmp_path) == [1]
    assert scales({"q2": 1.5, "q0": -0.5}, tmp_path) == [1.5]
    for level in ("q1", {"q2": 1.5}, 0.25):
        with pytest.raises(ConfigError, match="only mixes of q0 and q2 whose weights sum to 1"):
            payload(level, tmp_path)


def test_payload_requires_an_export(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"levels\.json: no such file"):
        payload("good", tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    execute(config_for(folder / "inputs", "llama", "lora", chat=True, template=CHATML), folder / "run")
    return folder / "run"


@pytest.fixture
def converter(tmp_path: Path) -> Path:
    """Converters that fail as llama.cpp's do."""
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    for name in (MODEL_CONVERTER, LORA_CONVERTER):
        (folder / name).write_text("raise NotImplementedError('BPE pre-tokenizer was not recognized')")
    return folder


def test_the_converter(run: Path, converter: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="requires --converter"):
        meetlm.export_run(run, "gguf", out=tmp_path / "out")
    with pytest.raises(ConfigError, match=f"there is no {MODEL_CONVERTER}"):
        meetlm.export_run(run, "gguf", out=tmp_path / "out", settings=ExportSettings(converter=tmp_path))
    with pytest.raises(RunError, match="does not know the tokenizer"):
        meetlm.export_run(run, "gguf", out=tmp_path / "out", settings=ExportSettings(converter=converter))


@pytest.mark.parametrize(
    ("kind", "control", "to", "settings", "message"),
    [
        ("lora", {"scope": "response"}, "gguf", {}, "train with scope all"),
        ("lora", {"scope": "response"}, "gguf", {"slider": True}, "--slider requires a LoRA of scope all"),
        ("lora", {"scope": "response"}, "vllm", {}, "no activated LoRA"),
        ("soft-prompt", {}, "gguf", {"slider": True}, "--slider requires a LoRA"),
        ("soft-prompt", {}, "gguf", {}, "the run's prompts are plain text"),
        ("soft-prompt", {}, "ollama", {}, "has no control slot"),
        ("soft-prompt", {}, "vllm", {}, "serve --to merged"),
        ("lora", {"rank": 300}, "vllm", {}, "use --max-rank"),
    ],
)
def test_refused(
    kind: str, control: dict[str, Any], to: str, settings: dict[str, Any], message: str, converter: Path, tmp_path: Path
) -> None:
    policy = tiny_policy("llama", kind, **control)
    export = Export(
        policy=policy,
        format=text_format(),
        is_chat=False,
        levels={"good=1,bad=1": (1.0, 1.0)},
        model=tmp_path,
        base="base",
        prompts=(),
        last_tokens=frozenset({0}),
        folder=tmp_path,
        settings=ExportSettings(converter=converter, **settings),
    )
    assert message in str(EXPORTERS[to]().failure_reason(export))


def test_vllm(run: Path, tmp_path: Path) -> None:
    result = meetlm.export_run(run, "vllm", ["good", {"good": 1.5, "bad": -0.5}], out=tmp_path / "out", limit=1)
    assert result.parity is not None and result.parity.largest < 1e-4
    command = shlex.split(result.usage.splitlines()[0])
    options = dict(zip(command, command[1:], strict=False))
    assert int(options["--max-lora-rank"]) in MAX_LORA_RANKS and int(options["--max-lora-rank"]) >= 4
    assert options["--max-loras"] == "2"
    modules = [json.loads(text) for text in command[command.index("--lora-modules") + 1 :]]
    assert [module["name"] for module in modules] == ["good", "good=1.5,bad=-0.5"]
    assert all((Path(module["path"]) / "adapter_config.json").is_file() for module in modules)
    assert (Path(options["--tokenizer"]) / "tokenizer.json").is_file()
    bodies = [json.loads((Path(module["path"]) / "adapter_config.json").read_text()) for module in modules]
    assert all(body["r"] <= int(options["--max-lora-rank"]) for body in bodies)
    assert not any(body.get(key) for body in bodies for key in VLLM_REFUSES)
    assert command[2] == bodies[0]["base_model_name_or_path"] == str((run / "model").resolve())


def test_vllm_requires_a_python_that_has_it(run: Path, tmp_path: Path) -> None:
    for python, reason in ((tmp_path / "none", "No such file"), (Path(sys.executable), "No module named 'vllm'")):
        with pytest.raises(ConfigError, match=f"--vllm .*{reason}"):
            meetlm.export_run(run, "vllm", out=tmp_path / "out", settings=ExportSettings(vllm=python))


@pytest.mark.own_environment
@pytest.mark.slow
@pytest.mark.skipif("MEETLM_VLLM" not in os.environ, reason="MEETLM_VLLM names no Python of an environment with vLLM")
def test_vllm_itself(tmp_path: Path) -> None:
    """SmolLM2 at both levels and a mix; swapped levels fail."""
    config = config_for(tmp_path / "inputs", "llama", "lora", Override("model.name", "smollm2"), chat=True)
    execute(config, tmp_path / "run")
    settings = ExportSettings(vllm=Path(os.environ["MEETLM_VLLM"]))
    levels = ["good", "bad", {"good": 1.5, "bad": -0.5}]
    result = meetlm.export_run(tmp_path / "run", "vllm", levels, out=tmp_path / "out", limit=1, settings=settings)
    assert result.parity is not None
    assert result.parity.tool == "vLLM" and result.parity.num_prompts == 3 and result.parity.largest < 1e-3


def test_ollama_template() -> None:
    """What Ollama would write for a conversation is what the chat template writes."""
    tokenizer = tiny_tokenizer(template=CHATML)
    prompt_format = pin_format(tokenizer)
    assert go_template(prompt_format) == (
        "{{- range $i, $message := .Messages }}"
        '{{- if eq .Role "system" }}{{ "<|im_start|>system\\n" }}{{ .Content }}'
        '{{ "<|im_end|>\\n<|im_start|>user\\n" }}'
        '{{- else if eq .Role "user" }}{{- if eq $i 0 }}{{ "<|im_start|>system\\nYou are of use.<|im_end|>\\n'
        '<|im_start|>user\\n" }}{{- end }}{{ .Content }}{{ "<|im_end|>\\n<|im_start|>assistant\\n" }}'
        '{{- else if eq .Role "assistant" }}{{ .Content }}{{ "<|im_end|>\\n<|im_start|>user\\n" }}{{- end }}'
        "{{- end }}"
    )
    text = modelfile(prompt_format, is_chat=True)
    assert text.startswith("# Not verified with Ollama.\nFROM ./model.gguf\n")
    assert text.endswith('PARAMETER stop "<|im_end|>"\n')


def test_ollama_refuses_templates_that_depend_on_the_place_of_a_message() -> None:
    template = CHATML.replace("{% endfor %}", "{{ loop.index }}{% endfor %}")
    with pytest.raises(ConfigError, match="use --to gguf"):
        go_template(pin_format(tiny_tokenizer(template=template)))
