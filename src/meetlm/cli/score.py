"""``meet score``: the levels of a run as a reward model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from meetlm.cli.arguments import HeldOutData, SettingsCommand, held_out_data
from meetlm.cli.console import ConsoleReporter, print_json, quiet_libraries
from meetlm.cli.main import main
from meetlm.cli.options import json_option, quiet_option
from meetlm.config.overrides import Override


@main.command(
    cls=SettingsCommand,
    names="RUN",
    missing="the folder of a run",
    settings=HeldOutData,
    short_help="Score replies by the levels of a run.",
)
@click.option("--prompt", help="Score the replies in --completion to this prompt.")
@click.option("--completion", "completions", multiple=True, help="A reply to --prompt; repeatable.")
@click.option("--reward", metavar="MODEL", help="Reward model to compare on the same pairs: hub name or folder.")
@json_option
@quiet_option
def score(
    names: list[str],
    overrides: list[Override],
    prompt: str | None,
    completions: tuple[str, ...],
    reward: str | None,
    as_json: bool,
    reporter: ConsoleReporter,
) -> None:
    """Score replies by log p(reply | best level) − log p(reply | worst level), summed and per token, in nats.

    Without --prompt, score the held-out pairs of RUN, or the pairs in --data.path, and print how often the chosen reply
    has the higher score.

    \b
    Examples:
      meet score runs/lora --prompt "How do I boil rice?" --completion "Boil it." --completion "No idea."
      meet score runs/lora --reward runs/rm
      meet score runs/lora --data.path pairs.jsonl --json
    """  # noqa: D301  click's mark is a real backspace
    if (prompt is None) == bool(completions):
        raise click.UsageError("--prompt and --completion require each other")
    if prompt is not None and (overrides or reward):
        raise click.UsageError("--prompt cannot be combined with settings of data or --reward")
    quiet_libraries()
    from meetlm.evaluation.settings import RewardSettings
    from meetlm.run.aligned import load
    from meetlm.run.folder import read_data_settings, read_pinned_levels
    from meetlm.run.score import accuracy, read_pairs, reward_accuracy, score_pairs

    run = Path(names[0])
    if prompt is not None:
        scores = load(run).score([prompt] * len(completions), completions, reporter=reporter)
        rows = [{"completion": text, **asdict(score)} for text, score in zip(completions, scores, strict=True)]
        if as_json:
            print_json(rows)
            return
        for text, result in zip(completions, scores, strict=True):
            click.echo(f"{result.total:9.3f}  {result.per_token:8.4f} per token  {text}")
        return
    settings = held_out_data(overrides) or read_data_settings(run)
    aligned = load(run)
    examples, report = read_pairs(settings, aligned.format, read_pinned_levels(run))
    for line in report.lines():
        reporter.message(line)
    pairs = score_pairs(aligned.policy, aligned.encoder, examples, reporter=reporter)
    accuracies = {"levels": accuracy(pairs), "levels, per token": accuracy(pairs, per_token=True)}
    if reward is not None:
        accuracies[f"reward model {reward}"] = reward_accuracy(RewardSettings(model=reward), pairs, reporter=reporter)
    if as_json:
        print_json(
            {
                "num_pairs": len(pairs),
                "accuracy": {name: asdict(interval) for name, interval in accuracies.items()},
                "pairs": [pair.to_dict() for pair in pairs],
            }
        )
        return
    click.echo(f"How often the chosen reply of {len(pairs)} pairs has the higher score:")
    for name, interval in accuracies.items():
        click.echo(f"  {name}: {interval}")
