"""``meet plan``: estimate the time, memory and GPUs of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from meetlm.cli.arguments import SettingsCommand, configure
from meetlm.cli.console import ConsoleReporter, print_json, print_table, quiet_libraries
from meetlm.cli.main import main
from meetlm.cli.options import Count, config_option, json_option
from meetlm.config.overrides import Override

if TYPE_CHECKING:
    from meetlm.run.measure import TimeEstimate
    from meetlm.run.plan import Plan

GIB, MIB = 2**30, 2**20


@main.command(
    cls=SettingsCommand,
    names="[RECIPE]",
    short_help="Estimate steps, time, memory and GPUs of a run.",
)
@config_option
@click.option(
    "--gpu",
    "gpus",
    type=Count(2),
    multiple=True,
    default=(80,),
    show_default=True,
    help="Size of a GPU in GiB; repeatable.",
)
@click.option(
    "--no-measure",
    is_flag=True,
    help="Load no weights and run no forward pass: print no times, and estimate activations by formula.",
)
@json_option
def plan(
    names: list[str],
    overrides: list[Override],
    file: Path | None,
    gpus: tuple[int, ...],
    no_measure: bool,
    as_json: bool,
) -> None:
    """Estimate the time and memory of `meet train` with the same arguments.

    Prints the pairs, optimizer steps and tokens of each stage, and its time and memory, which are measured on a few
    forward and backward passes. Then prints how many GPUs the run needs, and how many GPUs models of other sizes need
    in the paper's setting. Trains nothing and writes nothing; downloads at most the model.

    \b
    Examples:
      meet plan hh-meet-lora --data.path ../hh-rlhf --preset small --model.name smollm2
      meet plan pairs-dpo --data.path pairs.csv --gpu 24 --gpu 80 --no-measure
      meet plan --config mine.yaml --model.gradient_checkpointing true
    """  # noqa: D301  click's mark is a real backspace
    config = configure(names, overrides, file)
    quiet_libraries()
    from meetlm.run.plan import make_plan

    run_plan = make_plan(config, gpus=sorted(set(gpus)), measure=not no_measure, reporter=ConsoleReporter())
    if as_json:
        print_json(run_plan.to_dict())
        return
    device = {"cpu": "a CPU", "cuda": "a GPU"}[run_plan.device]
    layout = f"batches {run_plan.layout}" + ("" if run_plan.depths else " (by architecture; not checked on the model)")
    click.echo(f"{config.recipe}, preset {config.preset}: {config.model.name} on {device}, {layout}")
    if len(run_plan.depths) > 1:
        depths = " and ".join(map(str, run_plan.depths))
        click.echo(f"Measured with {depths} of its {run_plan.layers} layers and random weights, and extrapolated.")
    for print_part in (_print_work, _print_memory, _print_gpus):
        click.echo()
        print_part(run_plan)


def _print_work(plan: Plan) -> None:
    heads = ("stage", "trains", "pairs", "epochs", "steps", "tokens per epoch", "tokens", "computed", "time")
    rows = [
        (
            stage.name,
            " + ".join(stage.train),
            f"{stage.counts.pairs:,}",
            f"{stage.counts.epochs:.3g}",
            f"{stage.counts.steps:,}",
            f"{stage.counts.tokens_per_epoch:,}",
            f"{stage.counts.tokens:,}",
            f"{stage.counts.positions:,} ({stage.counts.positions / stage.counts.tokens - 1:+.1%})",
            _range(stage.time) if stage.time else "not measured",
        )
        for stage in plan.stages
    ]
    print_table(heads, rows)
    computed = "includes padding" if plan.layout == "padded" else "counts a prompt that several replies share once"
    click.echo(f"Tokens: control slots, prompts and replies; computed {computed}.")
    for stage in plan.stages:
        if stage.reference:
            click.echo(f"{stage.name}: scoring its pairs under the reference first, {_range(stage.reference)}")
    if plan.evaluating and plan.time:
        click.echo(
            f"Scoring {plan.measured_pairs:,} held-out pairs before training and after each stage: "
            f"{_range(plan.evaluating)} in total"
        )
        click.echo(f"The whole run: {_range(plan.time)}. Ranges: the fastest and the slowest of the timed passes.")


def _print_memory(plan: Plan) -> None:
    rows = []
    for stage in plan.stages:
        states = stage.states
        peak = states.total + stage.activations
        numbers = (states.weights, states.gradients, states.optimizer, stage.activations, peak)
        rows.append((stage.name, *(f"{number / MIB:,.0f}" for number in numbers)))
    print_table(("MiB", "weights", "gradients", "optimizer", "activations", "peak"), rows)
    precision = "f32" if plan.device == "cpu" else "bf16 autocast over f32 weights"
    basis = "measured on the largest batch" if plan.depths else "by formula"
    click.echo(f"Tensors, {precision}; activations {basis}. The process needs more: see docs/plan.md.")


def _print_gpus(plan: Plan) -> None:
    from meetlm.run.plan_gpus import PAPER_PAIRS, PAPER_TOKENS

    rows = []
    for gpu_plan in plan.gpus:
        memory = gpu_plan.memory
        numbers = (memory.states.total, memory.activations + memory.copies, memory.peak)
        counts = ("no number" if count is None else f"{count:,}" for count in gpu_plan.gpus.values())
        rows.append((gpu_plan.model, gpu_plan.stage, *(f"{number / GIB:,.1f}" for number in numbers), *counts))
    sizes = (f"GPUs of {size} GiB" for size in plan.gpus[0].gpus)
    print_table(("GiB", "stage", "states", "activations", "peak", *sizes), rows)
    click.echo(
        "By memory alone, under bf16 autocast over f32 weights, for the most demanding stage. The first line is this "
        f"run; the others have {PAPER_PAIRS} pairs per step, {PAPER_TOKENS} tokens each (prompt and reply).\n"
        "Several GPUs share weights, gradients and optimizer states (FSDP, ZeRO-3). This version of meetlm trains in "
        "one process on one device: numbers above 1 are for planning."
    )


def _range(time: TimeEstimate) -> str:
    return f"{_duration(time.mean)} ({_duration(time.low)} to {_duration(time.high)})"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
