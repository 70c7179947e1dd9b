"""``meet serve``: an OpenAI-compatible server for a run."""

from __future__ import annotations

from pathlib import Path

import click

from meetlm.cli.console import ConsoleReporter, quiet_libraries
from meetlm.cli.main import main
from meetlm.cli.options import PATH, settings_options
from meetlm.config.extras import require_extra
from meetlm.serving.settings import ServingSettings

REPEATABLE = ("allowed_hosts", "allowed_origins", "scorers")
"""Fields of the settings whose options are repeatable."""
SINGLE_VALUED = tuple(name for name in ServingSettings.model_fields if name not in REPEATABLE)


@main.command(short_help="Serve a run with an OpenAI-compatible API.")
@click.argument("run", type=PATH)
@settings_options(ServingSettings, "settings", *SINGLE_VALUED)
@click.option(
    "--allow-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Additional host name of the server; repeatable.",
)
@click.option(
    "--allow-origin",
    "allowed_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Origin of web pages that may send requests (CORS), such as https://example.org; repeatable.",
)
@click.option(
    "--scorer",
    "scorers",
    multiple=True,
    metavar="MODULE:FUNCTION",
    help="Python function of prompt and completion, or `words` (number of words), whose score the playground shows "
    "under each reply; repeatable.",
)
def serve(run: Path, settings: ServingSettings, **repeatable: tuple[str, ...]) -> None:
    """Serve RUN with an OpenAI-compatible API. Each request chooses its level; all requests share one batch.

    The level is part of the model name (RUN:good, RUN:tone=formal,length=brief) or the field "level" of the body.

    \b
    Examples:
      meet serve runs/lora
      meet serve runs/lora --scorer my_scorers:politeness --scorer words
      meet serve runs/lora --host 0.0.0.0 --api-key-env MEET_API_KEY --allow-host lm.example.org
      curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"model": "lora:good", "messages": [{"role": "user", "content": "How do I boil rice?"}]}'
    """  # noqa: D301  click's mark is a real backspace
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        require_extra(package, "serve", "meet serve")
    quiet_libraries()
    from meetlm.serving.server import serve

    serve(run, settings.model_copy(update=repeatable), reporter=ConsoleReporter())
