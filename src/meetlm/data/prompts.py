"""Held-out prompts, for `meet generate` and `meet evaluate`.

A row is a pair in the format of its source, or a prompt alone: text, or messages that end with a user message or with
the beginning of the reply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from meetlm.config.errors import DataError, locate_errors
from meetlm.data.example import Example, Origin, Prompt, Turn
from meetlm.data.messages import read_prompt
from meetlm.data.pairs import CHAT_COLUMNS, refuse_unused, with_system
from meetlm.data.rows import Row
from meetlm.data.settings import DataSettings
from meetlm.data.sources import Source, read_rows, to_chat
from meetlm.data.splits import read_splits

FIELDS = ("prompt", *CHAT_COLUMNS)
"""Columns with the prompt, in rows without replies; the first column that is not empty is used."""


@dataclass(frozen=True, slots=True)
class HeldOutPrompt:
    """A held-out prompt.

    Attributes:
        prompt: The prompt.
        chosen: The preferred reply; ``None`` if the row has only a prompt.
        origin: File and line of the row.
    """

    prompt: Prompt
    chosen: Turn | None
    origin: Origin


@dataclass(frozen=True, slots=True)
class HeldOutRows:
    """The held-out rows of a data set.

    Attributes:
        prompts: One prompt per row, in order; prompts may repeat.
        without_prompt: Rows without a prompt; they are left out.
        other_split_rows: Rows of another split, by their own field; they are left out.
    """

    prompts: list[HeldOutPrompt]
    without_prompt: list[Origin]
    other_split_rows: list[Origin]


def read_prompts(settings: DataSettings) -> HeldOutRows:
    """Return the prompts of the evaluation split; training rows are read only for ``settings.holdout``.

    If the settings name no training data, every row of ``settings.eval_file`` is used, whatever its split.

    Raises:
        ConfigError: ``settings.source`` is not a known format.
        DataError: The data cannot be found or read, a row is neither a pair nor a prompt, or no row has a prompt.
    """
    columns: set[str] = set()

    def parse(row: Row, source: Source) -> HeldOutPrompt:
        columns.update(row.fields)
        return _read(row, source, settings.as_chat)

    if settings.holdout is None:
        every_split = settings.path is None and settings.train_file is None  # no training data: all rows are held out
        result = read_rows(settings, "eval", parse, every_split=every_split)
        rows, other_split_rows = result.rows, result.other_split_rows
    else:
        train, held_out = read_splits(settings)
        rows, other_split_rows = [_of_pair(example) for example in held_out.rows], train.other_split_rows
    prompts = [row for row in rows if not row.prompt.is_blank]
    if not prompts:
        raise DataError(
            f"is missing or blank in every row; columns: {', '.join(sorted(columns))}",
            file=rows[0].origin.file,
            field="prompt",
            expected=f"text, messages that end with a user message, or pairs of the format {settings.source}; "
            "--data.columns prompt=COLUMN reads the prompt from another column",
        )
    return HeldOutRows(prompts, [row.origin for row in rows if row.prompt.is_blank], other_split_rows)


def distinct(prompts: Sequence[HeldOutPrompt]) -> tuple[dict[str, HeldOutPrompt], list[HeldOutPrompt]]:
    """Return one row per distinct prompt, by prompt id, and the rows that repeat a prompt.

    The row of a prompt is its first row, with the first chosen reply among the rows of that prompt.
    """
    firsts: dict[str, HeldOutPrompt] = {}
    repeated: list[HeldOutPrompt] = []
    for row in prompts:
        first = firsts.setdefault(row.prompt.id, row)
        if first is not row:
            repeated.append(row)
            if first.chosen is None:
                firsts[row.prompt.id] = replace(first, chosen=row.chosen)
    return firsts, repeated


def within(
    prompts: Sequence[HeldOutPrompt], length: Callable[[Prompt], int], max_length: int, limit: int | None = None
) -> tuple[list[HeldOutPrompt], list[HeldOutPrompt]]:
    """Return the rows with prompts of at most ``max_length`` tokens, and the rows with longer prompts.

    Args:
        prompts: The rows.
        length: Counts the tokens of a prompt, without the control.
        max_length: Maximum number of tokens of a prompt.
        limit: Stop after this many rows; later rows are in neither list.

    Raises:
        DataError: No prompt is left.
    """
    short: list[HeldOutPrompt] = []
    longer: list[HeldOutPrompt] = []
    for row in prompts:
        if len(short) == limit:
            break
        with locate_errors(row.origin.file, row.origin.line):
            tokens = length(row.prompt)
        (short if tokens <= max_length else longer).append(row)
    if not short:
        problem = f"none of the {len(prompts)} prompts has at most {max_length} tokens"
        raise DataError(problem, file=prompts[0].origin.file, field="data.max_length")
    return short, longer


def _read(row: Row, source: Source, as_chat: bool) -> HeldOutPrompt:
    """Return the prompt of a row; blank if the row has no prompt."""
    if any(row.fields.get(name) is not None for name in ("chosen", *source.fields)):
        example = source.parse(row)
        return _of_pair(to_chat(example, source) if as_chat else example)
    field = next((name for name in FIELDS if row.fields.get(name)), None)
    if field is None:
        return HeldOutPrompt(Prompt(""), None, row.origin)
    prompt = read_prompt(row, field)
    if prompt.is_chat:
        prompt = Prompt(with_system(row, prompt.turns))
    refuse_unused(row, prompt)
    if as_chat:
        prompt = Prompt(source.to_turns(prompt))
    role = prompt.turns[-1].role
    if role != "user" and (field != "prompt" or role != "assistant"):  # a reply continues an assistant turn in 'prompt'
        expected = "a user turn last"
        raise row.error(f"ends with a turn of {role!r}", field=field, expected=expected)
    return HeldOutPrompt(prompt, None, row.origin)


def _of_pair(example: Example) -> HeldOutPrompt:
    chosen = None if "human_turn" in example.remarks else example.preferred
    return HeldOutPrompt(example.prompt, chosen, example.origin)
