"""``meet data``: what is in the training and held-out data."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meetlm.cli.arguments import SettingsCommand, args_argument, configure_for_data
from meetlm.cli.console import quiet_libraries
from meetlm.cli.options import config_option, json_option, print_json

if TYPE_CHECKING:
    from meetlm.controls.base import ControlSettings
    from meetlm.data.prompt_format import PromptFormat
    from meetlm.diagnostics.data_report import DataReport, Segment

WORDS_SHOWN = 60


@click.command(cls=SettingsCommand, short_help="Report what is in preference data.")
@args_argument("[RECIPE] [SETTING]...")
@config_option
@click.option(
    "--show",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="Number of pairs to show as the model reads them.",
)
@json_option
def data(args: tuple[str, ...], file: Path | None, show: int, as_json: bool) -> None:
    """Report what is in preference data before anything is trained on them.

    Takes the arguments of `meet train`. Without a recipe, --data.path is enough: the format is that of the first row,
    the model SmolLM2. Prints which rows would be used, why others would not, how long they are, and the first pairs as
    the model reads them. Loads no model, only its tokenizer.

    \b
    meet data --data.path train.jsonl.gz --data.eval_file test.jsonl.gz
    meet data --data.path pairs.csv --model.name HuggingFaceTB/SmolLM2-360M-Instruct --data.max_length 1024
    meet data hh-meet-soft-prompt --data.subset harmless-base --show 5
    """  # noqa: D301  click's mark is a real backspace
    quiet_libraries(warnings=False)
    config, reason = configure_for_data(args, file)
    from meetlm.diagnostics.data_report import report_data
    from meetlm.diagnostics.locate import with_test
    from meetlm.policy.loading import load_tokenizer
    from meetlm.run.prepared import pinned_format

    settings = with_test(config.data)
    tokenizer = load_tokenizer(config.model.name)
    prompt_format = pinned_format(config, tokenizer)
    report = report_data(
        settings or config.data, prompt_format, with_eval=settings is not None, limit=config.data.limit_train
    )
    if as_json:
        print_json(report.to_dict())
        return
    if reason is not None:
        click.echo(f"format {config.data.source}, by the first row: {reason} (--data.source sets another format)\n")
    for line in report.lines():
        click.echo(line)
    if show > 0:
        _show(report, prompt_format, config.model.name, config.control, show)


def _show(report: DataReport, prompt_format: PromptFormat, model: str, settings: ControlSettings, number: int) -> None:
    """Print the first pairs as they are encoded under a fresh control."""
    from meetlm.controls.build import build_control
    from meetlm.data.encoding import Encoder
    from meetlm.data.formats import FORMATS
    from meetlm.diagnostics.data_report import segments, shorten
    from meetlm.policy.loading import embedding_rows, load_skeleton

    lm = load_skeleton(model)
    control = build_control(settings, lm, prompt_format.tokenize, seed=0)
    vocabulary = embedding_rows(lm)
    encoder = Encoder(prompt_format, control.slots, settings.placement, vocabulary)
    data_format = FORMATS["conditional" if len(control.levels) > 1 else "chosen"]
    is_plain = not sys.stdout.isatty()
    trained = "[[…]]" if is_plain else click.style("green", fg="green", bold=True)
    slot = "‹…›" if is_plain else click.style("‹…›", fg="cyan")
    where = (
        f"{slot} is the control's slot" if any(control.slots) else "the control has no slot, it acts inside the model"
    )
    click.echo(f"\nThe first pairs as the model reads them, with a control of kind {settings.kind}:")
    click.echo(f"{trained} are the trained tokens, the others are the prompt; {where}.")
    for example in report.kept[:number]:
        levels = ("good", "bad")[: len(control.levels)]
        for level, encoded in zip(levels, data_format.item(encoder, example), strict=True):
            slot_ids = control.slots[control.levels.index(level)]
            side = "chosen" if level == "good" else "rejected"
            parts = segments(encoded, slot_ids, settings.placement, prompt_format.tokenizer, vocabulary)
            counts = ", ".join(f"{part.tokens} {part.kind}" for part in parts)
            click.echo(f"\n── line {example.origin.line}, {side}: level {level} ({counts} tokens)")
            text = "".join(_marked(shorten(part, WORDS_SHOWN), level, is_plain) for part in parts)
            click.echo(textwrap.indent(text.strip("\n"), "   "))


def _marked(part: Segment, level: str, is_plain: bool) -> str:
    if part.kind == "slot":
        text = f"‹control {level} {part.text}›"
        return text if is_plain else click.style(text, fg="cyan")
    if part.kind == "trained":
        return f"[[{part.text}]]" if is_plain else click.style(part.text, fg="green", bold=True)
    return part.text
