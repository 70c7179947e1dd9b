"""``meet data``: what is in the training and held-out data."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meetlm.cli.arguments import SettingsCommand, configure_for_data
from meetlm.cli.console import ConsoleReporter, print_json, quiet_libraries
from meetlm.cli.main import main
from meetlm.cli.options import PATH, Count, attribute_option, config_option, json_option
from meetlm.config.overrides import Override
from meetlm.data.settings import DataSettings

if TYPE_CHECKING:
    from meetlm.data.prompt_format import PromptFormat
    from meetlm.diagnostics.data_report import DataReport, Segment
    from meetlm.recipes.config import RunConfig

WORDS_SHOWN = 60
SUSPECTS_SHOWN = 20


@main.command(cls=SettingsCommand, names="[RECIPE]", short_help="Summarize preference data before training.")
@config_option
@click.option(
    "--show", type=Count(0), default=2, show_default=True, help="Number of pairs to show as the model reads them."
)
@click.option(
    "--suspects", metavar="RUN", type=PATH, help="List the training pairs that the levels of this run contradict most."
)
@attribute_option
@json_option
def data(
    names: list[str],
    overrides: list[Override],
    file: Path | None,
    show: int,
    suspects: Path | None,
    attribute: str | None,
    as_json: bool,
) -> None:
    """Report what preference data contain, before training.

    Accepts the arguments of `meet train`. Without a recipe, --data.path is enough: the first row decides the format,
    and the model is SmolLM2. Prints how many rows are used, why others are left out, their lengths in tokens, and the
    first pairs as the model reads them. Loads only the tokenizer of the model.

    \b
    Examples:
      meet data --data.path train.jsonl.gz --data.eval_file test.jsonl.gz
      meet data --data.path pairs.csv --model.name HuggingFaceTB/SmolLM2-360M-Instruct --data.max_length 1024
      meet data hh-meet-soft-prompt --data.subset harmless-base --show 5
      meet data --data.path pairs.csv --suspects runs/lora
    """  # noqa: D301  click's mark is a real backspace
    if attribute is not None and suspects is None:
        raise click.UsageError("--attribute requires --suspects")
    quiet_libraries(warnings=False)
    config, reason = configure_for_data(names, overrides, file)
    if suspects is not None:
        _print_suspects(suspects, config.data, attribute, as_json)
        return
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
        click.echo(f"data format: {config.data.source}, from the first row: {reason} (--data.source overrides)\n")
    for line in report.lines():
        click.echo(line)
    if show > 0:
        _show(report, prompt_format, config, show)


def _print_suspects(run: Path, settings: DataSettings, attribute: str | None, as_json: bool) -> None:
    """Print the training pairs whose rejected reply has the higher score by the levels of a run, worst first."""
    from meetlm.run.aligned import load
    from meetlm.run.folder import read_pinned_levels
    from meetlm.run.score import read_pairs, score_pairs
    from meetlm.run.score import suspects as find_suspects

    reporter = ConsoleReporter()
    aligned = load(run)
    examples, _ = read_pairs(settings, aligned.format, read_pinned_levels(run), train=True)
    pairs = score_pairs(aligned.policy, aligned.encoder, examples, attribute, reporter=reporter)
    contradicted = find_suspects(pairs)
    if as_json:
        print_json({"num_pairs": len(pairs), "suspects": [pair.to_dict() for pair in contradicted]})
        return
    click.echo(
        f"{len(contradicted)} of {len(pairs)} pairs: the rejected reply has the higher score by the levels of {run}"
    )
    for pair in contradicted[:SUSPECTS_SHOWN]:
        click.echo(f"\n{pair.example.origin}: chosen − rejected = {pair.margin:.2f} nats")
        chosen, rejected = pair.example.best_and_worst
        texts = {"prompt": pair.example.prompt.text(), "chosen": chosen.content, "rejected": rejected.content}
        for name, text in texts.items():
            click.echo(f"  {name:<9}{textwrap.shorten(text, 100, placeholder=' …')}")
    if len(contradicted) > SUSPECTS_SHOWN:
        click.echo(f"\nThe first {SUSPECTS_SHOWN} are above; --json prints all.")


def _show(report: DataReport, prompt_format: PromptFormat, config: RunConfig, number: int) -> None:
    """Print the first pairs, or the first replies at each level, as they are encoded under a fresh control."""
    from meetlm.controls.build import build_control
    from meetlm.diagnostics.data_report import segments, shorten
    from meetlm.policy.loading import embedding_rows, load_skeleton

    settings, levels = config.control, config.control_levels(report.fitted.levels)
    lm = load_skeleton(config.model.name)
    control = build_control(settings, levels, lm, prompt_format.tokenize, seed=0)
    vocabulary = embedding_rows(lm)
    encoder = control.encoder(prompt_format, vocabulary)
    is_plain = not sys.stdout.isatty()
    trained = "[[…]]" if is_plain else click.style("green", fg="green", bold=True)
    slot = "‹…›" if is_plain else click.style("‹…›", fg="cyan")
    slot_note = (
        f"{slot} is the control's slot" if any(control.slots) else "the control has no slot, it acts inside the model"
    )
    shown = "replies at each level" if report.levels else "pairs"
    click.echo(f"\nThe first {shown} as the model reads them, with a control of kind {settings.kind}:")
    click.echo(f"{trained} are the trained tokens, the others are the prompt; {slot_note}.")
    for example, completion in report.first_replies(number):
        if not config.uses_levels and completion.weights != report.fitted.levels.best:
            continue
        weights = completion.weights if config.uses_levels else levels.best
        encoded = encoder.encode(example.prompt, completion.reply, weights)
        names = [name for name, weight in zip(levels, weights, strict=True) if weight]
        reply_name = {"good": "chosen", "bad": "rejected"}[names[0]] if example.is_pair else "reply"
        parts = segments(encoded, control.slot(weights), settings.placement, prompt_format.tokenizer, vocabulary)
        counts = ", ".join(f"{part.tokens} {part.kind}" for part in parts)
        level = ", ".join(names)
        click.echo(f"\n── line {completion.origin.line}, {reply_name}: level {level} ({counts} tokens)")
        text = "".join(_marked(shorten(part, WORDS_SHOWN), level, is_plain) for part in parts)
        click.echo(textwrap.indent(text.strip("\n"), "   "))


def _marked(part: Segment, level: str, is_plain: bool) -> str:
    if part.kind == "slot":
        text = f"‹control {level} {part.text}›"
        return text if is_plain else click.style(text, fg="cyan")
    if part.kind == "trained":
        return f"[[{part.text}]]" if is_plain else click.style(part.text, fg="green", bold=True)
    return part.text
