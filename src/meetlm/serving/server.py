"""Runs the server until it is stopped."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

import uvicorn

from meetlm.config.errors import ConfigError
from meetlm.config.process import prepare_server
from meetlm.config.reporter import SILENT, Reporter
from meetlm.run.aligned import load
from meetlm.run.levels import levels_text
from meetlm.serving.app import build_app
from meetlm.serving.feedback import FEEDBACK
from meetlm.serving.settings import ServingSettings


def serve(run: Path, settings: ServingSettings, *, reporter: Reporter = SILENT) -> None:
    """Serve a run until SIGTERM or SIGINT; then no request is accepted, and those in progress have time to end.

    Args:
        run: Folder of the run.
        settings: How it is served.
        reporter: Receives the address once the server can be reached.

    Raises:
        RunError: The folder holds no finished run.
        ConfigError: The address cannot be used, or the API key is not set.
    """
    prepare_server()
    aligned = load(run)
    name = settings.name or run.resolve().name
    app = build_app(aligned, name, settings, run / FEEDBACK)
    listener = listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.grace)),
    )
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    reporter.message(f"serving {name} at {address}/v1, playground at {address}")
    reporter.message(f"levels: {levels_text(aligned.levels)}")
    if settings.api_key_env is None and not host.startswith("127.") and host != "::1":
        reporter.warning(f"--host {settings.host}: anyone who can reach this machine can use it; see --api-key-env")
    # uvicorn repeats a signal once it has ended: a stop is a success.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ConfigError: The address cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).split(" (")[0]  # without Python's remark about the address
        raise ConfigError(f"--host {host} --port {port}: {reason}; choose another address") from error
