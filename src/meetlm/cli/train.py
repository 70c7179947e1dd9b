"""``meet train`` and ``meet config``."""

from __future__ import annotations

from pathlib import Path

import click

from meetlm.cli.arguments import SettingsCommand, configure
from meetlm.cli.console import ConsoleReporter, quiet_libraries
from meetlm.cli.main import main
from meetlm.cli.options import config_option, out_option, processes_option, quiet_option
from meetlm.cli.processes import is_launcher, launch
from meetlm.config.overrides import Override
from meetlm.config.world import World


@main.command(cls=SettingsCommand, names="[RECIPE]", short_help="Train a recipe.")
@config_option
@out_option(None, "Folder of the run.  [default: runs/RECIPE]")
@processes_option
@quiet_option
def train(
    names: list[str],
    overrides: list[Override],
    file: Path | None,
    out: Path | None,
    processes: int,
    reporter: ConsoleReporter,
) -> None:
    """Train RECIPE or the configuration in --config; each SETTING overrides one of its values.

    \b
    Examples:
      meet train hh-meet-lora --out runs/lora
      meet train pairs-meet-lora --data.path pairs.jsonl --model.name smollm2 --preset small
      meet train --config mine.yaml --stages.step1.lr 3e-3
      meet train hh-meet-lora --processes 4
      torchrun --nproc-per-node 4 -m meetlm train hh-meet-lora

    A SETTING is --KEY VALUE, --KEY=VALUE or KEY=VALUE. The most common:

    \b
    --preset small            learning rates, epochs and batch sizes for small data sets [default: paper]
    --model.name smollm2      a hub name, a folder, or smollm2
    --data.path ../hh-rlhf    a file, a folder laid out like a data set on the hub, or a hub name
    --data.limit_train 2000   train on the first 2000 usable pairs
    --batch.pairs 16          pairs per optimizer step
    --stages.step1.lr 3e-3    learning rate of a stage
    --seed 1                  seed of initial controls, data order and dropout

    The same command continues an interrupted run.
    """  # noqa: D301  click's mark is a real backspace
    config = configure(names, overrides, file)
    if is_launcher(processes):
        config.batch.of_process(World(0, processes))
        launch(processes, out or Path("runs") / config.recipe)
        return
    quiet_libraries()
    from meetlm.run.train import train as train_run

    click.echo(train_run(config, out=out, reporter=reporter))


@main.command("config", cls=SettingsCommand, names="[RECIPE]", short_help="Print all settings of a recipe.")
@config_option
def show_config(names: list[str], overrides: list[Override], file: Path | None) -> None:
    """Print the configuration that `meet train` would run with the same arguments, as YAML with explanations.

    \b
    Examples:
      meet config hh-meet-lora
      meet config hh-meet-lora --preset small --control.rank 8 > mine.yaml
      meet train --config mine.yaml
    """  # noqa: D301  click's mark is a real backspace
    config = configure(names, overrides, file)
    from meetlm.config.describe import describe

    click.echo(describe(config), nl=False)
