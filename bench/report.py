"""RESULTS.md as a function of a run. Imports no torch."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median

from curves import CURVES
from jobs import JOBS, MEMORY_GOAL
from models import MODELS
from quiet import LIMIT
from results import Comparison, Goal, Run, comparisons, goals, growth_ratios, pairs, spread

from meetlm.config.process import SPINCOUNT

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "meetlm")
MEMORY = {"cpu": "resident memory (VmHWM)", "cuda": "memory that torch has allocated on the GPU"}
SETTING = {
    "cpu": "SmolLM2-135M-Instruct in f32, {threads} threads, GOMP_SPINCOUNT={spin}",
    "cuda": "Weights in f32, bf16 autocast, flash attention where a program's own settings have it",
}
HH = Path(__file__).parents[2] / "shared" / "data" / "hh-harmless-base"
SHOWN = 3
"""Number of steps whose losses are shown side by side; all are compared."""
COLUMNS = ("ours beside", "tokens per second, ours / peer", "ratio", "memory, ours / peer", "the same work")


def markdown(run: Run) -> str:
    """Return the whole report."""
    rows = list(comparisons(run))
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
        *table(("job", "measure", "goal", "measured", "met"), map(_goal, goals(run))),
        "## Speed and memory",
        "",
        "Real tokens per second: prompt, completion and EOS ids; no padding, no virtual tokens; for generation, new "
        f"tokens. Memory: the peak of {MEMORY[run.device]} over all rounds, less what was there before the first "
        "step (weights copied out of their file, data, libraries; a reference model too) and less 12 bytes per trained "
        f"parameter: gradient and Adam's two moments. The goal is at most {MEMORY_GOAL} of the peer's.",
        "",
        *table(("job", *COLUMNS), ((row.job.title, *row.cells, row.work) for row in rows if not row.job.model)),
        *_references(run),
        "## Over model size",
        "",
        "Models with random weights: what a step costs does not depend on what was learned. As many rows per step as "
        "two programs of that size have memory for side by side.",
        "",
        *_models(run, [row for row in rows if row.job.model]),
        "## How cost grows",
        "",
        *_growth(run),
        "## Losses, side by side",
        "",
        *_losses(run),
        "## Settings of the peers",
        "",
        *_settings(run),
    ]
    return "\n".join(parts) + "\n"


def machine(packages: Iterable[str], *, commit: str | None = None, gpu: str = "") -> list[str]:
    """Return a line about the machine, and a line with the versions of packages."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    if commit is None:
        git = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, cwd=Path(__file__).parent)
        commit = git.stdout.strip() or "no commit"
    return [
        f"- Machine: {names[0] if names else platform.machine()}, {os.cpu_count()} cores, "
        f"{int(memory) / 2**20:.0f} GiB, {platform.system()} {platform.release()}; Python {platform.python_version()}"
        f"{f'; {gpu}' if gpu else ''}.",
        f"- Versions: {', '.join(f'{name} {version(name)}' for name in packages)} at {commit}.",
    ]


def _machine(run: Run) -> list[str]:
    highest = max((share for _, rounds in _other_loads(run) for share in rounds), default=0.0)
    source = "HH-RLHF harmless-base" if run.scale.get("data") or HH.is_dir() else "the demo's data"
    return [
        *machine(PACKAGES, commit=run.commit, gpu=run.gpu),
        f"- {SETTING[run.device].format(threads=run.threads, spin=SPINCOUNT)}; AdamW, the same learning rate at each "
        f"step, gradient norm clipped at 1, no weight decay, no dropout. On a CPU 8 rows per step, other models as "
        f"their table says (half as many pairs where a job takes both replies), at most "
        f"{run.scale.get('max_length', 512)} tokens, in the order of the file: {source}.",
        f"- Ours and the peer are two processes that take their steps in turns; {run.rounds} rounds, the first not "
        f"counted. A step is a whole turn of a program's loop. Other processes used {highest:.0%} of a core at most.",
    ]


def _goal(goal: Goal) -> tuple[str, ...]:
    measured = spread(goal.values) + (f" ({goal.detail})" if goal.detail else "")
    met = f"**no**, {goal.miss}" if goal.miss else "yes"
    return goal.job, goal.measure, f"{'≥' if goal.at_least else '≤'} {goal.bound:g}", measured, met


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return a table and an empty line."""
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    heads = list(heads)
    return [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *lines, ""] if lines else ["Not run.", ""]


def _other_loads(run: Run) -> Iterator[tuple[str, list[float]]]:
    """Yield the load of other processes per round, beside what was timed then."""
    for job, key, measured in pairs(run):
        yield f"{job.name} beside {key}", measured.other_load
    for name, curve in run.growth.items():
        yield f"growth, {name}", curve.other_load


def _warnings(run: Run) -> Iterator[str]:
    """Yield reasons to doubt times, and failures."""
    for name, rounds in _other_loads(run):
        busy = [share for share in rounds[1:] if share > LIMIT]
        if busy:
            yield f"**{name}: in {len(busy)} of {len(rounds) - 1} rounds others used up to {max(busy):.0%} of a core.**"
            yield ""
    for name, reason in run.failed.items():
        yield f"**{name} failed**: {reason.splitlines()[0]}"
        yield ""


def _references(run: Run) -> Iterator[str]:
    """Yield the cost of scoring the reference, for programs that do it before training."""
    for job, key, measured in pairs(run):
        cost = {name: event["seconds"] / event["pairs"] for name, event in measured.reference.items()}
        if cost:
            costs = ", ".join(f"{name} {seconds:.3f} s per pair" for name, seconds in cost.items())
            (ours, our_steps), (peer, peer_steps) = measured.steps.items()
            num_pairs = job.num_rows(run.device) // 2
            ratios = [
                (theirs["seconds"] + num_pairs * cost.get(peer, 0.0))
                / (mine["seconds"] + num_pairs * cost.get(ours, 0.0))
                for mine, theirs in zip(our_steps[1:], peer_steps[1:], strict=True)
            ]
            yield (
                f"{job.name} beside {key}: the reference is scored before training, outside the steps: {costs}. "
                f"Counted once per step, as in a single epoch, the ratio is {spread(ratios)}."
            )
            yield ""


def _models(run: Run, rows: list[Comparison]) -> Iterator[str]:
    """Yield a table for each job that was run with models of several sizes."""
    if not rows:
        yield from ("Not run.", "")
    for work in dict.fromkeys(row.job.work for row in rows):
        yield f"**{next(job.title for job in JOBS if job.name == work)}**"
        yield ""
        cells = (
            (MODELS[row.job.model].title, str(row.job.num_rows(run.device)), *row.cells, row.work)
            for row in rows
            if row.job.work == work
        )
        yield from table(("model", "rows per step", *COLUMNS), cells)


def _growth(run: Run) -> Iterator[str]:
    """Yield the tables of all curves."""
    if not run.growth:
        yield from ("Not run; `python bench/run.py --jobs growth` runs it alone.", "")
        return
    yield (
        "One step of MEET's first stage: forward, backward, clipping and AdamW; the control is trained, the language "
        "model frozen. Rows are random ids, of which the second half is trained. The settings of a curve take their "
        "steps in turns, in one process; the first round is not counted. Real tokens count, virtual tokens do not. "
        "The ratio is over the first setting of the curve, in each round. The time of clipping and optimizer does not "
        "depend on the tokens."
    )
    yield ""
    for curve in CURVES:
        if curve.name not in run.growth:
            continue
        measured = run.growth[curve.name]
        ratios = growth_ratios(curve, measured)
        yield f"**{curve.title[0].upper()}{curve.title[1:]}**"
        yield ""
        rows = []
        for point in curve.points:
            steps = measured.steps[point.name][1:]
            cost = median(1e3 * step["seconds"] / step["tokens"] for step in steps)
            optimizer = 1e3 * median(step["optimizer"] for step in steps)
            rows.append((point.name, f"{cost:.2f}", spread(ratios[point.name]), f"{optimizer:,.0f}"))
        yield from table(("setting", "ms per token", "ratio", "of which optimizer, ms per step"), rows)


def _losses(run: Run) -> list[str]:
    shown = range(min(SHOWN, run.rounds))
    rows = {}
    for job, _, measured in pairs(run):
        for program, steps in measured.steps.items():
            if "loss" in steps[0]:
                losses = (f"{steps[n]['loss']:.6f} ({steps[n]['tokens']} tokens)" for n in shown)
                rows.setdefault((job.name, program), (job.name, program, *losses))
    return table(("job", "program", *(f"step {n + 1}" for n in shown)), rows.values())


def _settings(run: Run) -> list[str]:
    lines = {}
    for job, _, measured in pairs(run):
        for program, event in measured.startup.items():
            if "settings" in event:
                settings = {**event["settings"], **{f"adapter.{key}": v for key, v in event["adapter"].items()}}
                text = ", ".join(f"{key}={value}" for key, value in settings.items())
                lines.setdefault((job.name, program), f"- {job.name}, {program}: {text}")
    return ["Settings that differ from the defaults (reports, saving and bars not listed):", "", *lines.values()]


def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines() if Path(file).exists() else []
