"""``meet reward``: train a reward model, and score completions with one."""

from __future__ import annotations

import json
from pathlib import Path

import click

from meetlm.cli.inspect import SEED
from meetlm.cli.numbers import finite

_INPUT = click.Choice(["auto", "pair", "chat", "text"])
_POSITIVE = click.FloatRange(0, min_open=True)
_DEVICE = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where it runs."
)


@click.group(short_help="Train a reward model, or score completions with one.")
def reward() -> None:
    """Train a reward model from preference pairs, or score completions with one."""


@reward.command(short_help="Train a reward model from preference pairs.")
@click.option("--data", "place", required=True, help="Preference pairs: a file, a folder or a hub name.")
@click.option("--source", help="Format of the rows: hh, summarize or pairs  [default: told by the first row].")
@click.option("--subset", help="Folder inside the data set, such as harmless-base.")
@click.option("--split", default="train", show_default=True, help="Which split of a folder or hub data set.")
@click.option("--test", type=click.Path(), help="Held-out rows  [default: the split test or validation, if any].")
@click.option("--holdout", type=click.IntRange(1), help="Hold out this many prompts of the training rows instead.")
@click.option("--model", default="smollm2", show_default=True, help="What to start from: a hub name or a folder.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The checkpoint's folder.")
@click.option("--input", "form", type=_INPUT, default="auto", show_default=True, help="How a reply is read.")
@click.option("--max-length", type=click.IntRange(8), default=256, show_default=True, help="Most tokens of a side.")
@click.option("--limit", type=click.IntRange(1), help="Train on the first so many usable pairs.")
@click.option("--limit-test", type=click.IntRange(1), help="Measure on the first so many usable held-out pairs.")
@click.option(
    "--epochs", type=_POSITIVE, default=1.0, show_default=True, callback=finite, help="Passes over the pairs."
)
@click.option("--lr", type=_POSITIVE, callback=finite, help="AdamW's rate  [default: 5e-4; 2e-5 with --lora-rank 0].")
@click.option("--pairs", type=click.IntRange(1), default=8, show_default=True, help="Pairs in an optimizer step.")
@click.option(
    "--lora-rank",
    type=click.IntRange(0),
    default=16,
    show_default=True,
    help="Merged at the end; 0: every weight.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the head, LoRA and order.")
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

    What comes out is a standard checkpoint: AutoModelForSequenceClassification.from_pretrained(OUT). An interrupted
    training goes on where it was when the same command is given again.

    \b
    meet reward train --data ../hh-rlhf --subset harmless-base --out rm
    meet reward train --data pairs.jsonl --holdout 200 --model microsoft/deberta-v3-base --out rm
    """  # noqa: D301  click's mark is a real backspace
    from meetlm.cli.progress import bar, quiet_libraries

    quiet_libraries()
    from meetlm.diagnostics.locate import locate, with_test
    from meetlm.evaluation.reward_loop import RewardTraining
    from meetlm.evaluation.reward_training import train_reward

    located, told_by = locate(place, source=source, subset=subset, split=split, test=test, max_length=max_length)
    if told_by is not None:
        click.echo(f"format {located.source}, told by the first row: {told_by} (--source overrides)")
    found = with_test(located.model_copy(update={"holdout": holdout}))
    if found is None:
        raise click.UsageError("no held-out rows to measure on: give --test FILE, or --holdout NUMBER of prompts")
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
    with bar("train", unit="step", quiet=quiet) as on_done:
        trained = train_reward(settings, out, say=click.echo, on_total=on_done.expect, on_done=on_done)
    click.echo(str(trained))
    click.echo(f"The reward model is {trained.folder}")


@reward.command(short_help="Score the completions in files.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE...")
@click.option("--model", required=True, help="The reward model: a hub name or a folder.")
@click.option("--input", "form", type=_INPUT, default="auto", show_default=True, help="How a reply is read.")
@click.option("--max-length", type=click.IntRange(8), help="Most tokens of a row  [default: the model's positions].")
@click.option("--out", type=click.Path(path_type=Path), help="Write each row's reward as JSONL.")
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
    from meetlm.cli.progress import bar, quiet_libraries

    quiet_libraries()
    from meetlm.config.files import write_atomic
    from meetlm.data.pairs import text_or_turns
    from meetlm.data.rows import read_file
    from meetlm.evaluation.reward import RewardModel, RewardSettings
    from meetlm.evaluation.reward_input import as_prompt

    rows = [(file, row) for file in files for row in read_file(file)]
    prompts = [as_prompt(text_or_turns(row, "prompt")) for _, row in rows]
    completions = [row.text("completion") for _, row in rows]
    scorer = RewardModel.load(
        RewardSettings.model_validate({"model": model, "input": form, "max_length": max_length, "device": device})
    )
    click.echo(f"{model} reads {scorer.form}: {scorer.told_by}")
    with bar("score", unit="row", quiet=quiet) as on_done:
        on_done.expect(len(rows))
        rewards = scorer.score(prompts, completions, on_done, names=[str(row.origin) for _, row in rows])
    for problem in scorer.problems:
        click.echo(f"{problem.count} rows: {problem.what} ({problem.shown})")
    for file in dict.fromkeys(files):
        own = [one for (place, _), one in zip(rows, rewards, strict=True) if place == file and one is not None]
        mean = f"mean reward {sum(own) / len(own):.4f}" if own else "no reward"
        click.echo(f"{file}: {mean} of {len(own)} completions")
    if out is not None:
        told = zip(rows, prompts, completions, rewards, strict=True)
        lines = [
            {"file": str(file), "line": row.origin.line, "prompt": prompt, "completion": completion, "reward": one}
            for (file, row), prompt, completion, one in told
        ]
        write_atomic(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        click.echo(f"Rewards in {out}")
