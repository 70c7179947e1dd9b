"""``meet plan``: what a run takes, before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meetlm.cli.arguments import SettingsCommand, args_argument, configure
from meetlm.cli.options import config_option

if TYPE_CHECKING:
    from meetlm.run.calibrate import Seconds
    from meetlm.run.plan import GpuPlan, Plan

GIB, MIB = 2**30, 2**20


@click.command(
    cls=SettingsCommand,
    epilog="`meet recipes` lists the recipes.",
    short_help="Say what a run will take: steps, time, memory, GPUs.",
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
@click.option("--no-calibrate", is_flag=True, help="Load no weights and time nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def plan(args: tuple[str, ...], file: Path | None, gpus: tuple[int, ...], no_calibrate: bool, as_json: bool) -> None:
    """Say what `meet train` with the same words would take.

    Of each stage: pairs, optimizer steps, tokens, the wall time that a few real passes here promise, and memory, found
    by running its largest batch without data. Then how many GPUs that needs, and models of other sizes in the paper's
    setting. Trains nothing that is kept, downloads nothing but the model.

    \b
    meet plan hh-meet-lora --data.path ../hh-rlhf --preset small --model.name smollm2
    meet plan pairs-dpo --data.path pairs.csv --gpu 24 --gpu 80 --no-calibrate
    meet plan --config mine.yaml --model.gradient_checkpointing true
    """  # noqa: D301  click's mark is a real backspace
    from meetlm.cli.console import quiet_libraries

    config = configure(args, file)
    quiet_libraries()
    from meetlm.run.plan import make_plan

    made = make_plan(
        config,
        gpus=sorted(set(gpus)),
        timed=not no_calibrate,
        say=lambda text: click.echo(f"… {text}", err=True),
    )
    if as_json:
        click.echo(json.dumps(made.to_dict(), indent=2))
        return
    for line in _lines(made):
        click.echo(line)


def _lines(made: Plan) -> list[str]:
    config = made.config
    where = {"cpu": "a CPU", "cuda": "a GPU"}[made.device]
    promised = "" if made.checked else ", as its architecture promises (checked when the weights are loaded)"
    return [
        f"{config.recipe}, preset {config.preset}: {config.model.name} on {where}, batches {made.layout}{promised}",
        "",
        *_work(made),
        "",
        *_memory(made),
        "",
        *_gpus(made.gpus),
    ]


def _work(made: Plan) -> list[str]:
    from meetlm.run.table import aligned

    heads = ("stage", "trains", "pairs", "passes", "steps", "tokens a pass", "in all", "computed", "time")
    rows: list[tuple[str, ...]] = [heads]
    for stage in made.stages:
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
                _time(stage.seconds) if stage.seconds else "not timed",
            )
        )
    lines = aligned(rows)
    lines.append(
        "Tokens: slots, prompts and replies. Computed: padding counted."
        if made.layout == "padded"
        else "Tokens: slots, prompts and replies. Computed: a prompt that replies share counts once."
    )
    for stage in made.stages:
        if stage.reference:
            lines.append(f"{stage.name}: scoring its pairs under the reference first, {_time(stage.reference)}")
    if made.measuring and made.seconds:
        lines.append(
            f"Measuring {made.measured_pairs:,} held-out pairs before training and after each stage: "
            f"{_time(made.measuring)} together"
        )
        lines.append(
            f"The whole run: {_time(made.seconds)}. By the mean of the passes timed (the fastest to the slowest)."
        )
    return lines


def _memory(made: Plan) -> list[str]:
    from meetlm.run.table import aligned

    heads = ["MiB", "weights", "gradients", "moments", "above", "peak"]
    stages = [stage.memory for stage in made.stages]
    holds = [getattr(memory, "held", None) for memory in stages]
    if any(holds):
        heads.append("the process")
    rows = [tuple(heads)]
    for stage, held in zip(made.stages, holds, strict=True):
        memory = stage.memory
        states = memory.states
        numbers = [states.weights, states.gradients, states.moments, memory.above, memory.peak]
        if held:
            numbers.append(held)
        rows.append((stage.name, *(f"{number / MIB:,.0f}" for number in numbers)))
    lines = aligned(rows)
    kind = "f32" if made.device == "cpu" else "bf16 autocast over f32 weights"
    lines.append(f"Of tensors, {kind}, in the largest pass. Above: activations, less the gradients still to come then.")
    if any(holds):
        lines.append(
            "The process: what the C library holds for them, replayed; it cannot use again all that it gets back. "
            "Python and libraries come on top."
        )
    return lines


def _gpus(plans: tuple[GpuPlan, ...]) -> list[str]:
    from meetlm.run.table import aligned

    sizes = list(plans[0].gpus)
    rows: list[tuple[str, ...]] = [
        ("GiB", "stage", "states", "above", "peak", *(f"GPUs of {size} GiB" for size in sizes))
    ]
    for one in plans:
        memory = one.memory
        numbers = (memory.states.total, memory.above, memory.peak)
        needs = ("no number" if n is None else f"{n:,}" for n in one.gpus.values())
        rows.append((one.model, one.stage, *(f"{number / GIB:,.1f}" for number in numbers), *needs))
    from meetlm.run.plan_shapes import PAIRS, TOKENS

    return [
        *aligned(rows),
        f"By memory alone, bf16 autocast over f32 weights, the stage that takes most. The first line is this run; the "
        f"others are {PAIRS} pairs a step, all of {TOKENS} tokens.",
        "Several GPUs share the states (FSDP, ZeRO-3), each with passes as large. This version of meetlm trains in one "
        "process on one device: counts above 1 are for planning.",
    ]


def _time(seconds: Seconds) -> str:
    return f"{_clock(seconds.likely)} ({_clock(seconds.least)} to {_clock(seconds.most)})"


def _clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
