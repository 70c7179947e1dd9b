"""``meet doctor``: check data and model before training."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meetlm.cli.arguments import SettingsCommand, configure_for_data
from meetlm.cli.console import ConsoleReporter, print_json, quiet_libraries
from meetlm.cli.main import main
from meetlm.cli.options import config_option, json_option
from meetlm.config.errors import ConfigError
from meetlm.config.overrides import Override

if TYPE_CHECKING:
    from meetlm.data.levels import LevelSpace
    from meetlm.diagnostics.check_run import StageSteps
    from meetlm.diagnostics.checks import Check, Diagnosis
    from meetlm.recipes.config import RunConfig

WIDTH = 110
COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@main.command(cls=SettingsCommand, names="[RECIPE]", short_help="Check data and model before training.")
@config_option
@json_option
def doctor(names: list[str], overrides: list[Override], file: Path | None, as_json: bool) -> None:
    """Check data and model before training.

    Accepts the arguments of `meet train`. Without a recipe, --data.path is enough: the first row decides the format,
    the method is MEET with LoRA, and the model is SmolLM2.

    \b
    It checks
    - whether length, stock replies or wording alone distinguish chosen from rejected replies;
    - whether there are enough optimizer steps and enough held-out pairs, none of them in the training data;
    - whether the model fits the data: chat template, context length, vocabulary.

    Exit code 1 if a check finds a problem, else 0.

    \b
    Examples:
      meet doctor --data.path train.jsonl.gz --data.eval_file test.jsonl.gz --preset small
      meet doctor hh-meet-lora --data.path ../hh-rlhf --data.subset harmless-base
      meet doctor pairs-meet-soft-prompt --data.path pairs.csv --model.name ./my-model --data.max_length 1024
    """  # noqa: D301  click's mark is a real backspace
    quiet_libraries(warnings=False)
    config, _ = configure_for_data(names, overrides, file)
    from meetlm.controls.build import build_control
    from meetlm.data.prompt_format import pin_format
    from meetlm.diagnostics.checks import Check, Diagnosis
    from meetlm.diagnostics.doctor import diagnose
    from meetlm.diagnostics.locate import with_test
    from meetlm.policy.loading import load_lm
    from meetlm.training.stage import MIN_STEPS

    settings = with_test(config.data)
    try:
        lm, tokenizer = load_lm(config.model)
    except ConfigError as error:
        advice = "Nothing else was checked: set model.name to a causal language model that can be loaded."
        diagnosis = Diagnosis((Check("model", "problem", str(error), advice=advice),))
    else:
        prompt_format = pin_format(tokenizer, system=config.format.system, reasoning=config.format.reasoning)

        def slot_for(data_levels: LevelSpace) -> int:
            levels = config.control_levels(data_levels)
            control = build_control(config.control, levels, lm, prompt_format.tokenize, config.seed)
            ranges = levels.ranges.values()
            return sum(max(len(control.slot(levels.weights([k]))) for k in indices) for indices in ranges)

        diagnosis = diagnose(
            settings or config.data,
            lm,
            prompt_format,
            lambda pairs: _stage_steps(config, pairs),
            preset=config.preset,
            min_steps=MIN_STEPS,
            slot_for=slot_for,
            with_eval=settings is not None,
            reporter=ConsoleReporter(),
        )
    if as_json:
        print_json(diagnosis.to_dict())
    else:
        _print_diagnosis(diagnosis, config)
        if settings is not None and settings.eval_split != config.data.eval_split:
            click.echo(
                f"The held-out rows are the split {settings.eval_split}: --data.eval_split {settings.eval_split}"
            )
    if diagnosis.status == "problem":
        sys.exit(1)


def _stage_steps(config: RunConfig, pairs: int) -> list[StageSteps]:
    """Return the steps of each stage for a number of pairs."""
    from meetlm.diagnostics.check_run import StageSteps

    steps_per_epoch = -(-pairs // config.batch.pairs)
    steps = {stage.name: stage.num_steps(pairs, config.batch.pairs) for stage in config.stages}
    return [StageSteps(name, number, number / steps_per_epoch) for name, number in steps.items()]


def _print_diagnosis(diagnosis: Diagnosis, config: RunConfig) -> None:
    width = max(len(check.name) for check in diagnosis.checks)
    for check in diagnosis.checks:
        _print(check, width)
    counts = {status: diagnosis.count(status) for status in ("problem", "warning")}
    numbers = ", ".join(f"{count or 'no'} {status}{'' if count == 1 else 's'}" for status, count in counts.items())
    checks = len(diagnosis.checks)
    click.echo(
        f"\n{numbers} in {checks} check{'' if checks == 1 else 's'} (recipe {config.recipe}, preset {config.preset})"
    )


def _print(check: Check, width: int) -> None:
    """Print a check: status, name and finding, wrapped, and its advice below."""
    indent = " " * (11 + width)
    finding = f"{check.finding} {check.sample_size}".rstrip()
    text = textwrap.fill(finding, WIDTH, initial_indent=indent, subsequent_indent=indent).strip()
    status = click.style(f"{check.status:<9}", fg=COLOURS[check.status])
    click.echo(f"{status}{check.name:<{width}}  {text}")
    if check.advice:
        click.echo(textwrap.fill(f"→ {check.advice}", WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  "))
