"""``meet reward``: train a reward model, and score completions with one."""

from __future__ import annotations

import json
from pathlib import Path

import click

from meetlm.cli.arguments import SettingsCommand, guess_train_source
from meetlm.cli.console import ConsoleReporter, quiet_libraries
from meetlm.cli.main import main
from meetlm.cli.options import FILE, FOLDER, processes_option, quiet_option
from meetlm.cli.processes import is_launcher, join, launch
from meetlm.config.overrides import Override, parse_settings
from meetlm.config.settings import Settings
from meetlm.config.yaml_files import validate
from meetlm.evaluation.settings import RewardSettings, RewardTraining


class _ScoreSettings(Settings):
    """The settings of ``meet reward score``."""

    reward: RewardSettings


@main.group(short_help="Train a reward model, or score completions with one.")
def reward() -> None:
    """Train a reward model from preference pairs, or score completions with one."""


@reward.command(cls=SettingsCommand, settings=RewardTraining, short_help="Train a reward model from preference pairs.")
@click.option("--out", type=FOLDER, required=True, help="Folder to write the reward model to.")
@quiet_option
def train(names: list[str], overrides: list[Override], out: Path, reporter: ConsoleReporter) -> None:
    """Train a reward model with TRL from the preference pairs in --data.path, and print its accuracy on held-out pairs.

    The result is a standard checkpoint: AutoModelForSequenceClassification.from_pretrained(OUT). The same command
    continues an interrupted training.

    \b
    Examples:
      meet reward train --data.path ../hh-rlhf --data.subset harmless-base --out rm
      meet reward train --data.path pairs.jsonl --data.holdout 200 --model microsoft/deberta-v3-base --out rm
    """  # noqa: D301  click's mark is a real backspace
    if not any(override.key in ("data.path", "data.train_file") for override in overrides):
        raise click.UsageError("pass the preference pairs: --data.path FILE, FOLDER or HUB_NAME")
    quiet_libraries()
    from meetlm.diagnostics.locate import with_test
    from meetlm.run.reward_training import train_reward

    source, reason = guess_train_source(overrides)
    if reason is not None:
        reporter.message(f"data format: {source}, from the first row: {reason} (--data.source overrides)")
    raw, locations = parse_settings(RewardTraining, overrides, {"data": {"source": source}})
    settings = validate(RewardTraining, raw, locations, "reward train")
    data = with_test(settings.data)
    if data is None:
        raise click.UsageError("no held-out rows to measure on: pass --data.eval_file FILE or --data.holdout NUMBER")
    trained = train_reward(settings.model_copy(update={"data": data}), out, reporter=reporter)
    click.echo(str(trained))
    click.echo(f"The reward model is in {trained.folder}")


@reward.command(
    cls=SettingsCommand,
    names="FILE...",
    missing="files of completions",
    settings=_ScoreSettings,
    short_help="Score the completions in files.",
)
@click.option("--reward", "model", metavar="MODEL", required=True, help="Reward model: a hub name or a folder.")
@click.option("--out", type=FILE, help="Write the reward of each row to this JSONL file.")
@processes_option
@quiet_option
def score(
    names: list[str],
    overrides: list[Override],
    model: str,
    out: Path | None,
    processes: int,
    reporter: ConsoleReporter,
) -> None:
    """Score the completions in FILEs (rows with prompt and completion), and print the mean reward of each file.

    \b
    Examples:
      meet generate runs/lora --level good
      meet reward score runs/lora/completions/*.jsonl --reward rm --out rewards.jsonl
    """  # noqa: D301  click's mark is a real backspace
    raw, locations = parse_settings(_ScoreSettings, overrides, {"reward": {"model": model}})
    settings = validate(_ScoreSettings, raw, locations, "reward score").reward
    if is_launcher(processes):
        launch(processes)
        return
    quiet_libraries()
    from meetlm.config.files import write_atomic
    from meetlm.data.messages import read_prompt
    from meetlm.data.rows import read_file
    from meetlm.evaluation.reward import RewardModel

    files = list(dict.fromkeys(map(Path, names)))
    rows = [(file, row) for file in files for row in read_file(file)]
    prompts = [read_prompt(row, "prompt") for _, row in rows]
    completions = [row.text("completion") for _, row in rows]
    world = join(settings.device)
    reward_model = RewardModel.load(settings)
    reporter.message(f"input form of {model}: {reward_model.form} ({reward_model.form_reason})")
    tokenized = reward_model.tokenize(prompts, completions)
    rewards = reward_model.score(tokenized, reporter=reporter)
    for problem in reward_model.problems(tokenized, rewards, [str(row.origin) for _, row in rows]):
        reporter.warning(str(problem))
    for file in files:
        scored = [score for (path, _), score in zip(rows, rewards, strict=True) if path == file and score is not None]
        mean = f"mean reward {sum(scored) / len(scored):.4f}" if scored else "no reward"
        click.echo(f"{file}: {mean} of {len(scored)} completions")
    if out is not None and world.is_main:
        lines = [
            {
                "file": str(file),
                "line": row.origin.line,
                "prompt": prompt.to_json(),
                "completion": completion,
                "reward": reward,
            }
            for (file, row), prompt, completion, reward in zip(rows, prompts, completions, rewards, strict=True)
        ]
        write_atomic(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        reporter.message(f"rewards are in {out}")
