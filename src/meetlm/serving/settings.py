"""Settings of the server. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from pydantic import Field

from meetlm.config.settings import Settings


class ServingSettings(Settings):
    """How a run is served."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 = all interfaces")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 = any free port")
    name: str | None = Field(None, min_length=1, description="model name of the run; by default the folder's name")
    api_key_env: str | None = Field(
        None, description="environment variable with the API key that requests must send; by default no key"
    )
    batch_size: int = Field(32, ge=1, description="maximum number of rows per forward pass; guidance takes two rows")
    queue: int = Field(
        256, ge=0, description="maximum number of waiting completions; further requests are refused with status 429"
    )
    max_tokens: int = Field(
        512, ge=1, description="maximum number of new tokens per completion, and the default of requests"
    )
    max_n: int = Field(8, ge=1, description="maximum number of completions per request")
    max_body: int = Field(1_000_000, ge=1, description="maximum size of a request's body in bytes")
    timeout: float = Field(300.0, gt=0, description="maximum number of seconds per request, waiting included")
    grace: float = Field(30.0, ge=0, description="seconds that requests have to finish when the server is stopped")
    allowed_hosts: tuple[str, ...] = Field((), description="further host names under which the server is addressed")
    allowed_origins: tuple[str, ...] = Field((), description="origins of web pages that may send requests (CORS)")
    scorers: tuple[str, ...] = Field(
        (), description="scorers of replies in the playground: module:function, or words for the length"
    )
