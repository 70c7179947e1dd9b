"""What ``meet plan`` says a training job of ours takes in memory, for the report to put beside what was measured.

    python bench/planned.py [--jobs NAME ...] [--steps 6]

Dry runs of the very steps of the job, in their order: nothing is trained, and no weights are loaded.
"""

from __future__ import annotations

import argparse
import json

from meetlm.config.process import prepare

prepare()  # as the command `meet` does: how a process keeps memory is part of what it takes

import torch  # noqa: E402
from jobs import JOBS  # noqa: E402
from rows import Rows, Scale  # noqa: E402
from stages import STAGES  # noqa: E402

from meetlm.diagnostics.allocator import held, replays  # noqa: E402
from meetlm.diagnostics.memory import Rehearsal  # noqa: E402
from meetlm.objectives.base import OBJECTIVES  # noqa: E402
from meetlm.policy.loading import checkpoint_activations, load_skeleton  # noqa: E402
from meetlm.training.loop import Collator  # noqa: E402
from meetlm.training.stage import StageSettings  # noqa: E402

MB = 1e6


def planned(job: str, rows: Rows, program: str = "ours", steps: int | None = None) -> dict[str, float | None]:
    """Return what a training job of ours takes, in MB.

    Args:
        job: Name of its work (``jobs.Job.work``).
        rows: Of the benchmark.
        program: Of meetlm: ``ours`` or ``ours-meet``.
        steps: The first so many, of the scale by default.

    Returns:
        ``weights_mb``, ``gradients_mb`` and ``moments_mb`` (AdamW's); ``tensors_above_mb``, the peak of all tensors
        above these three; ``above_mb``, the same of what the process holds, as the gate measures it, and ``total_mb``,
        the four together. The last two are ``None`` where the C library does not say what it holds.
    """
    of_control, of_stage = STAGES[job, program]
    stage = StageSettings(name=program, epochs=1, **of_stage)
    lm = load_skeleton(rows.folder).eval()
    if rows.scale.checkpointing:
        checkpoint_activations(lm)
    control = rows.control(lm, of_control)
    items = rows.items(stage.format, control, steps)
    kind = OBJECTIVES[stage.objective.kind]
    rehearsal = Rehearsal(lm, control, stage.train, kind.build(stage.objective), "packed", bf16=False)
    collate = Collator("packed", is_pairwise=kind.is_pairwise, share=True)
    size = rows.scale.rows if stage.format == "chosen" else rows.pairs
    states, above = rehearsal.states, 0
    for start in range(0, len(items), size):
        batch = collate([(item, torch.zeros(2)) for item in items[start : start + size]])
        above = max(above, rehearsal.forward_backward(batch).above_weights - states.gradients)
        rehearsal.step()
    process = held(rehearsal.events) if replays() else None
    return {
        "weights_mb": states.weights / MB,
        "gradients_mb": states.gradients / MB,
        "moments_mb": states.moments / MB,
        "tensors_above_mb": above / MB,
        "above_mb": None if process is None else (process - states.total) / MB,
        "total_mb": None if process is None else process / MB,
    }


def main() -> None:
    """Print what each job takes, a line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = {job.name: job for job in JOBS if job.trains and not job.model}
    parser.add_argument("--jobs", nargs="+", default=list(jobs), choices=list(jobs))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--scale", type=json.loads, default={}, help="of the rows, as JSON")
    chosen = parser.parse_args()
    for job in map(jobs.__getitem__, chosen.jobs):
        rows = Rows(Scale(**{**chosen.scale, **job.scale("cpu"), "steps": chosen.steps}))
        for program in [program for work, program in STAGES if work == job.work]:
            found = {name: value and round(value, 1) for name, value in planned(job.work, rows, program).items()}
            print(json.dumps({"job": job.name, "program": program, **found}), flush=True)


if __name__ == "__main__":
    main()
