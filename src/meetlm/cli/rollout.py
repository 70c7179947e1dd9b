"""``meet rollout`` and ``meet improve``: data from the model's own replies."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meetlm.cli.arguments import HeldOutData, SettingsCommand, held_out_data
from meetlm.cli.console import ConsoleReporter, print_json, quiet_libraries
from meetlm.cli.evaluators import RewardArguments, model_settings
from meetlm.cli.main import main
from meetlm.cli.options import (
    FILE,
    Count,
    attribute_option,
    batch_size_option,
    config_option,
    json_option,
    level_option,
    out_option,
    quiet_option,
    sampling_options,
    seed_option,
)
from meetlm.config.errors import ConfigError
from meetlm.config.overrides import Override
from meetlm.config.yaml_files import validate
from meetlm.generation.settings import Sampling

if TYPE_CHECKING:
    from meetlm.data.example import Prompt
    from meetlm.data.settings import DataSettings

DEFAULT_TEMPERATURE = 1.0
TRAINING_KEYS = ("data.max_length", "data.levels")
"""Data settings of `meet improve` for training; its other data settings locate the prompts."""

replies_option = click.option(
    "--replies", type=Count(1), default=4, show_default=True, help="Number of replies to sample per prompt."
)
reward_option = click.option("--reward", metavar="MODEL", help="Score by this reward model: hub name or folder.")
scorer_option = click.option("--scorer", metavar="MODULE:FUNCTION", help="Score by this Python function.")
temperature_option = click.option(
    "--temperature",
    type=click.FloatRange(0, min_open=True),
    metavar="NUMBER",
    default=DEFAULT_TEMPERATURE,
    show_default=True,
    help="Sampling temperature.",
)


class _RolloutArguments(RewardArguments, HeldOutData):
    """The settings of `meet rollout`."""


@main.command(
    cls=SettingsCommand,
    names="RUN_OR_MODEL",
    missing="the folder of a run, or a model (hub name, folder or smollm2)",
    settings=_RolloutArguments,
    short_help="Sample and score replies; write training data.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["scores", "pairs", "unpaired"]),
    default="scores",
    show_default=True,
    help="TRL's format of the rows: a score per reply; chosen and rejected; a label per reply.",
)
@replies_option
@level_option
@temperature_option
@sampling_options("max_new_tokens", "top_p")
@seed_option("Seed of sampling.")
@reward_option
@scorer_option
@attribute_option
@click.option("--limit", type=Count(1), help="Use the first N prompts only.  [default: all]")
@batch_size_option
@out_option("rollouts.jsonl", "File of the rows.", FILE)
@json_option
@quiet_option
def rollout(
    names: list[str],
    overrides: list[Override],
    form: str,
    replies: int,
    level: str | None,
    temperature: float,
    sampling: Sampling,
    seed: int,
    reward: str | None,
    scorer: str | None,
    attribute: str | None,
    limit: int | None,
    batch_size: int,
    out: Path,
    as_json: bool,
    reporter: ConsoleReporter,
) -> None:
    """Sample several replies to each prompt in --data.path, score them, and write them in one of TRL's formats.

    Without --reward or --scorer, a run's own levels score the replies, as `meet score` does. The same command continues
    an interrupted call.

    \b
    Examples:
      meet rollout runs/lora --data.path prompts.jsonl --replies 8 --out rollouts.jsonl
      meet rollout smollm2 --data.path prompts.jsonl --scorer my_scorers:brevity --format pairs
    """  # noqa: D301  click's mark is a real backspace
    data = held_out_data(overrides)
    if data is None:
        raise click.UsageError("pass the prompts: --data.path FILE, FOLDER or HUB_NAME")
    if attribute is not None and (reward or scorer):
        raise click.UsageError("--attribute is for scores by the levels of a run: leave out --reward and --scorer")
    settings = model_settings(RewardArguments, overrides, reward=reward).reward
    quiet_libraries()
    from meetlm.policy.loading import ModelSettings
    from meetlm.run.aligned import load, load_base
    from meetlm.run.completions import UNFINISHED
    from meetlm.run.folder import MEET
    from meetlm.run.levels import parse_level
    from meetlm.run.rollout import LevelScorer, make_scorer, sample_rollouts, write_rows

    prompts = _read_prompts(data, reporter)[:limit]
    model = Path(names[0])
    is_run = (model / MEET).is_file()
    rewards = out.with_name(f"{out.name}.rewards")
    score = make_scorer(settings, scorer, rewards)
    if score is None and not is_run:
        raise click.UsageError(f"{names[0]} is not a run, so it has no levels to score by: pass --reward or --scorer")
    if is_run:
        aligned = load(model)
    else:
        base = ModelSettings(name=names[0])
        aligned = load_base(base, data.source, conversational=prompts[0].is_chat, system="auto", reasoning=False)
    unfinished = out.with_name(out.name + UNFINISHED)
    rollouts = sample_rollouts(
        aligned,
        prompts,
        score or LevelScorer(aligned, attribute),
        _at_temperature(sampling, temperature),
        unfinished,
        replies=replies,
        level=parse_level(level),
        seed=seed,
        batch_size=batch_size,
        reporter=reporter,
    )
    num_rows = write_rows(rollouts, out, form, reporter)
    unfinished.unlink(missing_ok=True)
    shutil.rmtree(rewards, ignore_errors=True)
    if as_json:
        print_json({"file": str(out), "num_prompts": len(rollouts), "num_rows": num_rows})
    else:
        click.echo(f"{num_rows} rows from {len(rollouts)} prompts in {out}")


@main.command(
    cls=SettingsCommand,
    names="RECIPE",
    missing="the name of a recipe; `meet recipes` lists them",
    short_help="Train on the model's own scored replies, in rounds.",
)
@config_option
@click.option("--rounds", type=Count(1), default=2, show_default=True, help="Number of rounds.")
@replies_option
@click.option(
    "--holdout", type=Count(1), default=50, show_default=True, help="Number of held-out prompts to measure on."
)
@temperature_option
@sampling_options("max_new_tokens", "top_p")
@reward_option
@scorer_option
@batch_size_option
@out_option("runs/improve", "Folder of the results.")
@json_option
@quiet_option
def improve(
    names: list[str],
    overrides: list[Override],
    file: Path | None,
    rounds: int,
    replies: int,
    holdout: int,
    temperature: float,
    sampling: Sampling,
    reward: str | None,
    scorer: str | None,
    batch_size: int,
    out: Path,
    as_json: bool,
    reporter: ConsoleReporter,
) -> None:
    """In each round, sample replies to the prompts in --data.path, score them, and train RECIPE on them.

    Replies are scored by --reward or --scorer; one of them is required.

    A feedback-… recipe trains on all replies, at levels that --data.levels derives from the scores; other recipes train
    on the best and the worst reply to each prompt. A round samples its replies from the model of the previous round,
    and trains the base model on the replies of all rounds so far. Greedy replies to held-out prompts are scored before
    the first round and after each. The same command continues an interrupted call; with more --rounds it adds rounds.

    \b
    Examples:
      meet improve pairs-meet-lora --data.path prompts.jsonl --preset small --model.name smollm2 \\
          --scorer my_scorers:brevity --rounds 2
      meet improve feedback-meet-lora --data.levels.scheme within-prompt --data.levels.count 4 \\
          --data.path prompts.jsonl --preset small --model.name smollm2 --scorer my_scorers:brevity
    """  # noqa: D301  click's mark is a real backspace
    if (reward is None) == (scorer is None):
        raise click.UsageError("pass either --reward or --scorer to score the replies")
    located = [override for override in overrides if not override.key.replace("-", "_").startswith(TRAINING_KEYS)]
    data = held_out_data(located)
    if data is None:
        raise click.UsageError("pass the prompts: --data.path FILE, FOLDER or HUB_NAME")
    quiet_libraries()
    from meetlm.evaluation.settings import RewardSettings
    from meetlm.recipes.config import load_config
    from meetlm.run.improve import LEVELS_SOURCE
    from meetlm.run.improve import improve as run
    from meetlm.run.rollout import make_scorer

    training = [override for override in overrides if not override.key.startswith("data.") or override not in located]
    config = load_config(names[0], file, training)
    trains_levels = config.data.source == LEVELS_SOURCE
    if not trains_levels and any(override.key.startswith("data.levels") for override in training):
        raise click.UsageError(f"--data.levels requires a recipe for feedback; {names[0]} trains on pairs")
    prompts, held_out = _split(_read_prompts(data, reporter), holdout)
    score = make_scorer(RewardSettings(model=reward) if reward else None, scorer, out / "scores")
    assert score is not None
    results = run(
        config,
        prompts,
        held_out,
        score,
        out,
        sampling=_at_temperature(sampling, temperature),
        rounds=rounds,
        replies=replies,
        batch_size=batch_size,
        reporter=reporter,
    )
    if as_json:
        print_json([asdict(result) for result in results])
        return
    for result in results:
        rows = f"{result.num_rows} training {'replies' if trains_levels else 'pairs'}"
        name = "before training" if result.number == 0 else f"round {result.number}, {rows}"
        click.echo(f"{name}: mean score of held-out replies {result.score}")
    click.echo(f"The last run is in {out / f'round-{rounds}' / 'run'}")


def _read_prompts(data: DataSettings, reporter: ConsoleReporter) -> list[Prompt]:
    """Return the distinct prompts of some data."""
    from meetlm.run.completions import distinct_rows

    return [row.prompt for row in distinct_rows(data, reporter)]


def _at_temperature(sampling: Sampling, temperature: float) -> Sampling:
    """Return sampling at a temperature, which must be finite."""
    settings = {**sampling.model_dump(), "temperature": temperature}
    return validate(Sampling, settings, {("temperature",): "--temperature"}, "sampling")


def _split(prompts: Sequence[Prompt], holdout: int) -> tuple[list[Prompt], list[Prompt]]:
    """Return the prompts to train on, and ``holdout`` prompts to measure on: those with the smallest hashes."""
    if holdout >= len(prompts):
        raise ConfigError(f"--holdout {holdout}: none would be left to train on; number of prompts: {len(prompts)}")
    held_out = set(sorted((prompt.id for prompt in prompts), key=lambda id: sha256(id.encode()).digest())[:holdout])
    return (
        [prompt for prompt in prompts if prompt.id not in held_out],
        [prompt for prompt in prompts if prompt.id in held_out],
    )
