"""``meet export``: a run in the formats of other tools."""

from __future__ import annotations

from pathlib import Path

import click

from meetlm.cli.arguments import HeldOutData, SettingsCommand, held_out_data
from meetlm.cli.console import ConsoleReporter, print_json, quiet_libraries
from meetlm.cli.main import main
from meetlm.cli.options import Count, json_option, out_option, quiet_option, settings_options
from meetlm.config.overrides import Override
from meetlm.export.settings import ExportSettings


@main.command(
    cls=SettingsCommand,
    names="RUN",
    missing="the folder of a run",
    settings=HeldOutData,
    short_help="Export levels of a run to other tools.",
)
@click.option(
    "--to",
    required=True,
    metavar="FORMAT",
    help="peft: a PEFT folder per level; merged: a plain checkpoint with one level or mix in it; gguf: a model and an "
    "adapter per level for llama.cpp; ollama: a model with one level or mix and a Modelfile; vllm: PEFT folders and "
    "the command that serves them.",
)
@click.option(
    "--level",
    "levels",
    multiple=True,
    help="Level or mix to export, as in `meet generate`; repeatable.  [default: all levels; the default level for "
    "formats that hold one]",
)
@out_option(
    None, "Folder of the export.  [default: RUN/export/FORMAT, or FORMAT-LEVEL for formats that hold one level]"
)
@click.option(
    "--base",
    metavar="MODEL",
    help="Hub name or folder of the base model that the export names.  [default: its hub name if training has not "
    "changed it, else the run's model]",
)
@settings_options(ExportSettings, "settings")
@click.option("--no-verify", is_flag=True, help="Do not compare the export with the run.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    metavar="NATS",
    help="Largest difference of a log-prob from the run's.  [default: depends on the format]",
)
@click.option(
    "--limit", type=Count(1), default=4, show_default=True, help="Compare on the first N held-out prompts only."
)
@click.option("--push-to-hub", "repository", metavar="NAME", help="Upload the export to this repository of the hub.")
@click.option("--private", "is_private", is_flag=True, help="Make a new repository of --push-to-hub private.")
@json_option
@quiet_option
def export(
    names: list[str],
    overrides: list[Override],
    to: str,
    levels: tuple[str, ...],
    out: Path | None,
    base: str | None,
    settings: ExportSettings,
    no_verify: bool,
    tolerance: float | None,
    limit: int,
    repository: str | None,
    is_private: bool,
    as_json: bool,
    reporter: ConsoleReporter,
) -> None:
    """Export levels or mixes of RUN to another tool, load the result with that tool and compare it with the run.

    The comparison uses token ids and log-probs of replies to held-out prompts. It prints the largest difference and
    fails above a tolerance.

    \b
    Examples:
      meet export runs/lora --to peft
      meet export runs/lora --to peft --level good=1.5,bad=-0.5 --base HuggingFaceTB/SmolLM2-135M-Instruct
      meet export runs/lora --to merged --level 0.7 --out my-model
      meet export runs/lora --to gguf --converter llama.cpp
    """  # noqa: D301  click's mark is a real backspace
    if is_private and repository is None:
        raise click.UsageError("--private requires --push-to-hub")
    quiet_libraries()
    from meetlm.run.export import export_run
    from meetlm.run.levels import parse_level

    result = export_run(
        names[0],
        to,
        [level for text in levels if (level := parse_level(text)) is not None],
        out=out,
        base=base,
        settings=settings,
        verify=not no_verify,
        tolerance=tolerance,
        data=held_out_data(overrides),
        limit=limit,
        push_to_hub=repository,
        is_private=is_private,
        reporter=reporter,
    )
    if as_json:
        parity = None if result.parity is None else {"largest": result.parity.largest, "tool": result.parity.tool}
        print_json({"folder": str(result.folder), "files": result.files, "parity": parity})
        return
    click.echo(f"{len(result.files)} files in {result.folder}\n\n{result.usage}")
