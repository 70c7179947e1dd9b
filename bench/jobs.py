"""The jobs of the benchmark, the programs of each, and the goals. Plain data: the driver reads it without torch.

The programs of a job take the same rows, step by step. Programs called ``ours…`` are meetlm's; the others are peers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from models import MODELS

ROWS = 8
"""Sequences per step of SmolLM2-135M on a CPU; half as many pairs where a job takes both replies."""
MEMORY_GOAL = 0.6
"""Largest share of the peer's memory that our program may take."""
LEVELS_GOAL = 1.1
"""Largest cost per token with 16 levels over that with 2 levels: "about the same"."""
SCORE_TOLERANCE = 1e-4
"""Largest difference of two scores of one row that counts as the same work."""
LOSS_TOLERANCE = {"cpu": 1e-3, "cuda": 1e-2}
"""Largest relative difference of two losses of a step that counts as the same work: f32 and bf16."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A program that ours is compared with.

    Attributes:
        name: Name of the program.
        goal: Smallest ratio of real tokens per second, ours over the peer's; ``None`` for no goal.
        other_rows: Why its steps do not hold the same rows as ours, if they do not: losses are then not compared.
        ours: Our program beside it.
        in_best: Whether it competes for the best setting of the peer, which has a goal of its own.
    """

    name: str
    goal: float | None = None
    other_rows: str = ""
    ours: str = "ours"
    in_best: bool = False

    @property
    def key(self) -> str:
        """Name of the comparison within its job."""
        return self.name if self.ours == "ours" else f"{self.name} (ours: {self.ours})"


@dataclass(frozen=True, slots=True)
class Job:
    """Some rows of the report.

    Attributes:
        name: Name for ``--jobs``.
        title: What is done.
        peers: In the order of the report; empty where our program is compared with itself.
        rows: The unit of a step: ``chosen`` rows, ``pairs`` (half as many), ``prompts``, ``scored`` or ``random``.
        best_goal: Smallest ratio over the fastest of the peers with ``in_best``.
        model: Key of ``models.MODELS``, with random weights; by default SmolLM2-135M-Instruct.
        like: The job whose programs and stages it has, by default its own.
        device: Its device; ``None`` for either.
        checkpointing: Whether both sides recompute activations in backward; no goals then.
    """

    name: str
    title: str
    peers: tuple[Peer, ...]
    rows: str = "chosen"
    best_goal: float | None = None
    model: str = ""
    like: str = ""
    device: str | None = "cpu"
    checkpointing: bool = False

    @property
    def work(self) -> str:
        """The job whose programs and stages it has."""
        return self.like or self.name

    def scale(self, device: str) -> dict[str, Any]:
        """Return the job's part of the scale of the rows on a device."""
        return {"model": self.model, "rows": self.num_rows(device), "checkpointing": self.checkpointing}

    def num_rows(self, device: str) -> int:
        """Return the number of sequences per step."""
        return MODELS[self.model].rows[device] if self.model else ROWS

    @property
    def trains(self) -> bool:
        """Whether it is a training job."""
        return self.rows in ("chosen", "pairs")

    @property
    def scores(self) -> bool:
        """Whether it is the scoring job."""
        return self.rows == "scored"


PACKS = "its packs of 1,024 tokens, two per step, hold other rows"
SCOPES = "the levels act on other tokens, so the losses differ"
LENGTH_GROUPS = "its sampler puts rows of like length together, out of 400"

BASE = (
    Job(
        "lora-sft",
        "LoRA r=4, one level, on chosen replies",
        (
            Peer("trl", goal=4.0, in_best=True),
            Peer("trl-one-by-one", in_best=True),
            Peer("trl-padding-free", in_best=True),
            Peer("trl-padding-free-2", in_best=True),
            Peer("trl-packed", other_rows=PACKS, in_best=True),
            Peer("trl-grouped", other_rows=LENGTH_GROUPS, in_best=True),
        ),
        best_goal=1.8,
    ),
    Job("lora-two-levels", "MEET step 1: LoRA r=4, two levels in one run", (Peer("peft-adapters", goal=3.0),), "pairs"),
    Job(
        "scope",
        "MEET with LoRA r=4, scope response beside scope all",
        (
            Peer("ours", goal=1.4, other_rows=SCOPES, ours="ours-response"),
            Peer("ours-step2", other_rows=SCOPES, ours="ours-step2-response"),
        ),
        "pairs",
    ),
    Job("soft-prompt", "MEET step 1: soft prompt of 50, one level, on chosen replies", (Peer("trl-prompt", goal=3.0),)),
    Job(
        "full",
        "MEET step 2: the language model, on chosen replies",
        (
            Peer("trl", goal=2.5),
            Peer(
                "trl",
                goal=2.5,
                other_rows="4 pairs of both replies, and a LoRA of two levels is trained too",
                ours="ours-meet",
            ),
        ),
    ),
    Job("dpo", "DPO", (Peer("trl", goal=2.5), Peer("trl-precomputed", goal=2.5)), "pairs"),
    Job("generation", "generation: 64 prompts, 64 new tokens, greedy", (Peer("transformers", goal=2.0),), "prompts"),
    Job("scoring", "reward model: 400 pairs, both replies", (Peer("transformers", goal=2.0),), "scored"),
    Job("growth", "how cost grows", (), "random"),
)


def _with_model(like: str, model: str, *peers: str, device: str | None = "cuda") -> Job:
    """Return a job beside some of its peers, with another model and no goal."""
    base = next(job for job in BASE if job.name == like)
    return replace(
        base,
        name=f"{like}-{model}",
        title=f"{base.title}: {MODELS[model].title}",
        peers=tuple(Peer(name) for name in peers),
        best_goal=None,
        model=model,
        like=like,
        device=device,
    )


def _with_checkpointing(job: Job) -> Job:
    """Return a training job beside the same peers, with gradient checkpointing on both sides and no goal."""
    return replace(
        job,
        name=f"{job.name}-checkpointing",
        title=f"{job.title}: gradient checkpointing on both sides",
        peers=tuple(replace(peer, goal=None) for peer in job.peers),
        best_goal=None,
        like=job.name,
        checkpointing=True,
    )


JOBS = (
    *BASE,
    *(_with_checkpointing(job) for job in BASE if job.trains),
    *(_with_model("lora-sft", model, "trl", device=None) for model in MODELS),
    *(_with_model("full", model, "trl") for model in MODELS),
    _with_model("lora-two-levels", "135m", "peft-adapters"),
    _with_model("dpo", "135m", "trl", "trl-precomputed"),
)
"""Every job, in the order of the report: those of SmolLM2-135M-Instruct, checkpointing last, then of other models."""

GROUPS: dict[str, Callable[[Job], bool]] = {
    "all": lambda job: True,
    "models": lambda job: bool(job.model),
    "checkpointing": lambda job: job.checkpointing,
}
"""Groups of jobs for ``--jobs``, beside the names of jobs."""


def select_jobs(names: list[str], device: str = "cpu") -> list[Job]:
    """Return the jobs with these names, or of these ``GROUPS``, that run on the device.

    Raises:
        SystemExit: A name is unknown there.
    """
    known = {job.name: job for job in JOBS if job.device in (device, None)}
    groups = {group: [job.name for job in known.values() if belongs(job)] for group, belongs in GROUPS.items()}
    selected = list(dict.fromkeys(job for name in names for job in groups.get(name, [name])))
    unknown = [name for name in selected if name not in known]
    if unknown:
        raise SystemExit(f"unknown job {unknown[0]!r}; on {device} there are {', '.join(known)}")
    return [known[name] for name in selected]
