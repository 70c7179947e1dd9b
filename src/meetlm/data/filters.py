"""Select the rows to train and evaluate on; a report counts every row that is left out, by reason.

The caller passes a function that counts tokens. The counts exclude the control, so that every method trains on the same
rows. Rows are dropped and counted, never repaired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from meetlm.config.errors import DataError, locate_errors
from meetlm.data.example import Example, Origin, Prompt, Turn, UnfilteredRows


class ExampleTokens(NamedTuple):
    """The tokens of an example, without the control.

    Attributes:
        prompt: Number of tokens of the prompt.
        replies: Number of tokens of each reply.
        has_same_replies: Whether two replies have the same tokens.
        has_special_text: Whether the text contains that of a special token, which is encoded as ordinary text.
    """

    prompt: int
    replies: tuple[int, ...]
    has_same_replies: bool = False
    has_special_text: bool = False


Lengths = Callable[[Example], ExampleTokens]
Key = tuple[Prompt, *tuple[Turn, ...]]
"""Prompt and replies; rows with the same key are duplicates."""

REASONS = {
    "sides_differ": "the two sides answer different prompts",
    "no_feedback": "no reply has feedback",
    "human_turn": "a human turn follows the reply",
    "empty_reply": "a reply is empty",
    "identical_replies": "two replies are identical",
    "duplicate": "duplicate of an earlier row",
    "repeated_prompt": "an earlier row has the same prompt",
    "too_long": "more tokens than --data.max_length",
}
"""Why a row is dropped. Every row counts under the first reason that applies."""

ODDITIES = {
    "empty_prompt": "the prompt is empty",
    "contradiction": "an earlier row has the same replies in the opposite order",
    "repeated_in_both": "both replies repeated the prompt, which was removed from them",
    "repeated_in_one": "one reply repeats the prompt",
    "prompt_column_ignored": "the text in 'prompt' is not in the conversation, which is used instead",
    "special_text": "the text of a special token is encoded as ordinary text",
}
"""Warnings about rows that are used."""

SHOWN_LINES = 5


@dataclass
class Tally:
    """A number of rows, and the lines of the first few."""

    count: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, row: Origin) -> None:
        """Count one more row."""
        self.count += 1
        if len(self.lines) < SHOWN_LINES:
            self.lines.append(row.line)


@dataclass
class FilterReport:
    """What happened to the rows of a split: ``total = kept + dropped + beyond_limit``.

    Attributes:
        file: Where the rows come from.
        total: Number of rows read.
        kept: Number of rows used.
        groups: Number of distinct groups (prompts, posts) among the rows kept.
        beyond_limit: Number of rows that were not examined because the limit had been reached.
        dropped: Rows dropped, by reason (a key of ``REASONS``).
        odd: Rows kept with a warning, by its kind (a key of ``ODDITIES``).
        other_split_rows: Rows of another split in the same file; ``total`` does not include them.
    """

    file: str
    total: int
    kept: int = 0
    groups: int = 0
    beyond_limit: int = 0
    dropped: dict[str, Tally] = field(default_factory=dict)
    odd: dict[str, Tally] = field(default_factory=dict)
    other_split_rows: Tally = field(default_factory=Tally)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the report as lines of text for a terminal."""
        text = [f"{self.file}: {self.kept} of {self.total} rows kept, {self.groups} distinct prompts"]
        text += [_line("dropped", tally, REASONS[name]) for name, tally in self.dropped.items()]
        text += [_line("kept, but check", tally, ODDITIES[name]) for name, tally in self.odd.items()]
        if self.other_split_rows.count:
            text.append(_line("left out", self.other_split_rows, "rows of another split"))
        if self.beyond_limit:
            text.append(f"  not used: {self.beyond_limit}, after the limit was reached")
        return text


def _line(outcome: str, tally: Tally, reason: str) -> str:
    ellipsis = ", …" if tally.count > len(tally.lines) else ""
    noun = "line" if tally.count == 1 else "lines"
    return f"  {outcome}: {tally.count}, {reason} ({noun} {', '.join(map(str, tally.lines))}{ellipsis})"


def filter_train(
    read: UnfilteredRows[Example],
    lengths: Lengths,
    max_length: int,
    limit: int | None = None,
) -> tuple[list[Example], FilterReport]:
    """Keep the rows that can be trained on, in their order.

    Drop rows whose sides answer different prompts, rows with an empty reply or two equal replies, exact duplicates, and
    rows whose prompt and longest reply together exceed ``max_length``.

    Args:
        read: The rows of a split.
        lengths: Counts the tokens of an example, without the control.
        max_length: Maximum number of tokens of prompt and longest reply.
        limit: Stop once this many rows are kept; later rows are not examined.

    Raises:
        DataError: No row is left, or a row cannot be turned into tokens.
    """
    return _filter(read, lengths, max_length, limit, is_training=True)


def filter_eval(
    read: UnfilteredRows[Example],
    lengths: Lengths,
    max_length: int,
    *,
    limit: int | None = None,
) -> tuple[list[Example], FilterReport]:
    """Keep one row per group (prompt or post) whose prompt has at most ``max_length`` tokens, in their order.

    Preference accuracy uses all replies, so rows that cannot be trained on are dropped as in training. If rows have one
    reply each, all rows of a prompt are kept.

    Args:
        read: The rows of a split.
        lengths: Counts the tokens of an example, without the control; only the prompt's count is used.
        max_length: Maximum number of tokens of the prompt alone, since replies are generated.
        limit: Stop once this many rows are kept; later rows are not examined.

    Raises:
        DataError: No row is left, or a row cannot be turned into tokens.
    """
    return _filter(read, lengths, max_length, limit, is_training=False)


def prompt_overlap(train: Iterable[Example], test: Iterable[Example]) -> list[Example]:
    """Return the rows of ``test`` whose group (prompt or post) also occurs in ``train``."""
    groups = {example.group for example in train}
    return [example for example in test if example.group in groups]


def _filter(
    read: UnfilteredRows[Example], lengths: Lengths, max_length: int, limit: int | None, *, is_training: bool
) -> tuple[list[Example], FilterReport]:
    examples = read.rows
    report = FilterReport(file=examples[0].origin.file if examples else "data", total=len(examples))
    for row in read.other_split_rows:
        report.other_split_rows.add(row)
    remaining: list[Example] = []
    kept_keys: set[Key] = set()
    seen_keys: set[Key] = set()
    seen_groups: set[str] = set()
    for number, example in enumerate(examples):
        if limit is not None and len(remaining) == limit:
            report.beyond_limit = len(examples) - number
            break
        reason = _drop_reason(example)
        if reason is None and (is_training or len(example.completions) == 1):
            reason = "duplicate" if _key(example) in seen_keys else None
        elif reason is None:
            reason = "repeated_prompt" if example.group in seen_groups else None
        if reason is None:
            with locate_errors(example.origin.file, example.origin.line):
                tokens = lengths(example)
            if tokens.has_same_replies:
                reason = "identical_replies"
            else:
                seen_keys.add(_key(example))
                seen_groups.add(example.group)
                num_tokens = tokens.prompt + (max(tokens.replies) if is_training else 0)
                reason = "too_long" if num_tokens > max_length else None
        if reason:
            report.dropped.setdefault(reason, Tally()).add(example.origin)
            continue
        for remark in (*example.remarks, *(["special_text"] if tokens.has_special_text else [])):
            report.odd.setdefault(remark, Tally()).add(example.origin)
        if example.prompt.is_blank:
            report.odd.setdefault("empty_prompt", Tally()).add(example.origin)
        if len(example.completions) == 2 and (example.prompt, *example.replies[::-1]) in kept_keys:
            report.odd.setdefault("contradiction", Tally()).add(example.origin)
        kept_keys.add(_key(example))
        remaining.append(example)
    if not remaining:
        counts = "; ".join(f"{tally.count} left out: {REASONS[name]}" for name, tally in report.dropped.items())
        raise DataError(
            f"none of the {len(examples)} rows is usable ({counts or 'the file has no rows'})", file=report.file
        )
    report.kept, report.groups = len(remaining), len({example.group for example in remaining})
    return remaining, report


def _drop_reason(example: Example) -> str | None:
    """Return why the text of a row makes it unusable for training; ``None`` if it is usable."""
    if example.other_prompt is not None:
        return "sides_differ"
    if not any(completion.feedback for completion in example.completions):
        return "no_feedback"
    if "human_turn" in example.remarks:
        return "human_turn"
    if any(reply.is_blank for reply in example.replies):
        return "empty_reply"
    stripped = [reply.stripped for reply in example.replies]
    return "identical_replies" if len(set(stripped)) < len(stripped) else None


def _key(example: Example) -> Key:
    return example.prompt, *example.replies
