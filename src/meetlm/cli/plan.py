"""``meet plan``: what a run will take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meetlm.cli.arguments import SettingsCommand, args_argument, configure
from meetlm.cli.console import ConsoleReporter
from meetlm.cli.options import config_option

if TYPE_CHECKING:
    from meetlm.run.measure import TimeEstimate
    from meetlm.run.plan import Plan
    from meetlm.run.plan_gpus import GpuPlan

GIB, MIB = 2**30, 2**20


@click.command(
    cls=SettingsCommand,
    epilog="`meet recipes` lists the recipes.",
    short_help="Estimate steps, time, memory and GPUs of a run.",
)
@args_argument("[RECIPE] [SETTING]...")
@config_option
@click.option(
    "--gpu",
    "gpus",
    type=click.IntRange(2),
    multiple=True,
    default=(80,),
    show_default=True,
    help="Size of a GPU in GiB; repeatable.",
)
@click.option(
    "--no-measure", is_flag=True, help="Load no weights and run no forward pass: no times, activations by formula."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def plan(args: tuple[str, ...], file: Path | None, gpus: tuple[int, ...], no_measure: bool, as_json: bool) -> None:
    """Estimate what `meet train` with the same arguments will take.

    For each stage: pairs, optimizer steps, tokens, time and memory, measured on a few forward and backward passes of
    the largest batches. Then the number of GPUs that the run needs, and that models of other sizes need in the
    paper's setting. Trains nothing and writes nothing; downloads at most the model.

    \b
    meet plan hh-meet-lora --data.path ../hh-rlhf --preset small --model.name smollm2
    meet plan pairs-dpo --data.path pairs.csv --gpu 24 --gpu 80 --no-measure
    meet plan --config mine.yaml --model.gradient_checkpointing true
    """  # noqa: D301  click's mark is a real backspace
    from meetlm.cli.console import quiet_libraries

    config = configure(args, file)
    quiet_libraries()
    from meetlm.run.plan import make_plan

    run_plan = make_plan(config, gpus=sorted(set(gpus)), measure=not no_measure, reporter=ConsoleReporter())
    if as_json:
        click.echo(json.dumps(run_plan.to_dict(), indent=2))
        return
    for line in _lines(run_plan):
        click.echo(line)


def _lines(plan: Plan) -> list[str]:
    config = plan.config
    device = {"cpu": "a CPU", "cuda": "a GPU"}[plan.device]
    layout = f"batches {plan.layout}" + ("" if plan.depths else " (by architecture; not checked on the model)")
    lines = [f"{config.recipe}, preset {config.preset}: {config.model.name} on {device}, {layout}"]
    if len(plan.depths) > 1:
        depths = " and ".join(map(str, plan.depths))
        lines.append(f"Measured with {depths} of its {plan.layers} layers and random weights, and extrapolated.")
    return [*lines, "", *_work(plan), "", *_memory(plan), "", *_gpus(plan.gpus)]


def _work(plan: Plan) -> list[str]:
    from meetlm.run.table import aligned

    heads = ("stage", "trains", "pairs", "epochs", "steps", "tokens per epoch", "tokens", "computed", "time")
    rows: list[tuple[str, ...]] = [heads]
    for stage in plan.stages:
        counts = stage.counts
        rows.append(
            (
                stage.name,
                " + ".join(stage.train),
                f"{counts.pairs:,}",
                f"{counts.epochs:.3g}",
                f"{counts.steps:,}",
                f"{counts.tokens_per_epoch:,}",
                f"{counts.tokens:,}",
                f"{counts.positions:,} ({counts.positions / counts.tokens - 1:+.1%})",
                _range(stage.time) if stage.time else "not measured",
            )
        )
    lines = aligned(rows)
    computed = "includes padding" if plan.layout == "padded" else "counts a prompt that replies share once"
    lines.append(f"Tokens: control slots, prompts and replies; computed {computed}.")
    for stage in plan.stages:
        if stage.reference:
            lines.append(f"{stage.name}: scoring its pairs under the reference first, {_range(stage.reference)}")
    if plan.evaluating and plan.time:
        lines.append(
            f"Scoring {plan.measured_pairs:,} held-out pairs before training and after each stage: "
            f"{_range(plan.evaluating)} in total"
        )
        lines.append(f"The whole run: {_range(plan.time)}. Ranges: the fastest and the slowest of the timed passes.")
    return lines


def _memory(plan: Plan) -> list[str]:
    from meetlm.run.table import aligned

    rows: list[tuple[str, ...]] = [("MiB", "weights", "gradients", "optimizer", "activations", "peak")]
    for stage in plan.stages:
        states = stage.states
        peak = states.total + stage.activations
        numbers = (states.weights, states.gradients, states.optimizer, stage.activations, peak)
        rows.append((stage.name, *(f"{number / MIB:,.0f}" for number in numbers)))
    precision = "f32" if plan.device == "cpu" else "bf16 autocast over f32 weights"
    basis = "measured on the largest batch" if plan.depths else "by formula"
    lines = aligned(rows)
    lines.append(f"Tensors, {precision}; activations {basis}. The process needs more: see docs/plan.md.")
    return lines


def _gpus(plans: tuple[GpuPlan, ...]) -> list[str]:
    from meetlm.run.plan_gpus import PAPER_PAIRS, PAPER_TOKENS
    from meetlm.run.table import aligned

    sizes = list(plans[0].gpus)
    rows: list[tuple[str, ...]] = [
        ("GiB", "stage", "states", "activations", "peak", *(f"GPUs of {size} GiB" for size in sizes))
    ]
    for plan in plans:
        memory = plan.memory
        numbers = (memory.states.total, memory.activations + memory.copies, memory.peak)
        counts = ("no number" if count is None else f"{count:,}" for count in plan.gpus.values())
        rows.append((plan.model, plan.stage, *(f"{number / GIB:,.1f}" for number in numbers), *counts))
    return [
        *aligned(rows),
        "By memory alone, under bf16 autocast over f32 weights, for the most demanding stage. The first line is this "
        f"run; the others have {PAPER_PAIRS} pairs per step, {PAPER_TOKENS} tokens each (prompt and reply).",
        "Several GPUs share weights, gradients and optimizer states (FSDP, ZeRO-3). This version of meetlm trains in "
        "one process on one device: numbers above 1 are for planning.",
    ]


def _range(time: TimeEstimate) -> str:
    return f"{_duration(time.mean)} ({_duration(time.low)} to {_duration(time.high)})"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
