"""An OpenAI-compatible endpoint on loopback that behaves as a test wants: judges well, badly, late or not at all."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from meetlm.data.example import Prompt
from meetlm.evaluation.settings import JudgeSettings

Body = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What the server sends; ``delay`` in seconds comes before it."""

    body: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    delay: float = 0.0


def chat(text: str | None, *, finish: str = "stop", usage: tuple[int, int] | None = (100, 10)) -> Reply:
    """A chat completion."""
    body: Body = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "judge-2026",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
    }
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return Reply(json.dumps(body))


def error(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """An error as OpenAI words it."""
    said = {"error": {"message": message, "type": "error", "code": code}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(json.dumps(said), status, {"Content-Type": "application/json", **named})


def shown(body: Body) -> tuple[str, str]:
    """The two replies in a request made with the prompt ``dialogue``."""
    text = body["messages"][-1]["content"]
    a = re.search(r"assistant A: start\]\n(.*?)\n\[Reply of assistant A: end", text, re.DOTALL)
    b = re.search(r"assistant B: start\]\n(.*?)\n\[Reply of assistant B: end", text, re.DOTALL)
    assert a and b, text
    return a[1], b[1]


class JudgeServer:
    """The server, running while the context lasts.

    Attributes:
        behave: Body of a request and its number, from 0, to the reply.
        received: Bodies, in order.
        times: When each came, in seconds.
        most: Most requests under way at once.
    """

    def __init__(self, behave: Callable[[Body, int], Reply]) -> None:
        self.behave = behave
        self.received: list[Body] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.most = self._now = 0
        self._lock, self._closing = threading.Lock(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                sent = self.rfile.read(int(self.headers["Content-Length"]))
                if len(sent) < int(self.headers["Content-Length"]):
                    self.close_connection = True  # the client stopped in the middle of it
                    return
                body = json.loads(sent)
                reply = outer._receive(body, self.path, self.headers.get("Authorization"))
                outer._closing.wait(reply.delay)
                with outer._lock:
                    outer._now -= 1
                try:
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(reply.body.encode())))
                    self.end_headers()
                    self.wfile.write(reply.body.encode())
                except ConnectionError:
                    self.close_connection = True  # the client did not wait

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def _receive(self, body: Body, path: str, key: str | None) -> Reply:
        with self._lock:
            number = len(self.received)
            self.received.append(body)
            self.paths.append(path)
            self.keys.append(key)
            self.times.append(time.monotonic())
            self._now += 1
            self.most = max(self.most, self._now)
        return self.behave(body, number)

    @property
    def distinct(self) -> int:
        """Number of different requests."""
        return len({json.dumps(body, sort_keys=True) for body in self.received})

    def __enter__(self) -> JudgeServer:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def settings(server: JudgeServer | str, **more: Any) -> JudgeSettings:
    url = server if isinstance(server, str) else server.url
    fields = {"model": "judge", "base_url": url, "key_env": None, "prompt": "dialogue", "timeout": 20.0}
    return JudgeSettings.model_validate({**fields, "retries": 0, **more})


def pairs(number: int) -> list[tuple[Prompt, str, str]]:
    """Ours is longer in every third pair, shorter in every third, as long in the rest."""
    lengths = [(9, 4), (4, 9), (6, 6)]
    return [(Prompt(f"\n\nHuman: q{n}\n\nAssistant:"), " " + "o" * lengths[n % 3][0], " " + "t" * lengths[n % 3][1])
            for n in range(number)]  # fmt: skip


def longer(body: Body, number: int) -> Reply:
    """A judge with no eye for the position."""
    a, b = map(len, shown(body))
    return chat(f"I compared both.\n[[{'A' if a > b else 'B' if b > a else 'C'}]]")


def says(text: str) -> Callable[[Body, int], Reply]:
    return lambda body, number: chat(text)
