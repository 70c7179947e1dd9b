"""Runs the server of a tiny run in a thread, on a free port of loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from meetlm.run.aligned import Aligned
from meetlm.serving.app import build_app
from meetlm.serving.server import listen
from meetlm.serving.settings import ServingSettings


@contextmanager
def serving(aligned: Aligned, feedback: Path = Path("unused"), **settings: Any) -> Iterator[str]:
    """Serve ``aligned`` as the model ``tiny`` and yield the address."""
    app = build_app(aligned, "tiny", ServingSettings(**{"max_tokens": 64, **settings}), feedback)
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def metric(address: str, name: str) -> float:
    """Return the value of a metric without labels."""
    lines = httpx2.get(f"{address}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def wait_until_idle(address: str, seconds: float = 10) -> None:
    """Wait until no completion is in progress or waiting."""
    for _ in range(round(seconds * 50)):
        if metric(address, "meet_active") == 0:
            return
        time.sleep(0.02)
    raise AssertionError("completions are still in progress")
