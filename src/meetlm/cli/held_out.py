"""The options of which prompts, which ``meet generate`` and ``meet evaluate`` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from meetlm.data.settings import DataSettings

NAMES = ("data", "source", "subset", "split")


def held_out(whose: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what adds the options to a command, for :func:`data_given`.

    Args:
        whose: The prompts without ``--data``.
    """
    options = (
        click.option(
            "--data",
            help="Held-out pairs, or prompts alone in 'prompt' or 'messages': a file, folder or hub name  "
            f"[default: {whose}].",
        ),
        click.option("--source", help="Format of its rows: hh, summarize or pairs  [default: told by the first row]."),
        click.option("--subset", help="Folder inside the data set, such as harmless-base."),
        click.option("--split", help="Split of a folder or hub data set  [default: test]."),
    )

    def decorated(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorated


def data_given(given: Mapping[str, Any]) -> DataSettings | None:
    """Return where the prompts are, as the options say; ``None`` where none does. None of them is given in vain.

    Raises:
        ConfigError: The source is unknown.
        DataError: Nothing is there, or the first row cannot be read.
    """
    from meetlm.diagnostics.locate import locate

    place, file = given["data"], given["data"] is not None and Path(given["data"]).expanduser().is_file()
    for name in NAMES[1:]:
        if given[name] is not None and (place is None or (file and name != "source")):
            what = "no --data that it is of" if place is None else f"--data is a file ({place}), which has none"
            raise click.UsageError(f"--{name} is given, and {what}")
    if place is None:
        return None
    split = given["split"] or "test"
    settings, _ = locate(
        place,
        source=given["source"],
        subset=given["subset"],
        split="train" if file else split,
        test=place if file else None,
    )
    return settings.model_copy(update={"train_file": None} if file else {"eval_split": split})


def words_given(given: Mapping[str, Any]) -> list[str]:
    """Return the options as another command takes them."""
    return [word for name in NAMES if given[name] is not None for word in (f"--{name}", given[name])]
