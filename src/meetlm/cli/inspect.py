"""``meet data`` and ``meet doctor``: look before a run."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from meetlm.controls.base import ControlSettings
    from meetlm.data.prompt_format import PromptFormat
    from meetlm.diagnostics.check_run import Planned
    from meetlm.diagnostics.checks import Check
    from meetlm.diagnostics.data_report import DataReport, Segment
    from meetlm.diagnostics.doctor import Plan
    from meetlm.recipes.config import RunConfig

SEED = click.IntRange(0, 2**32 - 1)
WIDTH = 110
WORDS_SHOWN = 60
COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command(short_help="Say what is in a file of preference pairs.")
@click.argument("file")
@click.option("--source", help="Format of the rows: hh, summarize or pairs  [default: told by the first row].")
@click.option("--subset", help="Folder inside the data set, such as harmless-base.")
@click.option("--split", default="train", show_default=True, help="Which split of a folder or hub data set.")
@click.option("--test", type=click.Path(), help="Held-out rows  [default: the split test or validation, if any].")
@click.option("--model", default="smollm2", show_default=True, help="Whose tokenizer counts and shows tokens.")
@click.option(
    "--system",
    type=click.Choice(["auto", "none"]),
    default="auto",
    show_default=True,
    help="Conversations: keep the chat template's automatic system message, or leave it out.",
)
@click.option(
    "--max-length",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="Most tokens of prompt and longer reply.",
)
@click.option("--limit", type=click.IntRange(1), help="Look at the first so many rows only.")
@click.option(
    "--show",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="How many pairs to show as a model would read them.",
)
@click.option("--control", default="lora", show_default=True, help="Kind of control in them; soft-prompt has a slot.")
def data(
    file: str,
    source: str | None,
    subset: str | None,
    split: str,
    test: str | None,
    model: str,
    system: str,
    max_length: int,
    limit: int | None,
    show: int,
    control: str,
) -> None:
    """Say what is in FILE before anything is trained on it.

    Which rows would be used, and why the others would not; how long they are; what a model reads of the first
    ones. FILE is a file (.jsonl, .jsonl.gz, .json, .csv, .parquet), a folder in the hub's layout or a hub
    name. No model is loaded, only its tokenizer.

    \b
    meet data train.jsonl.gz --test test.jsonl.gz
    meet data pairs.csv --model HuggingFaceTB/SmolLM2-360M-Instruct --max-length 1024
    meet data Anthropic/hh-rlhf --subset harmless-base --control soft-prompt --show 5
    """  # noqa: D301  click's mark is a real backspace
    _quiet()
    from meetlm.controls.build import parse_control
    from meetlm.data.prompt_format import pin_format
    from meetlm.data.sources import SOURCES
    from meetlm.diagnostics.data_report import report_data
    from meetlm.diagnostics.locate import locate, with_test
    from meetlm.policy.loading import load_tokenizer

    settings, told_by = locate(file, source=source, subset=subset, split=split, test=test, max_length=max_length)
    if told_by is not None:
        click.echo(f"format {settings.source}, told by the first row: {told_by} (--source overrides)\n")
    control_settings = parse_control({"kind": control})
    found = with_test(settings)
    prompt_format = pin_format(load_tokenizer(model), system=system, stop=SOURCES[settings.source].stop)
    report = report_data(found or settings, prompt_format, with_eval=found is not None, limit=limit)
    for line in report.lines():
        click.echo(line)
    if show > 0:
        _show(report, prompt_format, model, control_settings, show)


def _show(report: DataReport, prompt_format: PromptFormat, model: str, settings: ControlSettings, number: int) -> None:
    """Print the first pairs as they are encoded under a fresh control."""
    from meetlm.controls.build import build_control
    from meetlm.data.encoding import Encoder
    from meetlm.data.formats import FORMATS
    from meetlm.diagnostics.data_report import segments, shorten
    from meetlm.policy.loading import embedding_rows, load_skeleton

    lm = load_skeleton(model)
    control = build_control(settings, lm, prompt_format.words, seed=0)
    vocabulary = embedding_rows(lm)
    encoder = Encoder(prompt_format, control.slots, settings.placement, vocabulary)
    shown = FORMATS["conditional" if len(control.levels) > 1 else "chosen"]
    plain = not sys.stdout.isatty()
    trained = "[[…]]" if plain else click.style("green", fg="green", bold=True)
    slot = "‹…›" if plain else click.style("‹…›", fg="cyan")
    where = f"{slot} is its slot" if any(control.slots) else "it has no slot but acts inside the model"
    click.echo(f"\nThe first pairs as they are trained on under the control {settings.kind}:")
    click.echo(f"{trained} are the trained tokens, the rest is prompt; {where}.")
    for example in report.kept[:number]:
        levels = ("good", "bad")[: len(control.levels)]
        for level, encoded in zip(levels, shown.item(encoder, example), strict=True):
            at = control.levels.index(level)
            side = "chosen" if level == "good" else "rejected"
            parts = segments(encoded, control.slots[at], settings.placement, prompt_format.tokenizer, vocabulary)
            counts = ", ".join(f"{part.tokens} {part.kind}" for part in parts)
            click.echo(f"\n── line {example.origin.line}, {side}: level {level} ({counts} tokens)")
            text = "".join(_marked(shorten(part, WORDS_SHOWN), level, plain) for part in parts)
            click.echo(textwrap.indent(text.strip("\n"), "   "))


def _marked(part: Segment, level: str, plain: bool) -> str:
    if part.kind == "slot":
        text = f"‹control {level} {part.text}›"
        return text if plain else click.style(text, fg="cyan")
    if part.kind == "trained":
        return f"[[{part.text}]]" if plain else click.style(part.text, fg="green", bold=True)
    return part.text


@click.command(
    context_settings={"ignore_unknown_options": True}, short_help="Find what would spoil a run before it is started."
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="DATA MODEL [KEY=VALUE]...")
@click.option("--recipe", default="hh-meet-lora", show_default=True, help="What would be run.")
@click.option("--preset", help="paper, or small for little data  [default: the recipe's].")
@click.option("--subset", help="Folder inside the data set, such as harmless-base.")
@click.option("--test", type=click.Path(), help="Held-out rows  [default: the split test or validation, if any].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def doctor(
    words: tuple[str, ...],
    recipe: str,
    preset: str | None,
    subset: str | None,
    test: str | None,
    as_json: bool,
) -> None:
    """Find what would spoil a run on DATA with MODEL before it is started.

    DATA is a file, a folder in the hub's layout or a hub name; MODEL a hub name, a folder or smollm2.

    Does anything but preference tell good replies from bad ones: length, stock replies, wording? Are there
    enough training steps, enough held-out pairs, none of them seen in training? Can the model take the data?
    Any setting of the recipe can be overridden. Leaves with status 1 if there is a problem, else with 0.

    \b
    meet doctor train.jsonl.gz smollm2 --test test.jsonl.gz --preset small
    meet doctor ../hh-rlhf EleutherAI/gpt-neo-1.3B --subset harmless-base
    meet doctor pairs.csv ./my-model --recipe hh-meet-soft-prompt data.max_length=1024
    """  # noqa: D301  click's mark is a real backspace
    from meetlm.config.yaml_files import split_words

    names, overrides = split_words(words)
    if len(names) != 2:
        raise click.UsageError(f"expected DATA and MODEL, got {' '.join(names) or 'neither'}")
    place, model = names
    _quiet()
    config = _config(recipe, preset, place, model, subset, test, overrides)
    from meetlm.controls.build import build_control
    from meetlm.data.prompt_format import pin_format
    from meetlm.diagnostics.doctor import diagnose
    from meetlm.diagnostics.locate import with_test
    from meetlm.policy.loading import load_lm

    found = with_test(config.data)
    lm, tokenizer = load_lm(config.model)
    prompt_format = pin_format(tokenizer, system=config.format.system)
    slots = build_control(config.control, lm, prompt_format.words, config.seed).slots
    other = "small" if config.preset == "paper" else "paper"
    configs = {
        config.preset: config,
        other: _config(recipe, other, place, model, subset, test, overrides),
    }
    result = diagnose(
        found or config.data,
        lm,
        prompt_format,
        lambda pairs: _plan(configs, config.preset, pairs),
        slot=max(map(len, slots)),
        with_eval=found is not None,
        say=lambda text: click.echo(f"… {text}", err=True),
    )
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    else:
        for check in result.checks:
            _print(check, max(len(check.name) for check in result.checks))
        if found is not None and found.eval_split != config.data.eval_split:
            click.echo(f"\nThe held-out rows are the split {found.eval_split}: data.eval_split={found.eval_split}")
        numbers = ", ".join(_number(result.count(name), name) for name in ("problem", "warning"))
        click.echo(f"\n{numbers} in {len(result.checks)} checks (recipe {config.recipe}, preset {config.preset})")
    if result.status == "problem":
        sys.exit(1)


def _config(
    recipe: str,
    preset: str | None,
    place: str,
    model: str,
    subset: str | None,
    test: str | None,
    overrides: Sequence[str],
) -> RunConfig:
    """Return the recipe's configuration over the data and the model asked for; the user's overrides win."""
    from meetlm.config.yaml_files import parse_overrides
    from meetlm.diagnostics.locate import locate
    from meetlm.recipes.config import load_config

    given = dict(parse_overrides(overrides))
    located, _ = locate(place, source=given.get("data.source"), subset=subset, test=test)
    words = [f"preset={preset}"] if preset else []
    for key in ("source", "path", "subset", "train_file", "eval_file"):
        words.append(f"data.{key}={json.dumps(getattr(located, key))}")
    words.append(f"model.name={json.dumps(model)}")
    return load_config(recipe, None, [*words, *overrides])


def _plan(configs: dict[str, RunConfig], preset: str, pairs: int) -> Plan:
    from meetlm.diagnostics.doctor import Plan
    from meetlm.training.stage import MIN_STEPS

    fewest = {name: min(stage.steps for stage in _stages(config, pairs)) for name, config in configs.items()}
    return Plan(preset, _stages(configs[preset], pairs), fewest, MIN_STEPS)


def _stages(config: RunConfig, pairs: int) -> tuple[Planned, ...]:
    """Return what each stage would do with so many pairs."""
    from meetlm.diagnostics.check_run import Planned

    an_epoch = -(-pairs // config.batch.pairs)
    planned = []
    for stage in config.stages:
        steps = stage.num_steps(pairs, config.batch.pairs)
        planned.append(Planned(stage.name, steps, steps / an_epoch))
    return tuple(planned)


def _print(check: Check, width: int) -> None:
    """Print a check: status, name and finding, wrapped, and its advice below."""
    indent = " " * (11 + width)
    text = textwrap.fill(check.finding, WIDTH, initial_indent=indent, subsequent_indent=indent).strip()
    status = click.style(f"{check.status:<9}", fg=COLOURS[check.status])
    click.echo(f"{status}{check.name:<{width}}  {text}")
    if check.advice:
        lines = textwrap.fill(f"→ {check.advice}", WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ")
        click.echo(lines)


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"


def _quiet() -> None:
    """Keep transformers' bars and advice out of the output; its errors stay."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
