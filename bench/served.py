"""A run of SmolLM2 to serve, and a server as a process of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import meetlm

PAIRS, HELD_OUT = 48, 16
"""Pairs to train on, and pairs that the checks of an export read: the levels have to differ, not to be good."""


def prompts(count: int) -> list[str]:
    """Return the first prompts of the demo's training data."""
    return [row["prompt"][0]["content"] for row in _rows(count)]


def train_run(folder: Path, model: str = "smollm2") -> Path:
    """Train the two levels for one epoch, on casual (good) and formal replies of the demo, and return the run.

    Args:
        folder: Receives the data and the run; a run that is there already is used.
        model: The language model.
    """
    run, data = folder / "run", folder / "pairs.jsonl"
    if not run.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sides = ({"chosen": row["completions"][2], "rejected": row["completions"][0]} for row in _rows(PAIRS))
        messages = ({s: [{"role": "assistant", "content": text}] for s, text in pair.items()} for pair in sides)
        rows = ({"prompt": row["prompt"], **pair} for row, pair in zip(_rows(PAIRS), messages, strict=True))
        data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        settings = {"data.path": str(data), "data.holdout": HELD_OUT, "model.name": model, "optim.epochs": 1}
        meetlm.train("pairs-meet-lora", out=run, preset="small", **settings)
    return run


@contextmanager
def process(command: Sequence[object], health: str, seconds: float = 300) -> Iterator[tuple[str, int]]:
    """Start a server and yield its address and process id once it is ready; its messages follow an error.

    Args:
        command: Program and arguments; ``{port}`` in an argument stands for a free port.
        health: Path that answers with success when the server is ready.
        seconds: How long to wait for that.

    Raises:
        SystemExit: The server does not start.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen([str(part).format(port=port) for part in command], stdout=log, stderr=log) as server,
    ):
        try:
            deadline = time.monotonic() + seconds
            while not _is_ready(address + health):
                if server.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{' '.join(map(str, command))} does not start:\n{log.read()[-4000:]}")
                time.sleep(0.5)
            yield address, server.pid
        finally:
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()


def program(name: str) -> str:
    """Return the path of a program in this Python environment."""
    return str(Path(sys.executable).with_name(name))


def _rows(count: int) -> list[dict[str, object]]:
    text = (resources.files("meetlm.demo") / "data" / "train.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()[:count]]


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
