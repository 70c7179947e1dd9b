"""The options of who decides, which ``meet evaluate`` and ``meet sweep-temperature`` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from meetlm.cli.inspect import SEED

if TYPE_CHECKING:
    from meetlm.evaluation.evaluate import EvaluationSettings, Evaluators
    from meetlm.evaluation.judge import JudgeSettings

_OPTIONS = (
    click.option("--reward", help="A reward model: hub name or folder; `meet reward train` makes one."),
    click.option("--judge", help="Model of an LLM judge at --judge-url."),
    click.option("--judge-url", help="An OpenAI-compatible endpoint  [default: OpenAI's]."),
    click.option("--judge-prompt", default="dialogue", show_default=True, help="summary, dialogue or a prompt file."),
    click.option(
        "--judge-set", multiple=True, metavar="KEY=VALUE", help="More of the judge: key_env, concurrency, max_tokens, …"
    ),
    click.option("--judge-prompts", type=click.IntRange(1), default=128, show_default=True, help="Prompts it sees."),
    click.option(
        "--scorer", "scorers", multiple=True, metavar="MODULE:FUNCTION", help="A function of your own; repeatable."
    ),
    click.option("--stemmer", is_flag=True, help="Stem words for ROUGE."),
    click.option(
        "--tie-band",
        type=(float, float),
        default=(0.45, 0.55),
        show_default=True,
        help="Rewards tie where σ of their difference is inside.",
    ),
    click.option("--seed", type=SEED, default=0, show_default=True, help="Of the bootstrap and the judge's prompts."),
)


def decided_by(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def settings_of(given: dict[str, Any]) -> EvaluationSettings:
    """Return how outcomes and intervals are made, as the options say."""
    from meetlm.config.yaml_files import check
    from meetlm.evaluation.evaluate import EvaluationSettings

    named = {name: given[name] for name in ("judge_prompts", "stemmer", "seed")}
    return check(EvaluationSettings, {**named, "band": given["tie_band"]}, {}, "evaluation")


def evaluators_of(given: dict[str, Any]) -> Evaluators:
    """Return who decides, as the options say; models are loaded, what cannot be used is refused."""
    from meetlm.config.yaml_files import check
    from meetlm.evaluation.callables import load_scorer
    from meetlm.evaluation.evaluate import Evaluators
    from meetlm.evaluation.reward import RewardModel, RewardSettings

    judge, scorers = _judge(given), [load_scorer(name) for name in given["scorers"]]
    reward = given["reward"] and RewardModel.load(check(RewardSettings, {"model": given["reward"]}, {}, "reward"))
    return Evaluators(reward or None, judge, scorers)


def _judge(given: dict[str, Any]) -> JudgeSettings | None:
    from meetlm.config.yaml_files import check
    from meetlm.evaluation.judge import JudgeSettings

    if given["judge"] is None:
        return None
    import yaml

    more = {}
    for word in given["judge_set"]:
        key, equals, value = word.partition("=")
        if not equals:
            raise click.UsageError(f"--judge-set {word!r}: expected KEY=VALUE")
        more[key] = yaml.safe_load(value)
    url = {"base_url": given["judge_url"]} if given["judge_url"] else {}
    return check(JudgeSettings, {"model": given["judge"], "prompt": given["judge_prompt"], **url, **more}, {}, "judge")
