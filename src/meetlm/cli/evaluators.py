"""The options and settings of evaluators, which ``meet evaluate`` and ``meet sweep-temperature`` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from meetlm.cli.options import settings_options
from meetlm.config.overrides import Override, parse_settings
from meetlm.config.settings import Settings
from meetlm.config.yaml_files import validate
from meetlm.evaluation.settings import EvaluationSettings, JudgeSettings, RewardSettings

S = TypeVar("S", bound=Settings)


class RewardArguments(Settings):
    """The settings of a command that scores by a reward model."""

    reward: RewardSettings | None = None


class EvaluatorSettings(RewardArguments):
    """The settings of evaluators, by the first part of their keys."""

    judge: JudgeSettings | None = None


_OPTIONS = (
    click.option("--reward", metavar="MODEL", help="Reward model: hub name or folder; `meet reward train` makes one."),
    click.option("--judge", metavar="MODEL", help="LLM judge: name of the model at --judge.base_url."),
    click.option(
        "--scorer",
        "scorers",
        multiple=True,
        metavar="MODULE:FUNCTION",
        help="Python function of prompt and completion; repeatable.",
    ),
    settings_options(EvaluationSettings, "settings", "stemmer", "tie_band", "seed"),
)


def evaluator_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of evaluators; the command receives ``reward``, ``judge``, ``scorers`` and ``settings``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def evaluator_settings(
    options: dict[str, Any], settings: EvaluationSettings, overrides: Sequence[Override]
) -> dict[str, Any]:
    """Return the arguments ``reward``, ``judge`` and ``scorers`` of :func:`meetlm.evaluate`.

    Args:
        options: Values of the options.
        settings: Settings of the evaluation.
        overrides: Settings of the command.

    Raises:
        UsageError: A setting requires an option.
        ConfigError: A setting is wrong.
    """
    if "tie_band" in settings.model_fields_set and options["reward"] is None:
        raise click.UsageError("--tie-band requires --reward")
    evaluators = model_settings(EvaluatorSettings, overrides, reward=options["reward"], judge=options["judge"])
    return {"reward": evaluators.reward, "judge": evaluators.judge, "scorers": tuple(dict.fromkeys(options["scorers"]))}


def model_settings(settings: type[S], overrides: Sequence[Override], **models: str | None) -> S:
    """Return the settings of models, from options such as ``--reward MODEL`` and ``--reward.max_length``.

    Args:
        settings: The class of the settings.
        overrides: Settings of the command; those of ``data`` are ignored.
        **models: Values of the options by the first part of the keys; ``None`` for options that are not used.

    Raises:
        UsageError: A setting requires an option, or names the model itself.
        ConfigError: A setting is wrong.
    """
    named = {block: {"model": model} for block, model in models.items() if model is not None}
    model_overrides = [override for override in overrides if not override.key.startswith("data.")]
    for override in model_overrides:
        block, _, field = override.key.partition(".")
        if field == "model":
            raise click.UsageError(f"{override.option} is not a setting: use --{block} {override.text}")
        if block not in named:
            raise click.UsageError(f"{override.option} requires --{block}")
    raw, locations = parse_settings(settings, model_overrides, named)
    return validate(settings, raw, locations, "evaluators")
