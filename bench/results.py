"""The results of a run: ratios, spreads, goals. Arithmetic on measurements; imports no torch and writes no Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from curves import CURVES, Curve
from jobs import JOBS, LEVELS_GOAL, LOSS_TOLERANCE, MEMORY_GOAL, SCORE_TOLERANCE, Job, Peer
from pydantic import TypeAdapter

from meetlm.config.files import write_atomic

EQUAL_TEXTS = 0.95
"""Smallest share of equal texts that counts as the same work: rounding may swap two tokens of almost equal logits."""
Step = dict[str, Any]


@dataclass
class Measurements:
    """Measurements of our program and a peer, which took their steps in turns.

    Attributes:
        startup: What each program reported before its first step.
        reference: For programs that score a reference before training: what they reported of it.
        steps: The steps of each program; the first is warm-up.
        other_load: Cores that other processes used, per round.
    """

    startup: dict[str, Step] = field(default_factory=dict)
    reference: dict[str, Step] = field(default_factory=dict)
    steps: dict[str, list[Step]] = field(default_factory=dict)
    other_load: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CurveMeasurements:
    """Measurements of one curve of the job ``growth``.

    Attributes:
        steps: Steps of each point, one per round; the first is warm-up.
        other_load: Cores that other processes used, per round.
    """

    steps: dict[str, list[Step]]
    other_load: list[float]


@dataclass(frozen=True, slots=True)
class Run:
    """A run of the benchmark.

    Attributes:
        measured: Measurements by job and by the key of the comparison.
        growth: Measurements of the curves of the job ``growth``.
        rounds: Number of rounds; the first is warm-up.
        threads: Threads of each program.
        scale: Scale of the rows.
        command: Command-line arguments.
        failed: Reasons of the comparisons that failed, by name.
        commit: Commit of meetlm.
        device: ``cpu`` or ``cuda``.
        gpu: Name of the GPU; empty on a CPU.
    """

    measured: dict[str, dict[str, Measurements]]
    growth: dict[str, CurveMeasurements]
    rounds: int
    threads: int
    scale: dict[str, Any]
    command: list[str]
    failed: dict[str, str]
    commit: str = "no commit"
    device: str = "cpu"
    gpu: str = ""

    def save(self, file: Path) -> None:
        """Write the run to a file, replacing it in one step."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, TypeAdapter(Run).dump_json(self).decode())

    @classmethod
    def load(cls, file: Path) -> Run:
        """Return a saved run, without its failures, so that they are tried again."""
        return replace(TypeAdapter(cls).validate_json(file.read_bytes()), failed={})


@dataclass(frozen=True, slots=True)
class Comparison:
    """Our program beside one peer.

    Attributes:
        job: The job.
        peer: The peer, with the goal of this row.
        ratios: Ratios of tokens per second, one per counted round.
        speeds: Median tokens per second, ours and the peer's.
        memory: Peak memory above what was loaded, ours and the peer's, in MB.
        gap: Largest relative difference of two losses of a step, or difference of two scores of a row; ``None`` where
            the rows differ.
        same_tokens: Whether both read the same number of real tokens in each step.
        texts_equal: For generation, whether both wrote the same text, for each prompt.
        tolerance: Largest ``gap`` of losses that counts as the same work.
        is_best: Whether this is the row of the peer's best setting, beside its own row.
    """

    job: Job
    peer: Peer
    ratios: list[float]
    speeds: tuple[float, float]
    memory: tuple[float, float]
    gap: float | None
    same_tokens: bool
    texts_equal: list[bool]
    tolerance: float
    is_best: bool = False

    @property
    def name(self) -> str:
        """The peer, in words."""
        return f"{self.peer.name}, its best setting here" if self.is_best else self.peer.key

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Peer, tokens per second of both, their ratio, and memory of both, for a table."""
        ours, peer = self.memory
        share = f" = {ours / peer:.2f}" if peer > 0 else ""
        speeds = f"{self.speeds[0]:,.0f} / {self.speeds[1]:,.0f}"
        return self.name, speeds, spread(self.ratios), f"{ours:,.0f} / {peer:,.0f} MB{share}"

    @property
    def same_work(self) -> tuple[bool, str]:
        """Whether both sides did the same work, as far as this can be checked, and how it was checked, in words."""
        if self.peer.other_rows:
            return True, f"not step by step: {self.peer.other_rows}"
        if self.job.scores:
            return self.gap is not None and self.gap <= SCORE_TOLERANCE, f"scores within {self.gap:.0e}"
        if self.job.trains:
            is_close = self.gap is not None and self.gap < self.tolerance
            tokens = "the same" if self.same_tokens else "other"
            return self.same_tokens and is_close, f"{tokens} tokens, losses within {self.gap:.0e}"
        num_equal, total = sum(self.texts_equal), len(self.texts_equal)
        return num_equal >= EQUAL_TEXTS * total, f"{num_equal} of {total} texts equal"

    @property
    def work(self) -> str:
        """Whether both sides did the same work, for a table."""
        is_same, check = self.same_work
        return check if is_same else f"**NO**: {check}"


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure to be reached.

    Attributes:
        job: Title of the job.
        measure: The measure, in words.
        bound: The goal.
        values: Measured values, one per round.
        at_least: Whether the bound is a minimum; else it is a maximum.
        detail: The figures behind the values, in words.
    """

    job: str
    measure: str
    bound: float
    values: list[float]
    at_least: bool
    detail: str = ""

    @property
    def miss(self) -> str:
        """By how much the median misses the goal, in words; empty if it is met."""
        value = median(self.values)
        if value >= self.bound if self.at_least else value <= self.bound:
            return ""
        return f"{abs(value - self.bound) / self.bound:.0%} {'short' if self.at_least else 'over'}"


def spread(values: Sequence[float]) -> str:
    """Return the median with the lowest and the highest value."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def goals(run: Run) -> list[Goal]:
    """Return every goal that the run has measured: speed, memory, levels."""
    measured = []
    for row in comparisons(run):
        ours, peer = row.memory
        if row.peer.goal is None:
            continue
        title = row.job.title
        measured.append(Goal(title, f"tokens per second, over {row.name}", row.peer.goal, row.ratios, at_least=True))
        if peer > 0 and not row.job.scores and not row.peer.name.startswith("ours"):
            detail = f"{ours:,.0f} MB beside {peer:,.0f} MB"
            measure = f"memory, over {row.name}"
            measured.append(Goal(title, measure, MEMORY_GOAL, [ours / peer], at_least=False, detail=detail))
    for curve in CURVES:
        if curve.varies_levels and curve.name in run.growth:
            first, last = curve.points[0].name, curve.points[-1].name
            ratios = growth_ratios(curve, run.growth[curve.name])[last]
            measure = f"time per token, {last} over {first}"
            measured.append(Goal(curve.title, measure, LEVELS_GOAL, ratios, at_least=False))
    return measured


def comparisons(run: Run) -> Iterator[Comparison]:
    """Yield our program beside every peer, in the order of the jobs, and beside the best setting of a peer."""
    for job in JOBS:
        measured = run.measured.get(job.name, {})
        tolerance = LOSS_TOLERANCE[run.device]
        rows = [_compare(job, peer, measured[peer.key], tolerance) for peer in job.peers if peer.key in measured]
        yield from rows
        candidates = [row for row in rows if row.peer.in_best]
        if len(candidates) > 1:
            best = min(candidates, key=lambda row: median(row.ratios))
            yield replace(best, peer=replace(best.peer, goal=job.best_goal), is_best=True)


def different_work(run: Run) -> list[str]:
    """Return the comparisons whose two sides did not do the same work."""
    return [f"{row.job.name} beside {row.name}" for row in comparisons(run) if not row.same_work[0]]


def pairs(run: Run) -> Iterator[tuple[Job, str, Measurements]]:
    """Yield job, key and measurements of every comparison."""
    for job in JOBS:
        for key, measurements in run.measured.get(job.name, {}).items():
            yield job, key, measurements


def growth_ratios(curve: Curve, measured: CurveMeasurements) -> dict[str, list[float]]:
    """Return the cost per token of each point of a curve over that of its first point, one ratio per counted round."""
    costs = {name: [step["seconds"] / step["tokens"] for step in steps[1:]] for name, steps in measured.steps.items()}
    first = costs[curve.points[0].name]
    return {
        point.name: [cost / base for cost, base in zip(costs[point.name], first, strict=True)] for point in curve.points
    }


def _compare(job: Job, peer: Peer, measured: Measurements, tolerance: float) -> Comparison:
    ours, theirs = measured.steps[peer.ours], measured.steps[peer.name]
    speeds = [[step["tokens"] / step["seconds"] for step in steps[1:]] for steps in (ours, theirs)]
    steps = list(zip(ours, theirs, strict=True))
    gap: float | None = None
    if job.scores:
        gap = max(abs(a - b) for left, right in steps for a, b in zip(left["scores"], right["scores"], strict=True))
    elif job.trains and not peer.other_rows:
        gap = max(abs(left["loss"] - right["loss"]) / abs(right["loss"]) for left, right in steps)
    return Comparison(
        job,
        peer,
        [a / b for a, b in zip(*speeds, strict=True)],
        (median(speeds[0]), median(speeds[1])),
        (ours[-1]["above_mb"], theirs[-1]["above_mb"]),
        gap,
        all(left["tokens"] == right["tokens"] for left, right in steps),
        [a == b for a, b in zip(ours[-1].get("texts", ()), theirs[-1].get("texts", ()), strict=True)],
        tolerance,
    )
