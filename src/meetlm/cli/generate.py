"""``meet generate`` and ``meet chat``: replies of a run at a level."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meetlm.cli.arguments import HeldOutData, SettingsCommand, held_out_data
from meetlm.cli.console import ConsoleReporter, print_json, quiet_libraries
from meetlm.cli.main import main
from meetlm.cli.options import (
    FILE,
    PATH,
    Count,
    against_option,
    attribute_option,
    batch_size_option,
    guidance_option,
    json_option,
    level_option,
    out_option,
    processes_option,
    quiet_option,
    sampling_options,
    seed_option,
)
from meetlm.cli.processes import is_launcher, join, launch
from meetlm.config.errors import ConfigError
from meetlm.config.overrides import Override
from meetlm.generation.settings import Sampling

if TYPE_CHECKING:
    from meetlm.run.aligned import Aligned
    from meetlm.run.levels import Guidance, Level

NUM_SHOWN = 2
CHAT_HELP = "/level LEVEL: change the level, as --level does; /reset: new conversation; /quit: leave"


@main.command(
    cls=SettingsCommand,
    names="RUN",
    missing="the folder of a run",
    settings=HeldOutData,
    short_help="Generate replies with a run, at a level.",
)
@click.option("--prompt", "prompts", multiple=True, help="Print a reply to this text; repeatable; - = standard input.")
@level_option
@guidance_option
@against_option
@sampling_options()
@seed_option("Seed of sampling.")
@batch_size_option
@click.option(
    "--best-of",
    type=Count(1),
    default=1,
    show_default=True,
    help="Sample N replies per prompt and use the one that the levels score highest (see `meet score`).",
)
@attribute_option
@click.option("--limit", type=Count(1), help="Reply to the first N prompts only.  [default: all]")
@out_option(None, "File of the completions.  [default: RUN/completions/LEVEL-….jsonl]", FILE)
@json_option
@processes_option
@quiet_option
def generate(
    names: list[str],
    overrides: list[Override],
    prompts: tuple[str, ...],
    level: str | None,
    guidance: float,
    against: str | None,
    sampling: Sampling,
    seed: int,
    batch_size: int,
    best_of: int,
    attribute: str | None,
    limit: int | None,
    out: Path | None,
    as_json: bool,
    processes: int,
    reporter: ConsoleReporter,
) -> None:
    """Reply to each held-out prompt of RUN, or to each prompt in --data.path, and write the replies to a file.

    With --prompt, print the replies instead. A prompt that is plain text is formatted as in the training data: as the
    human's message for HH transcripts, as a user message for conversations. Rows without a prompt, repeated prompts and
    prompts of the run's own data that are too long are left out, with a message.

    \b
    Examples:
      meet generate runs/lora --prompt "How do I boil rice?" --level 1.5
      meet generate runs/lora --level good
      meet generate runs/lora --level good --guidance 1.5 --against bad
      meet generate runs/lora --level good=1.5,bad=-0.5 --data.path prompts.jsonl --temperature 0.7 --top-p 0.95
    """  # noqa: D301  click's mark is a real backspace
    if prompts and (overrides or limit or out):
        raise click.UsageError("--prompt cannot be combined with --data settings, --limit or --out")
    if attribute is not None and best_of == 1:
        raise click.UsageError("--attribute requires --best-of")
    run = Path(names[0])
    if is_launcher(processes):
        launch(processes)
        return
    quiet_libraries()
    from meetlm.run.aligned import load
    from meetlm.run.levels import Guidance, parse_level

    join()
    guided = Guidance(guidance, parse_level(against))
    if prompts:
        texts = [sys.stdin.read().strip() if text == "-" else text for text in prompts]
        if not all(texts):
            raise click.UsageError("--prompt: the prompt is empty")
        completions = load(run).complete(
            texts,
            parse_level(level),
            sampling,
            guidance=guided,
            best_of=best_of,
            attribute=attribute,
            seed=seed,
            batch_size=batch_size,
            reporter=reporter,
        )
        rows = [completion.to_dict() for completion in completions]
        print_json(rows) if as_json else _print_replies(rows)
        return
    from meetlm.run.completions import write_completions

    path, count = write_completions(
        run,
        held_out_data(overrides),
        parse_level(level),
        sampling,
        guidance=guided,
        seed=seed,
        limit=limit,
        best_of=best_of,
        attribute=attribute,
        batch_size=batch_size,
        out=out,
        reporter=reporter,
    )
    if as_json:
        print_json({"file": str(path), "num_completions": count})
        return
    with path.open(encoding="utf-8") as lines:
        _print_replies([json.loads(line) for line in islice(lines, NUM_SHOWN)])
    click.echo(f"{count} completion{'' if count == 1 else 's'} in {path}" + (", the first above" if count else ""))


@main.command(short_help="Chat with a run and change its level.")
@click.argument("run", type=PATH)
@level_option
@guidance_option
@against_option
@sampling_options()
@seed_option("Seed of sampling.")
def chat(run: Path, level: str | None, guidance: float, against: str | None, sampling: Sampling, seed: int) -> None:
    """Chat with RUN. Every reply is generated at the current level.

    \b
    /level NAME                a level, such as good
    /level 0.7                 a number from 0 (worst level) to 1 (best level)
    /level 1.5                 a number outside this range extrapolates
    /level good=1.5,bad=-0.5   weights of levels
    /level tone=formal         a level of one attribute; the other attributes stay as they are
    /reset                     start a new conversation
    /quit                      leave, as does Ctrl-D

    A run that was trained on plain text sees only the latest message, not the conversation.

    \b
    Examples:
      meet chat runs/lora --level good --temperature 0.7
    """  # noqa: D301  click's mark is a real backspace
    quiet_libraries()
    from meetlm.run.aligned import load
    from meetlm.run.levels import Guidance, parse_level

    aligned = load(run)
    guided = Guidance(guidance, parse_level(against))
    _chat(aligned, parse_level(level), guided, partial(aligned.stream, sampling=sampling, guidance=guided, seed=seed))


def _chat(
    aligned: Aligned, first_level: Level | None, guidance: Guidance, stream: Callable[[Any, Level], Iterator[str]]
) -> None:
    from meetlm.run.levels import change_level, level_text, levels_text, parse_level, resolve_level

    reporter = ConsoleReporter()
    level = aligned.meet.resolve(first_level, guidance.strength, reporter=reporter)
    click.echo(f"levels: {levels_text(aligned.levels)}. {CHAT_HELP}", err=True)
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
                    changed = change_level(aligned.levels, level, resolve_level(aligned.levels, new_level))
                    level = aligned.meet.resolve(changed, guidance.strength, reporter=reporter)
            elif text.startswith("/"):
                click.echo(f"unknown command. {CHAT_HELP}", err=True)
            else:
                turn = {"role": "user", "content": text}
                prompt = [*messages, turn] if aligned.meet.conversational else text
                reply = _print_stream(stream(prompt, level))
                messages += [turn, {"role": "assistant", "content": reply}]
        except ConfigError as error:
            click.echo(f"error: {error}", err=True)


def _print_stream(stream: Iterator[str]) -> str:
    """Print a reply as it is generated, and return it."""
    pieces = []
    for piece in stream:
        click.echo(piece, nl=False)
        pieces.append(piece)
    click.echo()
    return "".join(pieces)


def _print_replies(rows: list[dict[str, Any]]) -> None:
    """Print prompts and their replies."""
    for row in rows:
        prompt = row["prompt"]
        text = prompt if isinstance(prompt, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
        click.echo(f"{click.style(f'> {text.strip()}', bold=True)}\n{row['completion']}\n")
