"""What every request must pass before it is read: the host and the origin it names, and the API key."""

from __future__ import annotations

import secrets
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meetlm.serving.errors import BODY_TOO_LARGE, APIError
from meetlm.serving.metrics import Metrics
from meetlm.serving.settings import ServingSettings

OPEN_PATHS = ("/", "/playground.css", "/playground.js", "/health")
"""Paths that need no key."""


class Guard:
    """ASGI middleware that refuses requests, and counts them.

    A page on another site can reach a server on loopback through the visitor's browser. Its requests have the site's
    origin; if the site's name resolves to this machine (DNS rebinding), they have its host name instead.

    Args:
        app: What to protect.
        settings: Host names, origins.
        api_key: The key that requests must send; ``None`` = no key.
        metrics: Counts requests.
    """

    def __init__(self, app: ASGIApp, settings: ServingSettings, api_key: str | None, metrics: Metrics) -> None:
        self._app, self._metrics, self._api_key = app, metrics, api_key
        self._hosts = {"localhost", settings.host.lower(), *(host.lower() for host in settings.allowed_hosts)}
        self._origins, self._max_body = set(settings.allowed_origins), settings.max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or send the reason why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = getattr(scope.get("route"), "path", "other")
                self._metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        error = self._refusal(scope["method"], scope["path"], Headers(scope=scope))
        await (self._app if error is None else error.response())(scope, receive, counted_send)

    def _refusal(self, method: str, path: str, headers: Headers) -> APIError | None:
        host = headers.get("host", "")
        if not self._is_allowed_host(host):
            return APIError(403, f"host {host!r} is not allowed; see the option --allow-host of the server")
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins | {f"http://{host}", f"https://{host}"}:
            return APIError(403, f"origin {origin!r} is not allowed; see the option --allow-origin of the server")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_body:
            return APIError(413, BODY_TOO_LARGE)
        if self._api_key is None or path in OPEN_PATHS or method == "OPTIONS":
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and secrets.compare_digest(key.strip().encode(), self._api_key.encode()):
            return None
        problem = "incorrect API key" if key else "no API key"
        return APIError(
            401,
            f"{problem}; send the header Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _is_allowed_host(self, host: str) -> bool:
        """Whether a host is an address, which no other site's name resolves to, or a name of this server."""
        try:
            address = urlsplit(f"//{host}")
            name, _ = address.hostname or "", address.port  # a port that is no number raises ValueError
        except ValueError:
            return False
        if name in self._hosts:
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True
