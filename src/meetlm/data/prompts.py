"""Held-out prompts: what completions are written for, and what they are compared on, read in this one place.

A row is a pair in the format of its source, or a prompt alone: text, or messages that end with the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from meetlm.config.errors import DataError, locate_errors
from meetlm.data.example import Origin, PreferenceExample, Prompt, Turn
from meetlm.data.messages import read_prompt
from meetlm.data.pairs import CHAT_COLUMNS, refuse_unused, with_system
from meetlm.data.rows import Row
from meetlm.data.settings import DataSettings
from meetlm.data.sources import Source, read_rows, to_chat
from meetlm.data.splits import read_splits

FIELDS = ("prompt", *CHAT_COLUMNS)
"""Where a row that is no pair holds its prompt; the first one that is there counts."""


@dataclass(frozen=True, slots=True)
class HeldOutPrompt:
    """A held-out row, as far as completions need it.

    Attributes:
        chosen: The preferred reply; ``None`` where the row holds a prompt alone.
        origin: Where it was read.
    """

    prompt: Prompt
    chosen: Turn | None
    origin: Origin


@dataclass(frozen=True, slots=True)
class HeldOutRows:
    """The held-out rows of some data.

    Attributes:
        prompts: One a row that has a prompt, in order; several rows may have the same one.
        without: Rows whose prompt is missing or blank: these are left out.
        other_split_rows: Rows that name another split than the one read: these are left out, too.
    """

    prompts: list[HeldOutPrompt]
    without: list[Origin]
    other_split_rows: list[Origin]


def read_prompts(settings: DataSettings) -> HeldOutRows:
    """Return the prompts of the rows to evaluate on, without reading the training rows where they are not needed.

    Every row of ``settings.eval_file`` counts where no training data are named beside it, whatever split it states.

    Raises:
        ConfigError: ``settings.source`` is not a known format.
        DataError: The data cannot be found or read, a row is neither a pair nor a prompt, or none has a prompt.
    """
    columns: set[str] = set()

    def parse(row: Row, source: Source) -> HeldOutPrompt:
        columns.update(row.fields)
        return _read(row, source, settings.as_chat)

    if settings.holdout is None:
        whole = settings.path is None and settings.train_file is None  # nothing is trained on: all rows are held out
        read = read_rows(settings, "eval", parse, whole=whole)
        rows, other_split_rows = read.rows, read.other_split_rows
    else:
        train, held = read_splits(settings)
        rows, other_split_rows = [_of_pair(example) for example in held.rows], train.other_split_rows
    kept = [row for row in rows if not row.prompt.is_blank]
    if not kept:
        raise DataError(
            f"is missing or blank in all {len(rows)} rows, whose columns are {', '.join(sorted(columns))}",
            file=rows[0].origin.file,
            field="prompt",
            expected=f"text, or messages that end with the user's; or pairs of the format {settings.source}; "
            "--data.columns prompt=COLUMN uses another column",
        )
    return HeldOutRows(kept, [row.origin for row in rows if row.prompt.is_blank], other_split_rows)


def distinct(prompts: Sequence[HeldOutPrompt]) -> tuple[dict[str, HeldOutPrompt], list[HeldOutPrompt]]:
    """Return the first row of each prompt by its id, in order, with the first chosen reply; and the other rows."""
    firsts: dict[str, HeldOutPrompt] = {}
    again: list[HeldOutPrompt] = []
    for one in prompts:
        name = one.prompt.id
        if name not in firsts:
            firsts[name] = one
            continue
        again.append(one)
        if firsts[name].chosen is None:
            firsts[name] = replace(firsts[name], chosen=one.chosen)
    return firsts, again


def within(
    prompts: Sequence[HeldOutPrompt], length: Callable[[Prompt], int], max_length: int, limit: int | None = None
) -> tuple[list[HeldOutPrompt], list[HeldOutPrompt]]:
    """Return the rows whose prompt has at most ``max_length`` tokens, in order, and those left out for their length.

    Args:
        prompts: What was read.
        length: Tokens of a prompt, without the control.
        max_length: Most of them, as replies are generated.
        limit: Stop once this many are kept; later rows are in neither list.

    Raises:
        DataError: No prompt is left.
    """
    kept: list[HeldOutPrompt] = []
    longer: list[HeldOutPrompt] = []
    for one in prompts:
        if len(kept) == limit:
            break
        with locate_errors(one.origin.file, one.origin.line):
            tokens = length(one.prompt)
        (kept if tokens <= max_length else longer).append(one)
    if not kept:
        what = f"none of the {len(prompts)} prompts has at most {max_length} tokens"
        raise DataError(what, file=prompts[0].origin.file, field="data.max_length")
    return kept, longer


def _read(row: Row, source: Source, as_chat: bool) -> HeldOutPrompt:
    """Return what a row holds; a blank prompt where it has none."""
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
    if role != "user" and (field != "prompt" or role != "assistant"):  # an assistant's turn in 'prompt' is continued
        expected = "a user's turn last, which a completion answers"
        raise row.error(f"ends with a turn of {role!r}", field=field, expected=expected)
    return HeldOutPrompt(prompt, None, row.origin)


def _of_pair(example: PreferenceExample) -> HeldOutPrompt:
    chosen = None if "human_turn" in example.remarks else example.chosen
    return HeldOutPrompt(example.prompt, chosen, example.origin)
