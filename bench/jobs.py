"""The jobs of the benchmark, the programs of each, and the goals. Plain data: the driver reads it without torch.

A job's programs take the same rows, step by step. ``OURS`` are programs of meetlm; every other one is a peer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from models import MODELS

ROWS = 8
"""Sequences in a step of SmolLM2-135M on a CPU; half as many pairs where a job takes both replies."""
MEMORY_GOAL = 0.6
"""Most of the peer's memory that ours may take."""
FLOPS_GOAL = {"cpu": 0.7, "cuda": 0.45}
"""Least share of the rate of a plain product, f32 on a CPU and bf16 on CUDA, that a step of SmolLM2's shape reaches."""
LEVELS_GOAL = 1.1
"""Most that a token of 16 levels costs, where one of 2 levels costs 1: "about the same"."""
PROFILE = "profile"
"""The driver's word for a step that is profiled, after all that are timed; ``go`` is that for any other."""
SCORE_TOLERANCE = 1e-4
"""Largest difference of two scores of one row that still counts as the same work."""
LOSS_TOLERANCE = {"cpu": 1e-3, "cuda": 1e-2}
"""Largest relative difference of two losses of the same step that still counts as the same work: f32 and bf16."""

PRODUCTS, ATTENTION, ELEMENTWISE = "matrix products", "attention", "elementwise"
CONTROL, OPTIMIZER, DATA, OUTSIDE = "LoRA's own", "optimizer", "data", "Python"
OPERATIONS = (PRODUCTS, ATTENTION, ELEMENTWISE, CONTROL, OPTIMIZER, DATA, OUTSIDE)
"""Kinds of operation in a profiled step. ``elementwise`` is every operation that is in no other group: norms,
activations, rotary positions, residuals, the loss, copies. ``Python`` is the time in which no operation ran."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A program that ours is compared with.

    Attributes:
        name: Of the program.
        goal: Least ratio of real tokens a second, ours over the peer's; ``None`` where there is none.
        other_rows: Why its steps do not hold the same rows as ours, if they do not: their losses are then not compared.
        ours: The program of ours beside it.
        in_best: Whether it competes for the best setting of the peer, which has a goal of its own.
    """

    name: str
    goal: float | None = None
    other_rows: str = ""
    ours: str = "ours"
    in_best: bool = False

    @property
    def key(self) -> str:
        """Names the comparison within its job."""
        return self.name if self.ours == "ours" else f"{self.name} (ours: {self.ours})"


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the table of goals, or more.

    Attributes:
        name: For ``--jobs``.
        title: What is done.
        peers: In the order of the report; none where ours is compared with itself.
        rows: The unit of a step: ``chosen`` rows, ``pairs`` (half as many), ``prompts``, ``scored`` or ``random``.
        best_goal: Least ratio over the fastest of the peers marked ``in_best``.
        model: Of ``models.MODELS``, with random weights; by default SmolLM2-135M-Instruct with its own.
        like: The job whose programs and stages it has, by default its own.
        device: What it runs on; ``None`` for either.
        checkpointing: Whether both sides recompute activations in backward; no goal is for that.
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
        """Return what of the rows' scale is its own on a device."""
        return {"model": self.model, "rows": self.num_rows(device), "checkpointing": self.checkpointing}

    def num_rows(self, device: str) -> int:
        """Return the sequences in a step."""
        return MODELS[self.model].rows[device] if self.model else ROWS

    def flops_goal(self, device: str) -> float | None:
        """Return the least share of a plain product's rate; ``None`` where there is no goal."""
        shape = self.model == "135m" if device == "cuda" else not self.model
        return FLOPS_GOAL[device] if shape and not self.checkpointing else None

    @property
    def trains(self) -> bool:
        """Whether it is a training job."""
        return self.rows in ("chosen", "pairs")

    @property
    def scores(self) -> bool:
        """Whether it is the scoring job."""
        return self.rows == "scored"


PACKS = "its packs of 1,024 tokens, two a step, hold other rows"
GROUPS = "its sampler puts rows of like length together, out of 400"

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
            Peer("trl-grouped", other_rows=GROUPS, in_best=True),
        ),
        best_goal=1.8,
    ),
    Job("lora-two-levels", "MEET step 1: LoRA r=4, two levels in one run", (Peer("peft-adapters", goal=3.0),), "pairs"),
    Job("soft-prompt", "MEET step 1: soft prompt of 50, one level, on chosen replies", (Peer("trl-prompt", goal=3.0),)),
    Job(
        "full",
        "step 2: the language model, on chosen replies",
        (
            Peer("trl", goal=2.5),
            Peer(
                "trl",
                goal=2.5,
                other_rows="4 pairs of both replies, LoRA of two levels trained besides",
                ours="ours-meet",
            ),
        ),
    ),
    Job("dpo", "DPO", (Peer("trl", goal=2.5), Peer("trl-precomputed", goal=2.5)), "pairs"),
    Job("generation", "generation: 64 prompts, 64 new tokens, greedy", (Peer("transformers", goal=2.0),), "prompts"),
    Job("scoring", "reward model: 400 pairs, both replies", (Peer("transformers", goal=2.0),), "scored"),
    Job("growth", "how cost grows", (), "random"),
)


def of_models(like: str, *peers: str, models: Iterable[str] = tuple(MODELS), device: str | None = "cuda") -> list[Job]:
    """Return a job beside some of its peers, with other models; no goal but that of :meth:`Job.flops_goal`."""
    base = next(job for job in BASE if job.name == like)
    return [
        replace(
            base,
            name=f"{like}-{model}",
            title=f"{base.title}: {MODELS[model].title}",
            peers=tuple(Peer(name) for name in peers),
            best_goal=None,
            model=model,
            like=like,
            device=device,
        )
        for model in models
    ]


def checkpointed(job: Job) -> Job:
    """Return a job that trains beside the same peers, with gradient checkpointing on both sides and no goal."""
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
    *(checkpointed(job) for job in BASE if job.trains),
    *of_models("lora-sft", "trl", device=None),
    *of_models("full", "trl"),
    *of_models("lora-two-levels", "peft-adapters", models=["135m"]),
    *of_models("dpo", "trl", "trl-precomputed", models=["135m"]),
)
"""Every job, in the order of the report: those of SmolLM2-135M-Instruct, checkpointing last, then of other models."""


GROUPS: dict[str, Callable[[Job], bool]] = {
    "all": lambda job: True,
    "models": lambda job: bool(job.model),
    "checkpointing": lambda job: job.checkpointing,
}
"""For ``--jobs``, beside the names of jobs: which jobs each stands for."""


def jobs_called(names: list[str], device: str = "cpu") -> list[Job]:
    """Return jobs that run on the device by their names, or those of ``GROUPS``.

    Raises:
        SystemExit: A name is unknown there.
    """
    known = {job.name: job for job in JOBS if job.device in (device, None)}
    groups = {group: [job.name for job in known.values() if belongs(job)] for group, belongs in GROUPS.items()}
    chosen = list(dict.fromkeys(one for name in names for one in groups.get(name, [name])))
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise SystemExit(f"unknown job {unknown[0]!r}; on {device} there are {', '.join(known)}")
    return [known[name] for name in chosen]
