"""The playground: a page that compares replies at several levels, and the routes that only it needs."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from importlib import resources
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from meetlm.config.errors import MeetError
from meetlm.run.aligned import Aligned
from meetlm.serving.engine import Engine, OverloadedError
from meetlm.serving.errors import APIError, overloaded
from meetlm.serving.feedback import FeedbackFile
from meetlm.serving.prepare import conversation
from meetlm.serving.protocol import FeedbackRequest, ScoreRequest
from meetlm.serving.settings import ServingSettings

FILES = {
    "": ("index.html", "text/html"),
    "playground.css": ("playground.css", "text/css"),
    "playground.js": ("playground.js", "text/javascript"),
}
"""Files of the page and their media types, by path."""
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'"
"""The page loads nothing from other sites, and no text of a model can become a script."""


def build_router(
    aligned: Aligned, name: str, settings: ServingSettings, engine: Engine, feedback: FeedbackFile
) -> APIRouter:
    """Return the routes of the playground.

    Args:
        aligned: The run, for what its levels are; its model is used through ``engine`` only.
        name: Model name of the run.
        settings: Limits.
        engine: Scores.
        feedback: Receives the thumbs.
    """
    router = APIRouter()
    folder = resources.files("meetlm.serving") / "static"
    pages = {path: ((folder / file).read_bytes(), media_type) for path, (file, media_type) in FILES.items()}

    def page(path: str) -> Response:
        content, media_type = pages[path]
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return Response(content, media_type=media_type, headers=headers)

    for path in FILES:
        router.add_api_route(f"/{path}", lambda path=path: page(path), include_in_schema=False)

    @router.get("/v1/levels")
    async def show_levels() -> JSONResponse:
        """Return the attributes of the run with their levels, and what `meet dial` has found out about them."""
        return JSONResponse(
            {
                "model": name,
                "attributes": aligned.levels.to_dict(),
                "default": aligned.meet.resolve(None) if aligned.meet.default_level else None,
                "dial": aligned.meet.dial,
                "takes_mixes": takes_mixes(aligned),
                "max_tokens": settings.max_tokens,
                "feedback": str(feedback.path),
            }
        )

    @router.post("/v1/score")
    async def score(body: ScoreRequest) -> JSONResponse:
        """Score a reply by each ordered attribute: log p(reply | best level) - log p(reply | worst level), in nats."""
        prompt = conversation(body.messages, aligned.meet)

        def score_attributes() -> list[dict[str, Any]]:
            results = []
            for attribute in aligned.levels.attributes:
                if attribute.is_ordered and len(attribute.levels) > 1:
                    (value,) = engine.aligned.score([prompt], [body.completion], attribute.name)
                    ends = {"worst": attribute.levels[0], "best": attribute.levels[-1]}
                    results.append({"attribute": attribute.name, **ends, **asdict(value)})
            return results

        try:
            return JSONResponse({"scores": await engine.call(score_attributes)})
        except OverloadedError as error:
            raise overloaded(error) from error
        except MeetError as error:
            raise APIError(400, str(error)) from error

    @router.post("/v1/feedback")
    async def add_feedback(body: FeedbackRequest) -> JSONResponse:
        """Append a rated reply to the file of feedback."""
        prompt = conversation(body.messages, aligned.meet)
        identifier = await asyncio.to_thread(feedback.add, prompt, body.completion, body.label, body.model)
        return JSONResponse({"id": identifier})

    @router.delete("/v1/feedback/{identifier}")
    async def remove_feedback(identifier: str) -> JSONResponse:
        """Remove a rated reply again."""
        if not await asyncio.to_thread(feedback.remove, identifier):
            raise APIError(404, f"no feedback with the id {identifier!r}")
        return JSONResponse({"id": identifier, "deleted": True})

    return router


def takes_mixes(aligned: Aligned) -> bool:
    """Return whether the control takes mixes of the levels of an attribute."""
    indices = next((indices for indices in aligned.levels.ranges.values() if len(indices) > 1), None)
    if indices is None:
        return False
    weights = tuple(0.5 if k in indices[:2] else 0.0 for k in range(len(aligned.levels)))
    return aligned.policy.control.weights_failure_reason(weights) is None
