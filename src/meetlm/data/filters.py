"""Which rows are trained on and evaluated on, and a report that accounts for every row that is not.

Knows no tokenizer: lengths come from a function that is passed in, and leave the control out, so that every
method trains on the same rows whatever its control costs. Nothing is repaired here, only dropped and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from meetlm.config.errors import ConfigError, DataError
from meetlm.data.example import Origin, PreferenceExample, Prompt, Read, Turn

T = TypeVar("T")
S = TypeVar("S")

Lengths = Callable[[PreferenceExample], tuple[int, int, int]]
"""Token counts of prompt, chosen and rejected reply, without the control."""

Equal = Callable[[PreferenceExample], bool]
"""Whether both replies of a pair are the same tokens."""

REASONS = {
    "prompts_differ": "the two sides answer different prompts",
    "human_turn": "a reply goes on with a turn of the human",
    "empty_reply": "a reply is empty",
    "identical_replies": "both replies are the same",
    "duplicate": "the same prompt and replies stood earlier",
    "repeated_prompt": "the prompt stood earlier",
    "too_long": "longer than max_length",
}
"""Why a row is dropped, in the order of the checks: a row counts under the first that applies."""

ODDITIES = {
    "empty_prompt": "the prompt is empty",
    "contradiction": "the same two replies stood earlier the other way round",
    "repeated_in_both": "both replies repeated the prompt, which was taken out of them",
    "repeated_in_one": "one reply repeats the prompt",
    "prompt_differs": "the text in 'prompt' is not in the conversation, which is used instead",
}
"""What is worth a look but is kept."""

SHOWN_LINES = 5


@dataclass
class Tally:
    """How many rows, and the first few of their lines."""

    count: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, row: Origin) -> None:
        """Count one more row."""
        self.count += 1
        if len(self.lines) < SHOWN_LINES:
            self.lines.append(row.line)


@dataclass
class FilterReport:
    """The account of one filtering: ``total = kept + the dropped + beyond_limit``.

    Attributes:
        file: Where the rows come from.
        total: Rows that came in.
        kept: Rows that are used.
        groups: Distinct groups (prompts, posts) among the kept.
        beyond_limit: Rows not looked at, as the limit was reached before them.
        dropped: A tally for each of ``REASONS`` that applied.
        odd: A tally for each of ``ODDITIES`` among the kept.
        other_split_rows: Rows in the same file that name another split; ``total`` is without them.
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

        def tallies(of: dict[str, Tally]) -> dict[str, Any]:
            return {name: asdict(tally) for name, tally in of.items()}

        return {
            "file": self.file,
            "total": self.total,
            "kept": self.kept,
            "groups": self.groups,
            "beyond_limit": self.beyond_limit,
            "dropped": tallies(self.dropped),
            "odd": tallies(self.odd),
            "other_split_rows": asdict(self.other_split_rows),
        }

    def lines(self) -> list[str]:
        """Return the report as lines of text for a terminal."""
        text = [f"{self.file}: {self.kept} of {self.total} rows kept, {self.groups} distinct prompts"]
        text += [_line("dropped", tally, REASONS[name]) for name, tally in self.dropped.items()]
        text += [_line("kept though odd", tally, ODDITIES[name]) for name, tally in self.odd.items()]
        if self.other_split_rows.count:
            text.append(_line("left out", self.other_split_rows, "of another split, as they state"))
        if self.beyond_limit:
            text.append(f"  not looked at: {self.beyond_limit}, beyond the limit")
        return text


def _line(what: str, tally: Tally, why: str) -> str:
    more = ", …" if tally.count > len(tally.lines) else ""
    word = "line" if tally.count == 1 else "lines"
    return f"  {what}: {tally.count}, {why} ({word} {', '.join(map(str, tally.lines))}{more})"


def filter_train(
    read: Read[PreferenceExample],
    lengths: Lengths,
    max_length: int,
    limit: int | None = None,
    *,
    equal: Equal = lambda example: False,
) -> tuple[list[PreferenceExample], FilterReport]:
    """Keep the pairs that can be trained on, in their order.

    Dropped are pairs whose sides answer different prompts, with an empty reply, with two equal replies, exact
    duplicates, and pairs whose prompt and longer reply together exceed ``max_length``.

    Args:
        read: What a source read.
        lengths: Token counts without the control.
        max_length: Most tokens of prompt and longer reply.
        limit: Stop once this many rows are kept; later rows are not looked at.
        equal: Whether the replies of a pair are the same tokens, though their texts differ.

    Raises:
        DataError: No row is left, or a row cannot be turned into tokens.
    """
    seen: set[tuple[Prompt, Turn, Turn]] = set()

    def reason(example: PreferenceExample) -> str | None:
        unfit = _unfit_pair(example)
        if unfit:
            return unfit
        if _key(example) in seen:
            return "duplicate"
        seen.add(_key(example))
        prompt, chosen, rejected = at_row(example.origin, lengths, example)
        if prompt + max(chosen, rejected) > max_length:
            return "too_long"
        return "identical_replies" if chosen == rejected and equal(example) else None

    return _filter(read, reason, limit)


def filter_eval(
    read: Read[PreferenceExample],
    lengths: Lengths,
    max_length: int,
    *,
    limit: int | None = None,
    equal: Equal = lambda example: False,
) -> tuple[list[PreferenceExample], FilterReport]:
    """Keep one row a group (prompt or post) whose prompt has at most ``max_length`` tokens, in their order.

    Both replies are used (preference accuracy): rows that are no proper pairs are dropped as in training.

    Args:
        read: What a source read.
        lengths: Token counts without the control; only the prompt's is used.
        max_length: Most tokens of the prompt alone, as replies are generated.
        limit: Stop once this many rows are kept; later rows are not looked at.
        equal: As of :func:`filter_train`.

    Raises:
        DataError: No row is left, or a row cannot be turned into tokens.
    """
    seen: set[str] = set()

    def reason(example: PreferenceExample) -> str | None:
        unfit = _unfit_pair(example)
        if unfit:
            return unfit
        if example.group in seen:
            return "repeated_prompt"
        prompt, chosen, rejected = at_row(example.origin, lengths, example)
        if chosen == rejected and equal(example):
            return "identical_replies"
        seen.add(example.group)
        return "too_long" if prompt > max_length else None

    return _filter(read, reason, limit)


def prompt_overlap(train: Iterable[PreferenceExample], test: Iterable[PreferenceExample]) -> list[PreferenceExample]:
    """Return the rows of ``test`` whose group (prompt or post) occurs in ``train`` as well."""
    groups = {example.group for example in train}
    return [example for example in test if example.group in groups]


def _filter(
    read: Read[PreferenceExample],
    reason: Callable[[PreferenceExample], str | None],
    limit: int | None,
) -> tuple[list[PreferenceExample], FilterReport]:
    examples = read.rows
    report = FilterReport(file=examples[0].origin.file if examples else "data", total=len(examples))
    for row in read.other_split_rows:
        report.other_split_rows.add(row)
    kept: list[PreferenceExample] = []
    pairs: set[tuple[Prompt, Turn, Turn]] = set()
    for number, example in enumerate(examples):
        if limit is not None and len(kept) == limit:
            report.beyond_limit = len(examples) - number
            break
        why = reason(example)
        if why:
            report.dropped.setdefault(why, Tally()).add(example.origin)
            continue
        for remark in example.remarks:
            report.odd.setdefault(remark, Tally()).add(example.origin)
        if example.prompt.is_blank:
            report.odd.setdefault("empty_prompt", Tally()).add(example.origin)
        if (example.prompt, example.rejected, example.chosen) in pairs:
            report.odd.setdefault("contradiction", Tally()).add(example.origin)
        pairs.add(_key(example))
        kept.append(example)
    if not kept:
        counts = "; ".join(f"{tally.count}: {REASONS[name]}" for name, tally in report.dropped.items())
        raise DataError(f"no usable row left of {len(examples)} ({counts or 'there were none'})", file=report.file)
    report.kept, report.groups = len(kept), len({example.group for example in kept})
    return kept, report


def _unfit_pair(example: PreferenceExample) -> str | None:
    if example.rejected_prompt is not None:
        return "prompts_differ"
    if "human_turn" in example.remarks:
        return "human_turn"
    if example.chosen.is_blank or example.rejected.is_blank:
        return "empty_reply"
    return "identical_replies" if example.chosen.stripped == example.rejected.stripped else None


def at_row(origin: Origin, count: Callable[[T], S], item: T) -> S:
    """Return ``count(item)``; an error of the prompt format names the row."""
    try:
        return count(item)
    except ConfigError as error:
        raise DataError(str(error), file=origin.file, line=origin.line) from error


def _key(example: PreferenceExample) -> tuple[Prompt, Turn, Turn]:
    return example.prompt, example.chosen, example.rejected
