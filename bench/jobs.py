"""The jobs of the benchmark, the programs of each, and the goals. Plain data: the driver reads it without torch.

A job's programs take the same rows, step by step. ``OURS`` are programs of meetlm; every other one is a peer.
"""

from __future__ import annotations

from dataclasses import dataclass

ROWS, PAIRS = 8, 4
"""In a step: sequences, or pairs of which both replies are taken."""
MEMORY_GOAL = 0.6
"""Most of the peer's memory that ours may take."""
FLOPS_GOAL = 0.7
"""Least share of the rate of a plain matrix product that a training step of ours reaches."""
LEVELS_GOAL = 1.1
"""Most that a token of 16 levels costs, where one of 2 levels costs 1: "about the same"."""
PROFILE = "profile"
"""The driver's word for a step that is profiled, after all that are timed; ``go`` is that for any other."""
SCORE_TOLERANCE = 1e-4
"""Largest difference of two scores of one row that still counts as the same work."""
LOSS_TOLERANCE = 1e-3
"""Largest relative difference of two losses of the same step that still counts as the same work."""

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
        rows: The unit of a step: ``chosen`` (8 rows), ``pairs`` (4 pairs, so 8 rows), ``prompts``, ``scored`` or
            ``random``.
        best_goal: Least ratio over the fastest of the peers marked ``in_best``.
    """

    name: str
    title: str
    peers: tuple[Peer, ...]
    rows: str = "chosen"
    best_goal: float | None = None

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

JOBS = (
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
    Job(
        "checkpointing",
        "LoRA r=4, one level, gradient checkpointing on both sides",
        (Peer("trl", goal=None),),
    ),
    Job("growth", "how cost grows", (), "random"),
)


def jobs_called(names: list[str]) -> list[Job]:
    """Return jobs by their names; ``all`` is every one.

    Raises:
        SystemExit: A name is unknown.
    """
    known = {job.name: job for job in JOBS}
    chosen = list(known) if "all" in names else names
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise SystemExit(f"unknown job {unknown[0]!r}; there are {', '.join(known)}")
    return [known[name] for name in chosen]
