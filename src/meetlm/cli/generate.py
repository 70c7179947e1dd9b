"""``meet generate`` and ``meet chat``: completions of a run under a level."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meetlm.cli.arguments import HeldOutData, SettingsCommand, args_argument, held_out_data, split
from meetlm.cli.console import ConsoleReporter, quiet_libraries
from meetlm.cli.options import (
    HELD_OUT,
    batch_size_option,
    json_option,
    level_option,
    out_option,
    print_json,
    quiet_option,
    sampling_options,
)

if TYPE_CHECKING:
    from meetlm.generation.sampling import Sampling
    from meetlm.run.aligned import Aligned
    from meetlm.run.levels import Level

NUM_SHOWN = 2
CHAT_HELP = "/level NAME, NUMBER or good=1.5,bad=-0.5: change the level; /reset: new conversation; /quit: leave"


@click.command(cls=SettingsCommand, blocks=HELD_OUT, short_help="Write completions of a run under a level.")
@args_argument("RUN [SETTING]...")
@click.option("--prompt", "prompts", multiple=True, help="Print a reply to this text; repeatable; - = standard input.")
@level_option
@sampling_options
@batch_size_option
@click.option("--limit", type=click.IntRange(1), help="Number of prompts to use, the first ones  [default: all].")
@out_option(None, "File of the completions  [default: RUN/completions/LEVEL-….jsonl].")
@json_option
@quiet_option
def generate(
    args: tuple[str, ...],
    prompts: tuple[str, ...],
    level: str | None,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    batch_size: int,
    limit: int | None,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write completions of RUN under a level, for the prompts in --data.path or the run's held-out prompts.

    With --prompt, print the replies instead. A prompt that is plain text is formatted as in the training data: as the
    human's message for HH transcripts, as a user message for conversations. Rows without a prompt, repeated prompts and
    prompts of the run's own data that are too long are left out, with a message.

    \b
    meet generate runs/lora --prompt "How do I boil rice?" --level 1.5
    meet generate runs/lora --level good
    meet generate runs/lora --level good=1.5,bad=-0.5 --data.path prompts.jsonl --temperature 0.7 --top-p 0.95
    """  # noqa: D301  click's mark is a real backspace
    names, overrides = split(args, HeldOutData)
    if len(names) != 1:
        raise click.UsageError(f"expected the folder of one run, got {' '.join(names) or 'none'}")
    if prompts and (overrides or limit or out):
        raise click.UsageError("--prompt prints replies: it takes no --data settings, --limit or --out")
    quiet_libraries()
    from meetlm.generation.sampling import Sampling
    from meetlm.run.levels import parse_level

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    reporter = ConsoleReporter(quiet=quiet)
    if prompts:
        from meetlm.run.aligned import load

        texts = [sys.stdin.read().strip() if text == "-" else text for text in prompts]
        if not all(texts):
            raise click.UsageError("--prompt: the prompt is empty")
        completions = load(names[0]).complete(
            texts, parse_level(level), sampling, seed=seed, batch_size=batch_size, reporter=reporter
        )
        _print_replies([completion.to_dict() for completion in completions], as_json)
        return
    from meetlm.run.completions import write_completions

    path, count = write_completions(
        Path(names[0]),
        held_out_data(overrides),
        parse_level(level),
        sampling,
        seed=seed,
        limit=limit,
        batch_size=batch_size,
        out=out,
        reporter=reporter,
    )
    if as_json:
        print_json({"file": str(path), "num_completions": count})
        return
    with path.open(encoding="utf-8") as lines:
        _print_replies([json.loads(line) for _, line in zip(range(NUM_SHOWN), lines, strict=False)], as_json)
    click.echo(f"{count} completions in {path}" + (", the first of them above" if count else ""))


@click.command(cls=SettingsCommand, short_help="Chat with a run and change its level.")
@click.argument("run", type=click.Path(path_type=Path))
@level_option
@sampling_options
def chat(
    run: Path,
    level: str | None,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
) -> None:
    """Chat with RUN. Every reply is generated at the current level.

    \b
    /level NAME                a level, such as good
    /level 0.7                 a place between worst (0) and best (1); beyond extrapolates
    /level good=1.5,bad=-0.5   weights of levels
    /reset                     start a new conversation
    /quit                      leave; so does the end of standard input

    A run that was trained on plain text answers each message alone, without the conversation.

    \b
    meet chat runs/lora --level good --temperature 0.7
    """  # noqa: D301  click's mark is a real backspace
    quiet_libraries()
    from meetlm.generation.sampling import Sampling
    from meetlm.run.aligned import load
    from meetlm.run.levels import parse_level

    aligned = load(run)
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    start = parse_level(level)
    _chat(aligned, aligned.default_level if start is None else start, sampling, seed)


def _chat(aligned: Aligned, level: Level, sampling: Sampling, seed: int) -> None:
    from meetlm.config.errors import ConfigError
    from meetlm.run.levels import level_text, parse_level, resolve_level

    level = resolve_level(aligned.levels, level)
    click.echo(f"levels, worst first: {', '.join(aligned.levels)}. {CHAT_HELP}", err=True)
    messages: list[dict[str, str]] = []
    while True:
        click.echo(f"[{level_text(level)}] > ", nl=False, err=True)
        line = sys.stdin.readline()
        text = line.strip()
        if not line or text == "/quit":
            return
        if not text:
            continue
        try:
            if text == "/reset":
                messages = []
                click.echo("new conversation", err=True)
            elif text.startswith("/level"):
                new_level = parse_level(text.removeprefix("/level").strip())
                if new_level is None:
                    click.echo(f"level {level_text(level)}", err=True)
                else:
                    aligned.weights(new_level)  # refuses a mix where the control takes one level
                    level = resolve_level(aligned.levels, new_level)
            elif text.startswith("/"):
                click.echo(f"unknown command. {CHAT_HELP}", err=True)
            else:
                turn = {"role": "user", "content": text}
                prompt = [*messages, turn] if aligned.meet.conversational else text
                reply = _print_stream(aligned, prompt, level, sampling, seed)
                messages += [turn, {"role": "assistant", "content": reply}]
        except ConfigError as error:
            click.echo(f"error: {error}", err=True)


def _print_stream(aligned: Aligned, prompt: Any, level: Level, sampling: Sampling, seed: int) -> str:
    """Print a reply as it is generated, and return it."""
    pieces = []
    for piece in aligned.stream(prompt, level, sampling, seed=seed):
        click.echo(piece, nl=False)
        pieces.append(piece)
    click.echo()
    return "".join(pieces)


def _print_replies(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print prompts and their replies."""
    if as_json:
        print_json(rows)
        return
    for row in rows:
        prompt = row["prompt"]
        text = prompt if isinstance(prompt, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
        click.echo(f"{click.style(f'> {text.strip()}', bold=True)}\n{row['completion']}\n")
