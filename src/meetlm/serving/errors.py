"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from meetlm.config.errors import encodable
from meetlm.config.settings import plain_problems
from meetlm.serving.engine import OverloadedError

BODY_TOO_LARGE = "the body is too large; see the option --max-body of the server"
MAX_MESSAGE = 500
"""Largest number of characters of a message, which may quote the request."""
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 500: "server_error"}
_UNION_PART = re.compile(r"(constrained-)?str|float|[\w-]+\[.*\]")
"""Parts of pydantic's locations that name a type of a union, not a field."""


class APIError(Exception):
    """An error that a client receives.

    Args:
        status: HTTP status.
        message: What is wrong and what to do.
        param: The field at fault.
        code: OpenAI's code of the error.
        headers: Further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, Any]:
        """Return the body of the response; characters that UTF-8 cannot encode are escaped."""
        message = self.message if len(self.message) <= MAX_MESSAGE else f"{self.message[:MAX_MESSAGE]}…"
        fields = {
            "message": message,
            "type": _TYPES.get(self.status, "invalid_request_error"),
            "param": self.param,
            "code": self.code,
        }
        return {"error": {name: value and encodable(value) for name, value in fields.items()}}

    def response(self) -> JSONResponse:
        """Return the response."""
        return JSONResponse(self.to_dict(), self.status, self.headers)


def overloaded(error: OverloadedError) -> APIError:
    """Return the error of a request that finds no room."""
    headers = {"Retry-After": str(error.retry_after)}
    return APIError(429, str(error), code="rate_limit_exceeded", headers=headers)


def validation_error(details: Any) -> APIError:
    """Return the error about the first problem that pydantic found in a request."""
    if any(detail["type"] == "json_invalid" for detail in details):
        return APIError(400, "the body is not valid JSON", code="invalid_json")
    first, *others = plain_problems(details)
    same_field = [problem for problem in others if problem[0][:2] == first[0][:2]]
    location, message = max([first, *same_field], key=lambda problem: len(problem[0]))  # the type that fits best
    parts = [str(part) for part in location[1:] if not (isinstance(part, str) and _UNION_PART.fullmatch(part))]
    param = ".".join(parts)
    if not param and details[0]["type"] != "value_error":
        message = "expected a JSON object with the header Content-Type: application/json"
    return APIError(400, f"{param}: {message}" if param else message, param=param or None)


def add_handlers(app: FastAPI) -> None:
    """Send every error of ``app`` in OpenAI's shape."""

    @app.exception_handler(APIError)
    async def send_api_error(request: Request, error: APIError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def send_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        return validation_error(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def send_http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = {
            400: "the body is not valid JSON in UTF-8",
            404: f"no such path: {request.url.path}; see /openapi.json",
            405: f"{request.method} is not allowed for {request.url.path}; see /openapi.json",
            413: BODY_TOO_LARGE,
        }.get(error.status_code, HTTPStatus(error.status_code).phrase)
        return APIError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def send_unexpected_error(request: Request, error: Exception) -> JSONResponse:
        return APIError(500, "the server failed; its log has the reason").response()
