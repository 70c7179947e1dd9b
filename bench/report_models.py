"""RESULTS.md: the curve over model size."""

from __future__ import annotations

from collections.abc import Iterable

from jobs import JOBS
from models import MODELS
from results import Compared, Rate, Run, compared, rates, spread

COLUMNS = (
    "model",
    "rows a step",
    "ours beside",
    "tokens a second, ours / peer",
    "ratio",
    "memory, ours / peer",
    "share of a plain product",
    "the same work",
)


def over_models(run: Run) -> Iterable[str]:
    """Yield a table for each job that was run with models of several sizes."""
    rows = [row for row in compared(run) if row.job.model]
    if not rows:
        yield "Not run."
        return
    plain = {(rate.job.name, rate.program): rate for rate in rates(run)}
    yield (
        "Models with random weights: what a step costs does not depend on what was learned. As many rows a step as two "
        "programs of that size have memory for side by side."
    )
    yield ""
    for work in dict.fromkeys(row.job.work for row in rows):
        of_work = [row for row in rows if row.job.work == work]
        title = next(job.title for job in JOBS if job.name == work)
        yield f"**{title}**"
        yield ""
        yield f"| {' | '.join(COLUMNS)} |"
        yield f"|{' --- |' * len(COLUMNS)}"
        for row in of_work:
            yield _line(run, row, plain.get((row.job.name, row.peer.ours)))
        yield ""


def _line(run: Run, row: Compared, rate: Rate | None) -> str:
    share = spread(rate.shares) if rate else "–"
    cells = [MODELS[row.job.model].title, str(row.job.num_rows(run.device)), *row.cells, share, row.work]
    return f"| {' | '.join(cells)} |"
