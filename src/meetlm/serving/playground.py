"""The playground: a page that compares replies at several levels, and the routes that only it needs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from meetlm.config.errors import MeetError
from meetlm.data.example import Prompt
from meetlm.evaluation.callables import CallableScorer
from meetlm.run.aligned import Aligned
from meetlm.serving.engine import Engine, OverloadedError
from meetlm.serving.errors import APIError, overloaded
from meetlm.serving.feedback import FeedbackFile
from meetlm.serving.prepare import conversation
from meetlm.serving.protocol import FeedbackRequest, ScoreRequest
from meetlm.serving.responses import AttributeScore, FeedbackId, Levels, RemovedFeedback, ScorerScore, Scores
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
    aligned: Aligned,
    name: str,
    settings: ServingSettings,
    engine: Engine,
    scorers: Sequence[CallableScorer],
    feedback: FeedbackFile,
) -> APIRouter:
    """Return the routes of the playground.

    Args:
        aligned: The run, for what its levels are; its model is used through ``engine`` only.
        name: Model name of the run.
        settings: Limits.
        engine: Scores by the levels.
        scorers: Further scorers of replies.
        feedback: Receives the thumbs.
    """
    router = APIRouter()
    scoring = ThreadPoolExecutor(
        1, thread_name_prefix="score"
    )  # functions of users need not be safe in several threads
    folder = resources.files("meetlm.serving") / "static"
    pages = {path: ((folder / file).read_bytes(), media_type) for path, (file, media_type) in FILES.items()}

    def page(path: str) -> Response:
        content, media_type = pages[path]
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return Response(content, media_type=media_type, headers=headers)

    for path in FILES:
        router.add_api_route(f"/{path}", lambda path=path: page(path), include_in_schema=False)

    @router.get("/v1/levels", response_model=Levels)
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
                "scorers": [
                    {"name": s.name, "description": s.description, "higher_is_better": s.higher_is_better}
                    for s in scorers
                ],
            }
        )

    @router.post("/v1/score", response_model=Scores)
    async def score(body: ScoreRequest) -> JSONResponse:
        """Score a reply by each ordered attribute, and by the scorers that the server was started with.

        The score by an attribute is log p(reply | best level) - log p(reply | worst level), in nats.
        """
        prompt = conversation(body.messages, aligned.meet)

        def score_by_attributes() -> list[AttributeScore]:
            results: list[AttributeScore] = []
            for attribute in aligned.levels.attributes:
                if attribute.is_ordered and len(attribute.levels) > 1:
                    (value,) = engine.aligned.score([prompt], [body.completion], attribute.name)
                    results.append(
                        {
                            "attribute": attribute.name,
                            "worst": attribute.levels[0],
                            "best": attribute.levels[-1],
                            "total": value.total,
                            "per_token": value.per_token,
                        }
                    )
            return results

        try:
            by_attributes = await engine.call(score_by_attributes)
        except OverloadedError as error:
            raise overloaded(error) from error
        except MeetError as error:
            raise APIError(400, str(error)) from error
        loop = asyncio.get_running_loop()
        by_scorers = [await loop.run_in_executor(scoring, score_by, s, prompt, body.completion) for s in scorers]
        return JSONResponse({"scores": by_attributes, "scorers": by_scorers})

    @router.post("/v1/feedback", response_model=FeedbackId)
    async def add_feedback(body: FeedbackRequest) -> JSONResponse:
        """Append a rated reply to the file of feedback."""
        prompt = conversation(body.messages, aligned.meet)
        identifier = await asyncio.to_thread(feedback.add, prompt, body.completion, body.label, body.model)
        return JSONResponse({"id": identifier})

    @router.delete("/v1/feedback/{identifier}", response_model=RemovedFeedback)
    async def remove_feedback(identifier: str) -> JSONResponse:
        """Remove a rated reply again."""
        if not await asyncio.to_thread(feedback.remove, identifier):
            raise APIError(404, f"no feedback with the id {identifier!r}")
        return JSONResponse({"id": identifier, "deleted": True})

    return router


def score_by(scorer: CallableScorer, prompt: Prompt, completion: str) -> ScorerScore:
    """Return the score of a reply, or why it has none."""
    try:
        (value,), problems = scorer.score([prompt], [completion], [None], ["the reply"])
    except MeetError as error:  # of the user's function
        return {"name": scorer.name, "value": None, "problem": str(error)}
    return {"name": scorer.name, "value": value, "problem": problems[0].description if problems else None}


def takes_mixes(aligned: Aligned) -> bool:
    """Return whether the control takes mixes of the levels of an attribute."""
    indices = next((indices for indices in aligned.levels.ranges.values() if len(indices) > 1), None)
    if indices is None:
        return False
    weights = tuple(0.5 if k in indices[:2] else 0.0 for k in range(len(aligned.levels)))
    return aligned.policy.control.weights_failure_reason(weights) is None
