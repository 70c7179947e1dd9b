"""Generation in several processes, which share the requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from meetlm.config.reporter import Reporter
from meetlm.config.world import World
from meetlm.generation.session import GeneratedText, Request, Session

BATCHES_PER_ROUND = 4
"""Batches that each of several processes generates before all exchange their completions."""


def iter_in_processes(
    session: Session, requests: Sequence[Request], batch_size: int, reporter: Reporter
) -> Iterator[tuple[int, GeneratedText]]:
    """Yield the index of each request and its completion, as they end; where several processes share them, in rounds.

    A round has several batches per process; all processes then yield all completions of the round.
    """
    world = World.current()
    if world.size == 1:
        yield from session.iter_completions(requests, reporter=reporter)
        return
    size = BATCHES_PER_ROUND * batch_size * world.size
    with reporter.progress("generate", total=len(requests), unit="completion") as progress:
        for start in range(0, len(requests), size):
            share = world.share(requests[start : start + size])
            completions = world.merge(dict(zip(share, session.complete(list(share.values())), strict=True)))
            progress.advance(len(completions))
            yield from enumerate(completions, start)
