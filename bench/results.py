"""What a run showed: ratios, spreads, goals. Arithmetic on what the programs told; knows no torch and no Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

from curves import CURVES, Curve
from jobs import JOBS, LEVELS_GOAL, LOSS_TOLERANCE, MEMORY_GOAL, PRODUCTS, SCORE_TOLERANCE, Job, Peer

NEAR_TIE = 1e-2
"""Logits nearer than this may change places by rounding alone."""


@dataclass(frozen=True, slots=True)
class Grown:
    """What ours told of one curve.

    Attributes:
        steps: Of each point its steps, one a round; the first is warm-up.
        others: Cores that other processes used, in each round.
    """

    steps: dict[str, list[dict[str, float]]]
    others: list[float]


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run of the benchmark.

    Attributes:
        told: For each job, for each of its comparisons, what the two programs told (``run.Told`` as a dict).
        growth: For each curve of the job of growth, what ours told.
        rounds: The first is warm-up.
        threads: Of each program.
        scale: Of the rows.
        command: The arguments it was started with.
        failed: Why a job could not be run, by its name.
        commit: Of meetlm, when the run began.
        device: ``cpu`` or ``cuda``.
        gpu: Its name; empty on a CPU.
    """

    told: dict[str, dict[str, dict[str, Any]]]
    growth: dict[str, Grown]
    rounds: int
    threads: int
    scale: dict[str, Any]
    command: list[str]
    failed: dict[str, str]
    commit: str = "no commit"
    device: str = "cpu"
    gpu: str = ""

    def save(self, file: Path) -> None:
        """Keep what there is, beside its place and then renamed."""
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self)))
        partial.replace(file)

    @classmethod
    def saved(cls, file: Path) -> Run:
        """Return a run that :meth:`save` kept; what failed in it may be tried again."""
        found = json.loads(file.read_text())
        growth = {name: Grown(**curve) for name, curve in found.pop("growth").items()}
        return cls(**{**found, "growth": growth, "failed": {}})


@dataclass(frozen=True, slots=True)
class Compared:
    """Ours beside one peer.

    Attributes:
        job: The job.
        peer: The peer; its goal is that of this row.
        ratios: Of tokens a second, one for each counted round.
        ours: Our tokens a second, the median.
        theirs: The peer's.
        memory: Our memory and the peer's, in MB above what is loaded.
        gap: Largest relative difference of two losses of a step, or difference of two scores of a row; ``None`` where
            the rows are others.
        tokens: Whether both read the same number of real tokens in each step.
        apart: For generation, where texts differ: by how much the peer's token beat the second likeliest.
        tolerance: Largest ``gap`` of losses that still counts as the same work.
        best: Whether this is the row of the peer's best setting, beside its own row.
    """

    job: Job
    peer: Peer
    ratios: list[float]
    ours: float
    theirs: float
    memory: tuple[float, float]
    gap: float | None
    tokens: bool
    apart: list[float | None]
    tolerance: float
    best: bool = False

    @property
    def name(self) -> str:
        """What ours is beside, in words."""
        return f"{self.peer.name}, its best setting here" if self.best else self.peer.key

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """What ours is beside, tokens a second of both, their ratio, and memory of both, for a table."""
        ours, theirs = self.memory
        share = f" = {ours / theirs:.2f}" if theirs > 0 else ""
        memory = f"{ours:,.0f} / {theirs:,.0f} MB{share}"
        return self.name, f"{self.ours:,.0f} / {self.theirs:,.0f}", spread(self.ratios), memory

    @property
    def work(self) -> str:
        """Whether, and how far, both sides did the same, in words."""
        if self.peer.other_rows:
            return f"not step by step: {self.peer.other_rows}"
        verdict = "" if self.same_work else "**NO**: "
        if self.job.scores:
            return f"{verdict}scores within {self.gap:.0e}"
        if self.job.trains:
            tokens = "the same tokens" if self.tokens else "other tokens"
            return f"{verdict}{tokens}, losses within {self.gap:.0e}"
        apart = [gap for gap in self.apart if gap is not None]
        equal = f"{len(self.apart) - len(apart)} of {len(self.apart)} texts equal"
        return f"{verdict}{equal}" + (f", the others apart from a tie within {max(apart):.0e} on" if apart else "")

    @property
    def same_work(self) -> bool:
        """Whether both sides did the same work, as far as it can be told."""
        if self.peer.other_rows:
            return True
        if self.job.scores:
            return self.gap is not None and self.gap <= SCORE_TOLERANCE
        if self.job.trains:
            return self.tokens and self.gap is not None and self.gap < self.tolerance
        return all(gap is None or gap < NEAR_TIE for gap in self.apart)


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time of one step of ours goes, profiled after all that are timed.

    Attributes:
        seconds: By kind of operation (``jobs.OPERATIONS``).
        product_flops: Operations of its products with the model's own weights; ``None`` where they are not counted.
    """

    seconds: dict[str, float]
    product_flops: float | None

    def share(self, group: str) -> float:
        """Return a group's share of the step."""
        return self.seconds[group] / sum(self.seconds.values())

    def product_rate(self) -> float | None:
        """Return the operations a second while products with the model's weights ran, where they are counted."""
        return self.product_flops / self.seconds[PRODUCTS] if self.product_flops else None


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a program of ours computes, beside a plain matrix product.

    Attributes:
        job: The job.
        program: Of ours.
        needs: Operations of a step, the median.
        shares: Operations a second over ``plain``, one for each counted step.
        plain: Operations a second of the fastest plain product.
        plains: Those of each plain product, by its shape.
    """

    job: Job
    program: str
    needs: float
    shares: list[float]
    plain: float
    plains: dict[str, float]


@dataclass(frozen=True, slots=True)
class Goal:
    """A number that is to be reached.

    Attributes:
        job: Title of its job.
        unit: What it is about: ``speed``, ``memory``, ``operations`` or ``levels``.
        what: What is measured, in words.
        bound: The goal.
        values: Measured, one for each round.
        program: The job's name and the program of ours that it is about.
        detail: What the numbers were, in words.
    """

    job: str
    unit: Literal["speed", "memory", "operations", "levels"]
    what: str
    bound: float
    values: list[float]
    program: tuple[str, str]
    detail: str = ""

    @property
    def at_least(self) -> bool:
        """Whether more is better; else the bound is the most."""
        return self.unit in ("speed", "operations")

    @property
    def measured(self) -> float:
        """The median."""
        return median(self.values)

    @property
    def met(self) -> bool:
        """Whether the median reaches the goal."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    @property
    def miss(self) -> str:
        """By how much the median misses the goal, of the goal, in words; empty where it is met."""
        share = abs(self.measured - self.bound) / self.bound
        return "" if self.met else f"{share:.0%} {'short' if self.at_least else 'over'}"


def spread(values: Sequence[float]) -> str:
    """Return the median with the lowest and the highest; alone where it is of one value."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def goals(run: Run) -> list[Goal]:
    """Return every goal that the run says something about: speed, memory, operations a second, levels."""
    found = []
    for row in compared(run):
        title, program = row.job.title, (row.job.name, row.peer.ours)
        ours, theirs = row.memory
        if row.peer.goal is None:
            continue
        found.append(Goal(title, "speed", f"tokens a second, over {row.name}", row.peer.goal, row.ratios, program))
        if theirs > 0 and not row.job.scores:
            what, numbers = f"memory, over {row.name}", f"{ours:,.0f} MB beside {theirs:,.0f} MB"
            found.append(Goal(title, "memory", what, MEMORY_GOAL, [ours / theirs], program, numbers))
    for rate in rates(run):
        what = "operations a second, over a plain product" + ("" if rate.program == "ours" else f" ({rate.program})")
        bound = rate.job.flops_goal(run.device)
        if bound is not None:
            found.append(Goal(rate.job.title, "operations", what, bound, rate.shares, (rate.job.name, rate.program)))
    for curve in CURVES:
        if curve.of_levels and curve.name in run.growth:
            first, last = curve.points[0].name, curve.points[-1].name
            what = f"time a token, {last} over {first}"
            ratios = growth_ratios(curve, run.growth[curve.name])[last]
            found.append(Goal(curve.title, "levels", what, LEVELS_GOAL, ratios, ("growth", "ours")))
    return found


def compared(run: Run) -> Iterator[Compared]:
    """Yield ours beside every peer, in the order of the jobs, and beside the best setting of a peer."""
    for job in JOBS:
        rows = [
            _compared(job, peer, run.told[job.name][peer.key], LOSS_TOLERANCE[run.device]) for peer in _peers(run, job)
        ]
        yield from rows
        candidates = [row for row in rows if row.peer.in_best]
        if len(candidates) > 1:
            best = min(candidates, key=lambda row: median(row.ratios))
            yield replace(best, peer=replace(best.peer, goal=job.best_goal), best=True)


def differs(run: Run) -> list[str]:
    """Return the comparisons whose two sides did not do the same work."""
    return [f"{row.job.name} beside {row.name}" for row in compared(run) if not row.same_work]


def pairs(run: Run) -> Iterator[tuple[Job, str, dict[str, Any]]]:
    """Yield every comparison: its job, its key, what was told."""
    for job in JOBS:
        for key, told in run.told.get(job.name, {}).items():
            yield job, key, told


def rates(run: Run) -> Iterator[Rate]:
    """Yield the rate of every program of ours that trains; its steps beside all its peers count."""
    for job in JOBS:
        told = run.told.get(job.name, {})
        for program in dict.fromkeys(peer.ours for peer in _peers(run, job)) if job.trains else ():
            beside = [one for one in told.values() if program in one["steps"]]
            plains = {shape: max(one["rates"][shape] for one in beside) for shape in beside[0]["rates"]}
            plain = max(plains.values())
            steps = [step for one in beside for step in one["steps"][program][1:]]
            yield Rate(
                job,
                program,
                median(step["flops"] for step in steps),
                [step["flops"] / step["seconds"] / plain for step in steps],
                plain,
                plains,
            )


def profile_of(run: Run, job: str, program: str) -> Profile | None:
    """Return the profile of a program of ours, or ``None`` where none could be taken."""
    beside = run.told.get(job, {}).values()
    return next((Profile(**told["profile"]) for told in beside if program in told["steps"] and told["profile"]), None)


def growth_ratios(curve: Curve, grown: Grown, *, optimizer: bool = True) -> dict[str, list[float]]:
    """Return for each point of a curve what a token costs over that of the first point, in each counted round.

    Args:
        curve: The curve.
        grown: What was told of it.
        optimizer: Whether clipping and the optimizer count: they take a time a step, however many tokens it has.
    """
    costs = {
        name: [(step["seconds"] - (0 if optimizer else step["optimizer"])) / step["tokens"] for step in steps[1:]]
        for name, steps in grown.steps.items()
    }
    first = costs[curve.points[0].name]
    return {
        point.name: [own / one for own, one in zip(costs[point.name], first, strict=True)] for point in curve.points
    }


def _peers(run: Run, job: Job) -> list[Peer]:
    """Return the peers of a job that were run."""
    return [peer for peer in job.peers if peer.key in run.told.get(job.name, {})]


def _compared(job: Job, peer: Peer, told: dict[str, Any], tolerance: float) -> Compared:
    ours, theirs = told["steps"][peer.ours], told["steps"][peer.name]
    speeds = [[s["tokens"] / s["seconds"] for s in steps[1:]] for steps in (ours, theirs)]
    steps = list(zip(ours, theirs, strict=True))
    compares = job.trains and not peer.other_rows
    return Compared(
        job,
        peer,
        [a / b for a, b in zip(*speeds, strict=True)],
        median(speeds[0]),
        median(speeds[1]),
        (ours[-1]["above_mb"], theirs[-1]["above_mb"]),
        _score_gap(steps) if job.scores else _loss_gap(steps) if compares else None,
        all(a["tokens"] == b["tokens"] for a, b in steps),
        told["gaps"],
        tolerance,
    )


def _loss_gap(steps: list[tuple[dict[str, Any], dict[str, Any]]]) -> float:
    return max(abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in steps)


def _score_gap(steps: list[tuple[dict[str, Any], dict[str, Any]]]) -> float:
    return max(abs(one - other) for a, b in steps for one, other in zip(a["scores"], b["scores"], strict=True))
