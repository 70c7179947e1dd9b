"""``meet score``: the levels of a run as a reward model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meetlm.cli.arguments import HeldOutData, SettingsCommand, held_out_data
from meetlm.cli.console import ConsoleReporter, print_json, quiet_libraries
from meetlm.cli.evaluators import RewardArguments, model_settings
from meetlm.cli.main import main
from meetlm.cli.options import attribute_option, json_option, processes_option, quiet_option
from meetlm.cli.processes import is_launcher, join, launch
from meetlm.config.overrides import Override

if TYPE_CHECKING:
    from meetlm.run.aligned import Aligned


class _ScoreArguments(RewardArguments, HeldOutData):
    """The settings of the command."""


@main.command(
    cls=SettingsCommand,
    names="RUN",
    missing="the folder of a run",
    settings=_ScoreArguments,
    short_help="Score replies by the levels of a run.",
)
@click.option("--prompt", help="Score the replies in --completion to this prompt.")
@click.option("--completion", "completions", multiple=True, help="A reply to --prompt; repeatable.")
@attribute_option
@click.option("--reward", metavar="MODEL", help="Reward model to compare on the same pairs: hub name or folder.")
@json_option
@processes_option
@quiet_option
def score(
    names: list[str],
    overrides: list[Override],
    prompt: str | None,
    completions: tuple[str, ...],
    attribute: str | None,
    reward: str | None,
    as_json: bool,
    processes: int,
    reporter: ConsoleReporter,
) -> None:
    """Score replies by log p(reply | best level) − log p(reply | worst level), summed and per token, in nats.

    Without --prompt, score the held-out pairs of RUN, or the pairs in --data.path, and print how often the chosen reply
    has the higher score. In a run with several attributes, each attribute has its own score, and a pair consists of the
    replies at the highest and the lowest level of the attribute.

    \b
    Examples:
      meet score runs/lora --prompt "How do I boil rice?" --completion "Boil it." --completion "No idea."
      meet score runs/lora --reward runs/rm
      meet score runs/lora --data.path pairs.jsonl --json
      meet score runs/steer --attribute helpfulness
    """  # noqa: D301  click's mark is a real backspace
    if (prompt is None) == bool(completions):
        raise click.UsageError("--prompt and --completion require each other")
    if prompt is not None and (overrides or reward):
        raise click.UsageError("--prompt cannot be combined with --data settings or --reward")
    settings = model_settings(RewardArguments, overrides, reward=reward).reward
    if is_launcher(processes):
        launch(processes)
        return
    quiet_libraries()
    from meetlm.run.aligned import load
    from meetlm.run.folder import read_data_settings, read_pinned_levels
    from meetlm.run.score import accuracy, read_pairs, reward_accuracy, score_pairs

    join()
    run = Path(names[0])
    if prompt is not None:
        _score_replies(load(run), prompt, completions, attribute, as_json=as_json, reporter=reporter)
        return
    data = held_out_data(overrides) or read_data_settings(run)
    aligned = load(run)
    examples, report = read_pairs(data, aligned.format, read_pinned_levels(run))
    for line in report.lines():
        reporter.message(line)
    results = []
    for name in _attributes(aligned, attribute):
        pairs = score_pairs(aligned.policy, aligned.encoder, examples, name, reporter=reporter)
        accuracies = {"levels": accuracy(pairs), "levels, per token": accuracy(pairs, per_token=True)}
        if settings is not None:
            accuracies[f"reward model {reward}"] = reward_accuracy(settings, pairs, reporter=reporter)
        results.append((name, pairs, accuracies))
    if as_json:
        rows = [
            {
                **({"attribute": name} if name else {}),
                "num_pairs": len(pairs),
                "accuracy": {scorer: asdict(interval) for scorer, interval in accuracies.items()},
                "pairs": [pair.to_dict() for pair in pairs],
            }
            for name, pairs, accuracies in results
        ]
        print_json(rows[0] if len(rows) == 1 else rows)
        return
    for name, pairs, accuracies in results:
        of = f"{name}: how" if name else "How"
        click.echo(f"{of} often the chosen reply of {len(pairs)} pairs has the higher score:")
        for scorer, interval in accuracies.items():
            click.echo(f"  {scorer}: {interval}")


def _attributes(aligned: Aligned, attribute: str | None) -> list[str]:
    """Return the attributes to score by: ``attribute``, or all that are ordered."""
    from meetlm.run.levels import scales_of

    if attribute is not None:
        return [attribute]
    return list(scales_of(aligned.levels)) or [aligned.levels.attributes[0].name]


def _score_replies(
    aligned: Aligned,
    prompt: str,
    completions: tuple[str, ...],
    attribute: str | None,
    *,
    as_json: bool,
    reporter: ConsoleReporter,
) -> None:
    """Print the score of each reply by each attribute."""
    rows: list[dict[str, Any]] = []
    for name in _attributes(aligned, attribute):
        scores = aligned.score([prompt] * len(completions), completions, name, reporter=reporter)
        attribute_field = {"attribute": name} if name else {}
        rows += [
            {"completion": text, **attribute_field, **asdict(s)} for text, s in zip(completions, scores, strict=True)
        ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        name = f"{row['attribute']}  " if "attribute" in row else ""
        click.echo(f"{row['total']:9.3f}  {row['per_token']:8.4f} per token  {name}{row['completion']}")
