"""Metrics in Prometheus's format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Borders of the histograms of requests."""


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("meet_requests", "Requests", ["path", "status"], registry=self.registry)
        self.prompt_tokens = Counter("meet_prompt_tokens", "Tokens of prompts", registry=self.registry)
        self.generated_tokens = Counter("meet_generated_tokens", "New tokens", registry=self.registry)
        self.active = Gauge("meet_active", "Completions in progress or waiting", registry=self.registry)
        self.running = Gauge("meet_running", "Completions in the batch", registry=self.registry)
        self.first_token_seconds = Histogram(
            "meet_first_token_seconds",
            "Seconds until the first token of a request",
            registry=self.registry,
            buckets=SECONDS,
        )
        self.request_seconds = Histogram(
            "meet_request_seconds", "Seconds of a request", registry=self.registry, buckets=SECONDS
        )
        self.step_seconds = Histogram("meet_step_seconds", "Seconds of a step of the batch", registry=self.registry)
