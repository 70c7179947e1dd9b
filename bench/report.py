"""RESULTS.md: one function of what the programs told. Knows no torch."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jobs import MEMORY_GOAL
from quiet import LIMIT
from report_growth import growth
from report_models import over_models
from report_profile import plain_products, profiles, why
from results import Compared, Goal, Run, compared, goals, pairs, spread

from meetlm.config.process import SPINCOUNT

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "meetlm")
MEMORY = {"cpu": "resident memory (VmHWM)", "cuda": "what torch has allocated on the GPU"}
SETTING = {
    "cpu": "SmolLM2-135M-Instruct in f32, {threads} threads, GOMP_SPINCOUNT={spin}",
    "cuda": "Weights in f32, bf16 autocast, flash attention where a program's own settings have it",
}
ROWS_A_STEP = {
    "cpu": "8 rows a step, of other models what their table says",
    "cuda": "As many rows a step as the tables say",
}
NO_GOAL = "None of what was run has a goal: the goals are for gradient checkpointing off, and SmolLM2-135M's shape."
SHOWN = 3
"""Steps whose losses are shown side by side; all are compared."""


def markdown(run: Run) -> str:
    """Return the whole report."""
    wanted = goals(run)
    parts = [
        "# meetlm beside TRL, PEFT and transformers",
        "",
        f"Written by `python bench/run.py {' '.join(run.command)}`.".replace(" `.", "`, which is `make bench`."),
        "",
        *_machine(run),
        "",
        *_warnings(run),
        "## Goals",
        "",
        "A ratio is taken in each round; shown are the median and [the lowest, the highest] of all counted rounds. "
        "A goal is met by the median. Memory is a peak over all rounds.",
        "",
        *(_table("| job | what | goal | measured | met |", map(_goal, wanted)) if wanted else [NO_GOAL, ""]),
        *_short(run, [goal for goal in wanted if not goal.met]),
        "## Speed and memory",
        "",
        "Real tokens a second: prompt, completion and EOS ids; no padding, no virtual tokens; of generation, new "
        f"tokens. Memory: the peak of {MEMORY[run.device]} over all rounds, less what was there before the first "
        "step (weights copied out of their file, data, libraries; a reference model too) and less 12 bytes for each "
        f"trained number: gradient and Adam's two moments. The goal is at most {MEMORY_GOAL} of the peer's.",
        "",
        *_table(
            "| job | ours beside | tokens a second, ours / peer | ratio | memory, ours / peer | the same work |",
            (_row(row) for row in compared(run) if not row.job.model),
        ),
        *_references(run),
        "## Over model size",
        "",
        *over_models(run),
        "",
        "## Where the time of our step goes",
        "",
        *plain_products(run),
        "",
        *profiles(run),
        "",
        "## How cost grows",
        "",
        *growth(run),
        "",
        "## Losses, side by side",
        "",
        *_losses(run),
        "",
        "## Settings of the peers",
        "",
        *_settings(run),
    ]
    return "\n".join(parts) + "\n"


def _machine(run: Run) -> list[str]:
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    others = max((share for _, rounds in _others(run) for share in rounds), default=0.0)
    return [
        f"- Machine: {names[0] if names else platform.machine()}, {os.cpu_count()} cores, "
        f"{int(memory) / 2**20:.0f} GiB, {platform.system()} {platform.release()}; Python {platform.python_version()}"
        f"{f'; {run.gpu}' if run.gpu else ''}.",
        f"- Versions: {versions} at {run.commit}.",
        f"- {SETTING[run.device].format(threads=run.threads, spin=SPINCOUNT)}; AdamW, the same rate at each "
        f"step, gradient norm clipped at 1, no weight decay, no dropout. {ROWS_A_STEP[run.device]} (half as many pairs "
        f"where a job takes both replies), at most {run.scale.get('max_length', 512)} tokens, in the order of the "
        f"file: {_source(run.scale.get('data'))}.",
        f"- Ours and the peer are two processes that take their steps in turns; {run.rounds} rounds, the first not "
        f"counted. A step is a whole turn of a program's loop. Other processes used {others:.0%} of a core at most.",
    ]


def _goal(goal: Goal) -> str:
    sign = "≥" if goal.at_least else "≤"
    met = "yes" if goal.met else f"**no**, {goal.miss}"
    measured = spread(goal.values) + (f" ({goal.detail})" if goal.detail else "")
    return f"| {goal.job} | {goal.what} | {sign} {goal.bound:g} | {measured} | {met} |"


def _short(run: Run, missed: list[Goal]) -> Iterator[str]:
    """Say of every goal that is missed by how much, and what bounds it."""
    if missed:
        yield "Short of their goals, and what bounds them:"
        yield ""
        for goal in missed:
            reason = why(run, goal)
            yield (
                f"- {goal.job}, {goal.what}: {goal.measured:.2f} where {goal.bound:g} is the goal, {goal.miss}. "
                f"{reason}".rstrip()
            )
        yield ""


def _table(head: str, rows: Iterable[str]) -> list[str]:
    """Return a table and a line behind it."""
    found = list(rows)
    return [head, "| --- " * (head.count("|") - 1) + "|", *found, ""] if found else ["Nothing of it was run.", ""]


def _row(row: Compared) -> str:
    return f"| {' | '.join([row.job.title, *row.cells, row.work])} |"


def _others(run: Run) -> Iterator[tuple[str, list[float]]]:
    """Yield what others used of the machine, round by round, beside what was timed then."""
    for job, key, told in pairs(run):
        yield f"{job.name} beside {key}", told["others"]
    for name, grown in run.growth.items():
        yield f"growth, {name}", grown.others


def _warnings(run: Run) -> Iterator[str]:
    """Yield what makes times doubtful, or why there are none."""
    for name, rounds in _others(run):
        loud = [share for share in rounds[1:] if share > LIMIT]
        if loud:
            yield f"**{name}: in {len(loud)} of {len(rounds) - 1} rounds others used up to {max(loud):.0%} of a core.**"
            yield ""
    for name, reason in run.failed.items():
        yield f"**{name} failed**: {reason.splitlines()[0]}"
        yield ""


def _references(run: Run) -> Iterator[str]:
    """Say what the pass over the reference costs where it comes before training."""
    for job, key, told in pairs(run):
        cost = {name: event["seconds"] / event["pairs"] for name, event in told["reference"].items()}
        if cost:
            costs = ", ".join(f"{name} {seconds:.3f} s a pair" for name, seconds in cost.items())
            ours, theirs = told["steps"].items()
            rounds = zip(ours[1][1:], theirs[1][1:], strict=True)
            more = [job.num_rows(run.device) // 2 * cost.get(name, 0.0) for name, _ in (ours, theirs)]
            ratios = [(b["seconds"] + more[1]) / (a["seconds"] + more[0]) for a, b in rounds]
            yield (
                f"{job.name} beside {key}: the pass over the reference comes before training and is not in a step: "
                f"{costs}. Counted once for each step, as in a single epoch, the ratio is {spread(ratios)}."
            )
            yield ""


def _programs(run: Run) -> Iterator[tuple[str, str, dict[str, Any], list[dict[str, Any]]]]:
    """Yield job, program, what it told first and its steps, each program of a job once."""
    seen = set()
    for job, _, told in pairs(run):
        for program, steps in told["steps"].items():
            if (job.name, program) not in seen:
                seen.add((job.name, program))
                yield job.name, program, told["first"][program], steps


def _losses(run: Run) -> list[str]:
    steps = range(min(SHOWN, run.rounds))
    head = [
        f"| job | program | {' | '.join(f'step {n + 1}' for n in steps)} |",
        f"| --- | --- |{' --- |' * len(steps)}",
    ]
    rows = []
    for name, program, _, events in _programs(run):
        if "loss" in events[0]:
            losses = " | ".join(f"{events[n]['loss']:.6f} ({events[n]['tokens']} tokens)" for n in steps)
            rows.append(f"| {name} | {program} | {losses} |")
    return [*head, *rows]


def _settings(run: Run) -> Iterable[str]:
    yield "What is set beyond their own defaults (reports, saving and bars apart):"
    yield ""
    for name, program, first, _ in _programs(run):
        if "settings" in first:
            settings = {**first["settings"], **{f"adapter.{k}": v for k, v in first["adapter"].items()}}
            yield f"- {name}, {program}: {', '.join(f'{key}={value}' for key, value in settings.items())}"


def _source(data: str | None) -> str:
    hh = _here().parent.parent / "shared" / "data" / "hh-harmless-base"
    return "HH-RLHF harmless-base, 1,600 conversations" if data or hh.is_dir() else "the embedded demo set"


def _here() -> Path:
    return Path(__file__).parent


def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines() if Path(file).exists() else []
