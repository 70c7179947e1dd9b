"""RESULTS.md: how fast our step computes beside a plain product, where its time goes, and what bounds a missed goal."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from jobs import ELEMENTWISE, FLOPS_GOAL, JOBS, OPERATIONS, OUTSIDE, PRODUCTS
from report_growth import bound_of_levels
from results import Goal, Profile, Rate, Run, profile_of, rates, spread

TYPES = {"cpu": "in f32", "cuda": "in bf16"}
NAMED = 3
"""Kinds of operation that are named where a goal is missed: the largest."""


def plain_products(run: Run) -> Iterable[str]:
    """Yield the table of operations a second."""
    yield (
        "What a step needs (counted as `bench/flops.py` says: no padding, no recomputation, the head at trained "
        "positions only, a shared prompt once) over its time, and over the rate of the fastest of the "
        f"plain products {TYPES[run.device]} measured between the steps. The goal for SmolLM2-135M's shape is "
        f"{FLOPS_GOAL[run.device]}."
    )
    yield ""
    yield "| job | program | GFLOP a step | GFLOP/s | plain product, GFLOP/s | share |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for rate in rates(run):
        plain = ", ".join(f"{value / 1e9:,.0f} ({shape})" for shape, value in rate.plains.items())
        own = f"{rate.needs / 1e9:,.0f} | {median(rate.shares) * rate.plain / 1e9:,.0f}"
        yield f"| {rate.job.title} | {rate.program} | {own} | {plain} | {spread(rate.shares)} |"


def profiles(run: Run) -> Iterable[str]:
    """Yield the table of profiles."""
    yield (
        "One more step of ours, after all that are timed, under torch.profiler, which slows it down a little: shares "
        f"of its time by kind of operation. {PRODUCTS}: with the model's own weights, the head's among them; "
        f"{ELEMENTWISE}: norms, activations, rotary positions, residuals, the loss, copies; "
        f"{OUTSIDE}: no operation ran. The last column is what these products need over their time: what gradient "
        "checkpointing recomputes takes time and is not needed."
    )
    yield ""
    yield f"| job | program | {' | '.join(OPERATIONS)} | {PRODUCTS}, over a plain one |"
    yield f"| --- | --- |{' --- |' * len(OPERATIONS)} --- |"
    plain = {(rate.job.name, rate.program): rate for rate in rates(run)}
    for job in JOBS:
        for program in dict.fromkeys(peer.ours for peer in job.peers):
            profile = profile_of(run, job.name, program)
            if profile:
                shares = " | ".join(f"{profile.share(group):.0%}" for group in OPERATIONS)
                speed = _product_speed(profile, plain.get((job.name, program)))
                yield f"| {job.title} | {program} | {shares} | {'–' if speed is None else f'{speed:.2f}'} |"


def why(run: Run, goal: Goal) -> str:
    """Return what bounds a missed goal, as far as the run tells."""
    job, program = goal.program
    if job == "growth":
        return bound_of_levels(run, goal)
    rate = next((one for one in rates(run) if (one.job.name, one.program) == goal.program), None)
    profile = profile_of(run, job, program)
    said = []
    if goal.unit == "speed" and rate:
        share = median(rate.shares)
        said.append(
            f"Our step computes at {share:.2f} of the rate of a plain product: were it 1, the ratio would be "
            f"{goal.measured / share:.2f}."
        )
    if goal.unit in ("speed", "operations") and profile:
        largest = sorted(OPERATIONS, key=profile.share, reverse=True)[:NAMED]
        said.append(f"Our step is {', '.join(f'{group} {profile.share(group):.0%}' for group in largest)}.")
        speed = _product_speed(profile, rate)
        if speed is not None:
            said.append(f"Its {PRODUCTS} run at {speed:.2f} of the rate of a plain one.")
    return " ".join(said)


def _product_speed(profile: Profile, rate: Rate | None) -> float | None:
    """Return the rate of a step's own products over that of a plain one."""
    own = profile.product_rate()
    return own / rate.plain if own and rate else None
