"""``meet verify-resume``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from meetlm.cli.arguments import SettingsCommand, configure
from meetlm.cli.console import ConsoleReporter, print_table, quiet_libraries
from meetlm.cli.main import main
from meetlm.cli.options import Count, config_option, out_option, quiet_option
from meetlm.config.files import refuse_foreign_files
from meetlm.config.overrides import Override


@main.command(cls=SettingsCommand, names="[RECIPE]", short_help="Prove that a killed run continues exactly.")
@config_option
@click.option("--steps", type=Count(4), default=6, show_default=True, help="Optimizer steps per stage.")
@out_option(None, "Folder to keep the two runs in.  [default: a temporary folder]")
@quiet_option
def verify_resume(
    names: list[str],
    overrides: list[Override],
    file: Path | None,
    steps: int,
    out: Path | None,
    reporter: ConsoleReporter,
) -> None:
    """Train a few steps of what `meet train` would run with the same arguments, once without interruption and once
    killed with SIGKILL in every stage and continued, and compare all that the two runs leave on disk, bit for bit.

    \b
    Examples:
      meet verify-resume pairs-meet-lora --data.path pairs.jsonl --model.name smollm2
      meet verify-resume --config mine.yaml --steps 10

    The exit code is 1 where they differ. A checkpoint is written every second step; times are not compared.
    """  # noqa: D205, D301  click's mark is a real backspace
    config = configure(names, overrides, file)
    quiet_libraries()
    from meetlm.run.verify_resume import verify_resume as verify

    if out is not None:
        refuse_foreign_files(out)
    with tempfile.TemporaryDirectory(prefix="meet-verify-") as temporary:
        comparisons, kills = verify(config, out or Path(temporary), steps=steps, reporter=reporter)
    rows = [
        [each.part, str(each.num_files), *(value[:16] for value in each.hashes), "no" if each.differing else "yes"]
        for each in comparisons
    ]
    print_table(["", "files", "uninterrupted", "killed and continued", "equal"], rows)
    differing = [name for each in comparisons for name in each.differing]
    for name in differing:
        click.echo(f"differs: {name}")
    click.echo(
        f"{len(differing)} files differ: a killed run of this configuration does not continue exactly"
        if differing
        else f"equal bit for bit after {len(kills)} kills ({'; '.join(kills)})"
    )
    sys.exit(1 if differing else 0)
