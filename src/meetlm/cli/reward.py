"""``meet reward``: train a reward model, and score completions with one."""

from __future__ import annotations

import json
from pathlib import Path

import click

from meetlm.cli.console import ConsoleReporter, quiet_libraries
from meetlm.cli.options import SEED, finite

_INPUT = click.Choice(["auto", "pair", "chat", "text"])
_POSITIVE = click.FloatRange(0, min_open=True)
_DEVICE = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Device to run on."
)


@click.group(short_help="Train a reward model, or score completions with one.")
def reward() -> None:
    """Train a reward model from preference pairs, or score completions with one."""


@reward.command(short_help="Train a reward model from preference pairs.")
@click.option("--data", "place", required=True, help="Preference pairs: a file, a folder or a hub name.")
@click.option("--source", help="Format of the rows: hh, summarize or pairs  [default: from the first row].")
@click.option("--subset", help="Folder inside the data set, such as harmless-base.")
@click.option("--split", default="train", show_default=True, help="Split of a folder or hub data set.")
@click.option(
    "--test", type=click.Path(), help="File of held-out rows  [default: the test or validation split, if any]."
)
@click.option("--holdout", type=click.IntRange(1), help="Hold out the pairs of N training prompts instead.")
@click.option("--model", default="smollm2", show_default=True, help="Model to start from: a hub name or a folder.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write the reward model to.")
@click.option(
    "--input",
    "form",
    type=_INPUT,
    default="auto",
    show_default=True,
    help="Form of the input.",
)
@click.option(
    "--max-length",
    type=click.IntRange(8),
    default=256,
    show_default=True,
    help="Maximum tokens per side.",
)
@click.option("--limit", type=click.IntRange(1), help="Train on the first N usable pairs.")
@click.option("--limit-test", type=click.IntRange(1), help="Measure on the first N usable held-out pairs.")
@click.option("--epochs", type=_POSITIVE, default=1.0, show_default=True, callback=finite, help="Number of epochs.")
@click.option("--lr", type=_POSITIVE, callback=finite, help="Learning rate  [default: 5e-4; 2e-5 with --lora-rank 0].")
@click.option("--pairs", type=click.IntRange(1), default=8, show_default=True, help="Pairs per optimizer step.")
@click.option(
    "--lora-rank",
    type=click.IntRange(0),
    default=16,
    show_default=True,
    help="Rank of the LoRA that is trained and merged; 0 = train all weights.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the new head, LoRA and data order.")
@_DEVICE
@click.option("--quiet", is_flag=True, help="No progress bar.")
def train(
    place: str,
    source: str | None,
    subset: str | None,
    split: str,
    test: str | None,
    holdout: int | None,
    model: str,
    out: Path,
    form: str,
    max_length: int,
    limit: int | None,
    limit_test: int | None,
    epochs: float,
    lr: float | None,
    pairs: int,
    lora_rank: int,
    seed: int,
    device: str,
    quiet: bool,
) -> None:
    """Train a reward model from the preference pairs in --data with TRL, and measure it on held-out pairs.

    The result is a standard checkpoint: AutoModelForSequenceClassification.from_pretrained(OUT). Repeat the same
    command to continue an interrupted training.

    \b
    meet reward train --data ../hh-rlhf --subset harmless-base --out rm
    meet reward train --data pairs.jsonl --holdout 200 --model microsoft/deberta-v3-base --out rm
    """  # noqa: D301  click's mark is a real backspace
    quiet_libraries()
    from meetlm.diagnostics.locate import locate, with_test
    from meetlm.run.reward_training import RewardTraining, train_reward

    reporter = ConsoleReporter(quiet=quiet)
    located, told_by = locate(place, source=source, subset=subset, split=split, test=test, max_length=max_length)
    if told_by is not None:
        reporter.message(f"data format: {located.source}, from the first row: {told_by} (--source overrides)")
    found = with_test(located.model_copy(update={"holdout": holdout}))
    if found is None:
        raise click.UsageError("no held-out rows to measure on: pass --test FILE or --holdout NUMBER")
    settings = RewardTraining.model_validate(
        {
            "model": model,
            "data": {**found.model_dump(), "limit_train": limit, "limit_eval": limit_test},
            "input": form,
            "lora_rank": lora_rank,
            "lr": (5e-4 if lora_rank else 2e-5) if lr is None else lr,
            "epochs": epochs,
            "pairs": pairs,
            "seed": seed,
            "device": device,
        }
    )
    trained = train_reward(settings, out, reporter=reporter)
    click.echo(str(trained))
    click.echo(f"The reward model is in {trained.folder}")


@reward.command(short_help="Score the completions in files.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE...")
@click.option("--model", required=True, help="The reward model: a hub name or a folder.")
@click.option(
    "--input",
    "form",
    type=_INPUT,
    default="auto",
    show_default=True,
    help="Form of the input.",
)
@click.option("--max-length", type=click.IntRange(8), help="Maximum tokens per row  [default: the model's maximum].")
@click.option("--out", type=click.Path(path_type=Path), help="Write the reward of each row to this JSONL file.")
@_DEVICE
@click.option("--quiet", is_flag=True, help="No progress bar.")
def score(
    files: tuple[Path, ...], model: str, form: str, max_length: int | None, out: Path | None, device: str, quiet: bool
) -> None:
    """Score the completions in FILEs, rows with ``prompt`` and ``completion``, and print each file's mean reward.

    \b
    meet generate runs/lora --level good
    meet reward score runs/lora/completions/*.jsonl --model rm --out rewards.jsonl
    """  # noqa: D301  click's mark is a real backspace
    quiet_libraries()
    from meetlm.config.files import write_atomic
    from meetlm.data.messages import read_prompt
    from meetlm.data.rows import read_file
    from meetlm.evaluation.reward import RewardModel
    from meetlm.evaluation.settings import RewardSettings

    reporter = ConsoleReporter(quiet=quiet)
    rows = [(file, row) for file in files for row in read_file(file)]
    prompts = [read_prompt(row, "prompt") for _, row in rows]
    completions = [row.text("completion") for _, row in rows]
    reward_model = RewardModel.load(
        RewardSettings.model_validate({"model": model, "input": form, "max_length": max_length, "device": device})
    )
    reporter.message(f"input form of {model}: {reward_model.form} ({reward_model.form_reason})")
    tokenized = reward_model.tokenize(prompts, completions)
    rewards = reward_model.score(tokenized, reporter=reporter)
    for problem in reward_model.problems(tokenized, rewards, [str(row.origin) for _, row in rows]):
        reporter.warning(f"{problem.count} rows: {problem.what} ({problem.shown})")
    for file in dict.fromkeys(files):
        scored = [score for (path, _), score in zip(rows, rewards, strict=True) if path == file and score is not None]
        mean = f"mean reward {sum(scored) / len(scored):.4f}" if scored else "no reward"
        click.echo(f"{file}: {mean} of {len(scored)} completions")
    if out is not None:
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
