"""``meet doctor``: check data and model before training."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meetlm.cli.arguments import SettingsCommand, args_argument, configure_for_data
from meetlm.cli.console import ConsoleReporter, quiet_libraries
from meetlm.cli.options import config_option, json_option, print_json
from meetlm.config.errors import ConfigError
from meetlm.config.overrides import Override

if TYPE_CHECKING:
    from meetlm.diagnostics.check_run import StageSteps
    from meetlm.diagnostics.checks import Check, Diagnosis
    from meetlm.diagnostics.doctor import RecipeSteps
    from meetlm.recipes.config import RunConfig

WIDTH = 110
COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command(cls=SettingsCommand, short_help="Check data and model before training.")
@args_argument("[RECIPE] [SETTING]...")
@config_option
@json_option
def doctor(args: tuple[str, ...], file: Path | None, as_json: bool) -> None:
    """Check data and model before training.

    Takes the arguments of `meet train`. Without a recipe, --data.path is enough: the format is that of the first row,
    the method MEET with LoRA, the model SmolLM2.

    Does anything but preference distinguish chosen from rejected replies: length, stock replies, wording? Are there
    enough optimizer steps and enough held-out pairs, none of them in the training data? Does the model fit the data?
    Exit code 1 if a check finds a problem, else 0.

    \b
    meet doctor --data.path train.jsonl.gz --data.eval_file test.jsonl.gz --preset small
    meet doctor hh-meet-lora --data.path ../hh-rlhf --data.subset harmless-base
    meet doctor pairs-meet-soft-prompt --data.path pairs.csv --model.name ./my-model --data.max_length 1024
    """  # noqa: D301  click's mark is a real backspace
    quiet_libraries(warnings=False)
    config, _ = configure_for_data(args, file)
    from meetlm.controls.build import build_control
    from meetlm.data.prompt_format import pin_format
    from meetlm.diagnostics.checks import Check, Diagnosis
    from meetlm.diagnostics.doctor import diagnose
    from meetlm.diagnostics.locate import with_test
    from meetlm.policy.loading import load_lm

    settings = with_test(config.data)
    configs = {config.preset: config, **_other_preset(args, file, config.preset)}
    try:
        lm, tokenizer = load_lm(config.model)
    except ConfigError as error:
        advice = "Nothing else was checked: set model.name to a causal language model that can be loaded."
        diagnosis = Diagnosis((Check("model", "problem", str(error), advice=advice),))
    else:
        prompt_format = pin_format(tokenizer, system=config.format.system, reasoning=config.format.reasoning)
        slots = build_control(config.control, lm, prompt_format.tokenize, config.seed).slots
        diagnosis = diagnose(
            settings or config.data,
            lm,
            prompt_format,
            lambda pairs: _recipe_steps(configs, config.preset, pairs),
            slot=max(map(len, slots)),
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


def _print_diagnosis(diagnosis: Diagnosis, config: RunConfig) -> None:
    for check in diagnosis.checks:
        _print(check, max(len(check.name) for check in diagnosis.checks))
    numbers = ", ".join(_number(diagnosis.count(name), name) for name in ("problem", "warning"))
    click.echo(f"\n{numbers} in {len(diagnosis.checks)} checks (recipe {config.recipe}, preset {config.preset})")


def _other_preset(args: tuple[str, ...], file: Path | None, preset: str) -> dict[str, RunConfig]:
    """Return the configuration under the other preset by its name; none where a file sets all that a preset would."""
    other = "small" if preset == "paper" else "paper"
    try:
        return {other: configure_for_data(args, file, Override("preset", other))[0]}
    except ConfigError:
        return {}


def _recipe_steps(configs: Mapping[str, RunConfig], preset: str, pairs: int) -> RecipeSteps:
    from meetlm.diagnostics.doctor import RecipeSteps
    from meetlm.training.stage import MIN_STEPS

    shortest = {name: min(stage.steps for stage in _stages(config, pairs)) for name, config in configs.items()}
    return RecipeSteps(preset, _stages(configs[preset], pairs), shortest, MIN_STEPS)


def _stages(config: RunConfig, pairs: int) -> tuple[StageSteps, ...]:
    """Return the steps of each stage for a number of pairs."""
    from meetlm.diagnostics.check_run import StageSteps

    steps_per_epoch = -(-pairs // config.batch.pairs)
    stages = []
    for stage in config.stages:
        steps = stage.num_steps(pairs, config.batch.pairs)
        stages.append(StageSteps(stage.name, steps, steps / steps_per_epoch))
    return tuple(stages)


def _print(check: Check, width: int) -> None:
    """Print a check: status, name and finding, wrapped, and its advice below."""
    indent = " " * (11 + width)
    finding = f"{check.finding} {check.basis}".rstrip()
    text = textwrap.fill(finding, WIDTH, initial_indent=indent, subsequent_indent=indent).strip()
    status = click.style(f"{check.status:<9}", fg=COLOURS[check.status])
    click.echo(f"{status}{check.name:<{width}}  {text}")
    if check.advice:
        lines = textwrap.fill(f"→ {check.advice}", WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ")
        click.echo(lines)


def _number(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"
