"""One program of one job, as a process of its own: python bench/worker.py JOB PROGRAM SCALE. The driver starts it.

SCALE is the JSON of ``rows.Scale``.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path


def main() -> None:
    """Run the program until the driver has had enough."""
    name, program, scale = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    if program.startswith("ours"):
        from meetlm.config.process import prepare

        prepare()  # as the command `meet` does before torch is loaded
    from gate import Gate

    device = scale.get("device", "cpu")
    gate = Gate(device)
    Path("/proc/self/oom_score_adj").write_text("1000")  # rather this than another, where memory runs out
    import torch
    from jobs import JOBS
    from rows import Rows, Scale

    from meetlm.cli.console import quiet_libraries

    quiet_libraries()
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
    rows = Rows(Scale(**scale))
    (job,) = [known.work for known in JOBS if known.name == name]
    if job == "scoring":
        import scoring

        scoring.serve(program, rows, gate)
    elif job == "growth":
        from growth import grow

        grow(rows, gate)
    elif program.startswith("ours"):
        import ours

        ours.generate(rows, gate) if job == "generation" else ours.train(job, program, rows, gate)
    else:
        import peers

        if job == "generation":
            peers.generate(rows, gate)
        elif job == "lora-two-levels":
            peers.adapters(rows, gate)
        elif job == "dpo":
            peers.dpo(program, rows, gate)
        else:
            peers.sft(job, program, rows, gate)


if __name__ == "__main__":
    main()
