"""What our programs train in each job: control and stage, with the learning rates that the peers have too."""

from __future__ import annotations

from typing import Any

LORA = {"kind": "lora", "rank": 4, "alpha": 16}
PROMPT = {"kind": "soft-prompt", "length": 50}
STAGES: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {
    ("lora-sft", "ours"): (LORA, {"train": ["control"], "format": "chosen", "lr": 1e-4}),
    ("lora-two-levels", "ours"): (LORA, {"train": ["control"], "lr": 1e-4}),
    ("scope", "ours"): (LORA, {"train": ["control"], "lr": 1e-4}),
    ("scope", "ours-response"): ({**LORA, "scope": "response"}, {"train": ["control"], "lr": 1e-4}),
    ("scope", "ours-step2"): (LORA, {"train": ["control", "lm"], "lr": 2e-5}),
    ("scope", "ours-step2-response"): ({**LORA, "scope": "response"}, {"train": ["control", "lm"], "lr": 2e-5}),
    ("soft-prompt", "ours"): (PROMPT, {"train": ["control"], "format": "chosen", "lr": 1e-3}),
    ("full", "ours"): ({"kind": "none"}, {"train": ["lm"], "format": "chosen", "lr": 2e-5}),
    ("full", "ours-meet"): (LORA, {"train": ["control", "lm"], "lr": 2e-5}),
    ("dpo", "ours"): (
        {"kind": "none"},
        {"train": ["lm"], "format": "pairwise", "lr": 5e-6, "objective": {"kind": "dpo", "beta": 0.1}},
    ),
}
"""For each job and program: the control and the stage."""


def rate(job: str) -> float:
    """Return the learning rate of a job."""
    return float(STAGES[job, "ours"][1]["lr"])
