"""The options and settings of evaluators, which ``meet evaluate`` and ``meet sweep-temperature`` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from meetlm.cli.options import SEED
from meetlm.config.overrides import Override, parse_settings
from meetlm.config.settings import Settings
from meetlm.config.yaml_files import validate
from meetlm.data.settings import DataSettings
from meetlm.evaluation.settings import EvaluationSettings, JudgeSettings, RewardSettings


class EvaluatorSettings(Settings):
    """The settings of a command that compares completions, by the first part of their keys."""

    data: DataSettings | None = None
    reward: RewardSettings | None = None
    judge: JudgeSettings | None = None


EVALUATOR_BLOCKS = {"reward": RewardSettings, "judge": JudgeSettings}


def _check_band(
    context: click.Context, option: click.Parameter, band: tuple[float, float] | None
) -> tuple[float, float] | None:
    from meetlm.evaluation.outcomes import by_reward

    if band is not None:
        by_reward([], [], band)
    return band


def _check_distinct(context: click.Context, option: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    for number, name in enumerate(names):
        if name in names[:number]:
            raise click.BadParameter(f"{name!r} is repeated")
    return names


_OPTIONS = (
    click.option("--reward", metavar="MODEL", help="Reward model: hub name or folder; `meet reward train` makes one."),
    click.option("--judge", metavar="MODEL", help="LLM judge: name of the model at --judge.base_url."),
    click.option(
        "--scorer",
        "scorers",
        multiple=True,
        metavar="MODULE:FUNCTION",
        callback=_check_distinct,
        help="Python function of prompt and completion; repeatable.",
    ),
    click.option("--stemmer", is_flag=True, help="Stem words for ROUGE."),
    click.option(
        "--tie-band",
        type=(float, float),
        callback=_check_band,
        help="Count a tie if sigmoid(reward difference) is between these bounds  [default: 0.45 0.55].",
    ),
    click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the bootstrap."),
)


def evaluator_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of evaluators to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def evaluation_settings(options: dict[str, Any]) -> EvaluationSettings:
    """Return how outcomes and intervals are computed, from the options."""
    if options["tie_band"] is not None and options["reward"] is None:
        raise click.UsageError("--tie-band requires --reward")
    names = {"stemmer": "stemmer", "seed": "seed", "band": "tie_band"}
    stated = {key: options[name] for key, name in names.items() if options[name] is not None}
    return validate(EvaluationSettings, stated, {}, "evaluation")


def evaluator_settings(options: dict[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """Return the settings of the evaluators ``reward``, ``judge`` and ``scorers``, as ``meetlm.evaluate`` takes them.

    Args:
        options: Values of the options.
        overrides: Settings of the command.

    Raises:
        UsageError: A setting requires an option.
        ConfigError: A setting is wrong.
    """
    models = {block: {"model": options[block]} for block in EVALUATOR_BLOCKS if options[block] is not None}
    stated = [override for override in overrides if override.key.split(".")[0] in EVALUATOR_BLOCKS]
    for override in stated:
        block, _, field = override.key.partition(".")
        if field == "model":
            raise click.UsageError(f"{override.option} is not a setting: use --{block} {override.text}")
        if block not in models:
            raise click.UsageError(f"{override.option} requires --{block}")
    raw, locations = parse_settings(EvaluatorSettings, stated, models)
    settings = validate(EvaluatorSettings, raw, locations, "evaluators")
    return {"reward": settings.reward, "judge": settings.judge, "scorers": options["scorers"]}
