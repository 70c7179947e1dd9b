"""The options of who decides, which ``meet evaluate`` and ``meet sweep-temperature`` share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meetlm.cli.options import SEED

if TYPE_CHECKING:
    from meetlm.evaluation.evaluate import EvaluationSettings, Evaluators
    from meetlm.evaluation.judge import JudgeSettings

_REWARD = {"model": "reward"}
_JUDGE = {"model": "judge", "base_url": "judge_url", "prompt": "judge_prompt"}
"""Settings that have an option of their own."""
_NEEDS = {
    "judge": ("judge_url", "judge_prompt", "judge_set", "judge_prompts", "judge_seed"),
    "reward": ("reward_set", "tie_band"),
}
"""Options that say nothing without another."""


def _option(parameter: str) -> str:
    return f"--{parameter.replace('_', '-')}"


def _settings(own: Mapping[str, str]) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], dict[str, Any]]:
    """Return what reads words KEY=VALUE, whose values are YAML.

    Args:
        own: Keys that have an option of their own, and the option's parameter.
    """

    def read(context: click.Context, option: click.Parameter, words: tuple[str, ...]) -> dict[str, Any]:
        import yaml

        found: dict[str, Any] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not key or not equals:
                raise click.BadParameter(f"{word!r}: expected KEY=VALUE")
            if key in own:
                raise click.BadParameter(f"{word!r}: expected as {_option(own[key])}")
            if key in found:
                raise click.BadParameter(f"{word!r}: {key} is given twice")
            try:
                found[key] = yaml.safe_load(value)
            except (yaml.YAMLError, ValueError):  # a date that is none is the latter
                raise click.BadParameter(f"{word!r}: the value is not YAML") from None
        return found

    return read


def _band(
    context: click.Context, option: click.Parameter, band: tuple[float, float] | None
) -> tuple[float, float] | None:
    """Refuse a band that cannot be one, before anything is read or scored."""
    from meetlm.evaluation.outcomes import by_reward

    if band is not None:
        by_reward([], [], band)
    return band


def _once(context: click.Context, option: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    for number, name in enumerate(names):
        if name in names[:number]:
            raise click.BadParameter(f"{name!r} is given twice")
    return names


_OPTIONS = (
    click.option("--reward", help="A reward model: hub name or folder; `meet reward train` makes one."),
    click.option(
        "--reward-set",
        multiple=True,
        metavar="KEY=VALUE",
        callback=_settings(_REWARD),
        help="How it reads: input (pair, chat or text), eos, max_length, batch_tokens, device.",
    ),
    click.option("--judge", help="Model of an LLM judge at --judge-url."),
    click.option("--judge-url", help="An OpenAI-compatible endpoint  [default: OpenAI's]."),
    click.option(
        "--judge-prompt",
        help="summary, dialogue, letter or a prompt file  [default: summary for summarize data, else dialogue].",
    ),
    click.option(
        "--judge-set",
        multiple=True,
        metavar="KEY=VALUE",
        callback=_settings(_JUDGE),
        help="More of the judge: key_env, concurrency, max_tokens, …",
    ),
    click.option("--judge-prompts", type=click.IntRange(1), help="Prompts it sees  [default: 128]."),
    click.option("--judge-seed", type=SEED, help="Chooses them  [default: 0]."),
    click.option(
        "--scorer",
        "scorers",
        multiple=True,
        metavar="MODULE:FUNCTION",
        callback=_once,
        help="A function of your own; repeatable.",
    ),
    click.option("--stemmer", is_flag=True, help="Stem words for ROUGE."),
    click.option(
        "--tie-band",
        type=(float, float),
        callback=_band,
        help="Rewards tie where σ of their difference is inside  [default: 0.45 0.55].",
    ),
    click.option("--seed", type=SEED, default=0, show_default=True, help="Of the bootstrap."),
)


def decided_by(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which starts only where none of them is given in vain."""

    @wraps(command)
    def checked(**given: Any) -> Any:
        for needed, names in _NEEDS.items():
            for name in names:
                if given[needed] is None and given[name] not in (None, {}):
                    raise click.UsageError(f"{_option(name)} is given, and no {_option(needed)} that it is of")
        return command(**given)

    decorated: Callable[..., Any] = checked
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def settings_of(given: dict[str, Any]) -> EvaluationSettings:
    """Return how outcomes and intervals are made, as the options say."""
    from meetlm.config.yaml_files import check
    from meetlm.evaluation.evaluate import EvaluationSettings

    same = ("judge_prompts", "judge_seed", "stemmer", "seed")
    own = {**{name: name for name in same}, "band": "tie_band"}
    named = {key: given[name] for key, name in own.items() if given[name] is not None}
    return check(EvaluationSettings, named, {}, "evaluation")


def evaluators_of(given: dict[str, Any], source: str) -> Evaluators:
    """Return who decides, as the options say; models are loaded, what cannot be used is refused.

    Args:
        given: The options.
        source: Of the data: tells the judge's prompt where no option does.
    """
    from meetlm.config.yaml_files import check
    from meetlm.evaluation.callables import load_scorer
    from meetlm.evaluation.evaluate import Evaluators
    from meetlm.evaluation.reward import RewardModel, RewardSettings

    judge, prompt_reason = _judge(given, source)
    scorers = [load_scorer(name) for name in given["scorers"]]
    reward = None
    if given["reward"] is not None:
        named = {"model": given["reward"], **given["reward_set"]}
        reward = RewardModel.load(check(RewardSettings, named, {}, "reward"))
    return Evaluators(reward, judge, scorers, prompt_reason)


def _judge(given: dict[str, Any], source: str) -> tuple[JudgeSettings | None, str]:
    """Return the judge and why it has its prompt; prompt and key are looked at before anything waits for them."""
    if given["judge"] is None:
        return None, ""
    from meetlm.config.yaml_files import check
    from meetlm.evaluation.judge import JudgeSettings
    from meetlm.evaluation.judge_prompts import load_prompt, prompt_for

    prompt, reason = prompt_for(source)
    if given["judge_prompt"] is not None:
        prompt, reason = given["judge_prompt"], "given by --judge-prompt"
    named = {key: given[name] for key, name in _JUDGE.items() if given[name] is not None}
    settings = check(JudgeSettings, {**named, "prompt": prompt, **given["judge_set"]}, {}, "judge")
    load_prompt(settings.prompt)
    _has_key(settings)
    return settings, reason


def _has_key(settings: JudgeSettings) -> None:
    """Refuse a judge without its key, unless there are answers in --out: where these are all, no key is needed."""
    from meetlm.config.errors import ConfigError

    kept = Path(click.get_current_context().params["out"]) / "judge"
    if settings.key_env is None or os.environ.get(settings.key_env) or any(kept.glob("*")):
        return
    raise ConfigError(
        f"the environment variable {settings.key_env} is not set; it should hold the judge's key "
        "(--judge-set key_env=NAME names another variable; key_env=null if the endpoint wants no key)"
    )
