"""``meet generate``: write completions of a run under a level."""

from __future__ import annotations

import json
from pathlib import Path

import click

from meetlm.cli.arguments import HeldOutData, SettingsCommand, args_argument, held_out_data, split
from meetlm.cli.console import ConsoleReporter, quiet_libraries
from meetlm.cli.options import HELD_OUT, level_option, out_option, quiet_option, sampling_options
from meetlm.cli.progress import bar


@click.command(cls=SettingsCommand, blocks=HELD_OUT, short_help="Write completions of a run under a level.")
@args_argument("RUN [SETTING]...")
@level_option
@sampling_options
@click.option("--limit", type=click.IntRange(1), help="Use the first prompts only, this many.")
@out_option(None, "File of the completions  [default: RUN/completions/LEVEL-….jsonl].")
@quiet_option
def generate(
    args: tuple[str, ...],
    level: str | None,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    batch_size: int,
    limit: int | None,
    out: Path | None,
    quiet: bool,
) -> None:
    """Write completions of RUN under a level, for the prompts in --data.path or the run's held-out prompts.

    A prompt that is plain text is formatted as in the training data: as the human's message for HH transcripts, as a
    user message for conversations. Rows without a prompt, repeated prompts and prompts of the run's own data that are
    too long are left out, with a message.

    \b
    meet generate runs/lora --level good
    meet generate runs/lora --level 1.5 --data.path Anthropic/hh-rlhf --data.subset harmless-base
    meet generate runs/lora --level good=1.5,bad=-0.5 --data.path prompts.jsonl --temperature 0.7 --top-p 0.95
    """  # noqa: D301  click's mark is a real backspace
    names, overrides = split(args, HeldOutData)
    if len(names) != 1:
        raise click.UsageError(f"expected the folder of one run, got {' '.join(names) or 'none'}")
    quiet_libraries()
    from meetlm.generation.sampling import Sampling
    from meetlm.run.completions import parse_level, write_completions

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    with bar("generate", quiet=quiet) as on_done:
        path, count = write_completions(
            Path(names[0]),
            held_out_data(overrides),
            parse_level(level),
            sampling,
            seed=seed,
            limit=limit,
            batch_size=batch_size,
            out=out,
            on_done=on_done,
            on_total=on_done.expect,
            say=ConsoleReporter().message,
        )
    for line in path.read_bytes().splitlines()[:2]:
        click.echo(f"{json.loads(line)['completion']!r}")
    click.echo(f"{count} completions in {path}, the first of them above")
