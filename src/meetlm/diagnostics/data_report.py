"""Report on preference data: which rows are used, how long they are, and how they are tokenized for the model.

Requires a tokenizer, not a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from meetlm.data.encoding import Encoded, Placement, example_lengths
from meetlm.data.example import Completion, Example, Origin, Turn, UnfilteredRows
from meetlm.data.filters import ExampleTokens, FilterReport, Tally, filter_eval, filter_train, prompt_overlap
from meetlm.data.fitted_levels import FittedLevels, fit_levels, merge_prompts, num_replies, without_level_lines
from meetlm.data.prompt_format import PromptFormat
from meetlm.data.settings import DataSettings
from meetlm.data.sources import read_examples
from meetlm.data.splits import read_splits
from meetlm.diagnostics.level_report import LevelReport, report_levels

Kind = Literal["slot", "prompt", "trained"]
QUANTILES = {"min": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "99%": 0.99, "max": 1.0}


class TokenCounts:
    """Counts the tokens of examples and caches the counts."""

    def __init__(self, prompt_format: PromptFormat) -> None:
        self.format = prompt_format
        self.counts: dict[tuple[Origin, tuple[Turn, ...]], ExampleTokens] = {}

    def __call__(self, example: Example) -> ExampleTokens:
        """Return the tokens of prompt and replies."""
        key = (example.origin, example.replies)
        if key not in self.counts:
            self.counts[key] = example_lengths(self.format, example)
        return self.counts[key]


@dataclass(frozen=True)
class DataReport:
    """The result of :func:`report_data`.

    Attributes:
        source: Format of the rows.
        filters: Numbers of training rows that are used and left out.
        test: The same for held-out rows; ``None`` if there are none.
        overlap: Held-out rows whose prompt (or post) is in the training data too.
        lengths: Quantiles in tokens of prompt, chosen reply, rejected reply, and prompt with the longer reply, over
            ``measured`` pairs, also those longer than ``data.max_length``.
        measured: Number of pairs that ``lengths`` is computed from.
        longer: Number of pairs that training would use in which the ``chosen`` reply, the ``rejected`` reply or
            ``neither`` has more tokens; ``None`` if the data are not pairs.
        levels: Levels of the data; ``None`` for pairs.
        examples: The examples that training would use, with level weights.
        fitted: Level schemes of the examples.
        num_without_level: Number of replies that show no level and are left out.
    """

    source: str
    filters: FilterReport
    test: FilterReport | None
    overlap: Tally | None
    lengths: dict[str, dict[str, int]]
    measured: int
    longer: dict[str, int] | None
    levels: LevelReport | None
    examples: list[Example]
    fitted: FittedLevels
    num_without_level: int

    def first_replies(self, number: int) -> list[tuple[Example, Completion]]:
        """Return the replies of the first pairs, or the first replies at each level."""
        if self.levels is None:
            return [(example, completion) for example in self.examples[:number] for completion in example.completions]
        replies = [(example, completion) for example in self.examples for completion in example.completions]
        at_levels = [
            [(example, c) for example, c in replies if c.weights[k]][:number] for k in range(len(self.fitted.levels))
        ]
        return [reply for at_level in at_levels for reply in at_level]

    def to_dict(self) -> dict[str, Any]:
        """Return the report, without the pairs, as plain JSON types."""
        return {
            "source": self.source,
            "filters": self.filters.to_dict(),
            "test": self.test and self.test.to_dict(),
            "overlap": self.overlap and asdict(self.overlap),
            "lengths": self.lengths,
            "measured": self.measured,
            "longer": self.longer,
            "levels": self.levels and self.levels.to_dict(),
            "num_without_level": self.num_without_level,
        }

    def lines(self) -> list[str]:
        """Return the report as lines of plain text."""
        text = self.filters.lines()
        if self.test is not None and self.overlap is not None:
            text += ["", *self.test.lines()]
            overlap = self.overlap
            lines = ", ".join(map(str, overlap.lines)) + (", …" if overlap.count > len(overlap.lines) else "")
            text.append(
                f"  {overlap.count} of these prompts are in the training data too (lines {lines})"
                if overlap.count
                else "  none of these prompts is in the training data"
            )
        text += ["", f"{'tokens':<24}" + "".join(f"{name:>8}" for name in QUANTILES)]
        for name, row in self.lengths.items():
            text.append(f"  {name:<22}" + "".join(f"{count:>8}" for count in row.values()))
        dropped = self.filters.dropped.get("too_long")
        too_long = f", of which {dropped.count} are too long" if dropped else ""
        rows = "rows" if self.longer is None else "pairs"
        text.append(f"  ({self.measured} {rows}{too_long}; a reply includes its end token)")
        if self.levels is not None:
            text += ["", *without_level_lines(self.filters.file, self.num_without_level), *self.levels.lines()]
        if self.longer is None:
            return text
        chosen, rejected, neither = (
            self.longer[name] / len(self.examples) for name in ("chosen", "rejected", "neither")
        )
        return [
            *text,
            "",
            f"The chosen reply is longer in {chosen:.0%} of the pairs that are used, the rejected reply in "
            f"{rejected:.0%}; {neither:.0%} are equal.",
        ]


def report_data(
    settings: DataSettings, prompt_format: PromptFormat, *, with_eval: bool, limit: int | None = None
) -> DataReport:
    """Return the report of some data.

    Args:
        settings: Where the data are.
        prompt_format: Tokenizes the rows.
        with_eval: Whether to read the held-out rows too.
        limit: Read the first N rows of each split only.

    Raises:
        DataError: The data cannot be read, or no row can be used.
    """
    count_tokens = TokenCounts(prompt_format)
    train, held_out = read_splits(settings) if with_eval else (read_examples(settings, "train"), None)
    used, report = filter_train(_first(train, limit), count_tokens, settings.max_length)
    measured = list(count_tokens.counts.values())
    is_pairs = all(example.is_pair for example in used)
    columns = {"prompt": [tokens.prompt for tokens in measured]}
    if is_pairs:
        columns["chosen reply"] = [tokens.replies[0] for tokens in measured]
        columns["rejected reply"] = [tokens.replies[1] for tokens in measured]
    else:
        columns["reply"] = [count for tokens in measured for count in tokens.replies]
    totals = [tokens.prompt + max(tokens.replies) for tokens in measured]
    columns[f"prompt + long{'er' if is_pairs else 'est'} reply"] = totals
    lengths = {
        name: {label: int(np.quantile(counts, quantile, method="nearest")) for label, quantile in QUANTILES.items()}
        for name, counts in columns.items()
    }
    merged = merge_prompts(used)
    fitted = fit_levels(settings, merged)
    examples = fitted.apply(merged)
    longer = None
    if is_pairs:
        replies = [count_tokens(example).replies for example in examples]
        chosen, rejected = sum(a > b for a, b in replies), sum(a < b for a, b in replies)
        longer = {"chosen": chosen, "rejected": rejected, "neither": len(examples) - chosen - rejected}
    test_report, overlap = None, None
    if held_out is not None:
        test, test_report = filter_eval(_first(held_out, limit), count_tokens, settings.max_length)
        overlap = Tally()
        for example in prompt_overlap(examples, test):
            overlap.add(example.origin)
    return DataReport(
        source=settings.source,
        filters=report,
        test=test_report,
        overlap=overlap,
        lengths=lengths,
        measured=len(measured),
        longer=longer,
        levels=None if is_pairs else report_levels(fitted, examples, count_tokens),
        examples=examples,
        fitted=fitted,
        num_without_level=num_replies(merged) - num_replies(examples),
    )


def _first(read: UnfilteredRows[Example], limit: int | None) -> UnfilteredRows[Example]:
    """Return the first ``limit`` rows, and the rows of another split among the lines that hold them."""
    if limit is None or limit >= len(read.rows):
        return read
    end = read.rows[limit].origin.line
    return UnfilteredRows(read.rows[:limit], [row for row in read.other_split_rows if row.line < end])


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of an encoded sequence.

    Attributes:
        kind: The control slot, the prompt, or the tokens that are trained on.
        text: The decoded text with its special tokens; ``×n`` for n virtual tokens.
        tokens: Number of tokens.
    """

    kind: Kind
    text: str
    tokens: int


def segments(
    encoded: Encoded,
    slot: Sequence[int],
    placement: Placement,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int,
) -> list[Segment]:
    """Return the parts of a sequence, in order.

    Args:
        encoded: The encoded sequence.
        slot: The ids of the control slot of its level.
        placement: Position of the slot.
        tokenizer: Decodes the ids.
        vocabulary: Size of the embedding table: higher ids are virtual tokens.
    """
    reply_start = encoded.spans[0].start
    slot_start = 0 if placement == "first" else reply_start - len(slot)
    slot_end = slot_start + len(slot)
    parts: list[tuple[Kind, Sequence[int]]] = [
        ("prompt", encoded.ids[:slot_start]),
        ("slot", encoded.ids[slot_start:slot_end]),
        ("prompt", encoded.ids[slot_end:reply_start]),
        ("trained", encoded.ids[reply_start:]),
    ]

    def decode(ids: Sequence[int]) -> str:
        is_virtual = any(i >= vocabulary for i in ids)
        return f"×{len(ids)}" if is_virtual else str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    return [Segment(kind, decode(ids), len(ids)) for kind, ids in parts if ids]


def shorten(segment: Segment, words_shown: int) -> Segment:
    """Return ``segment`` without the middle of its text if it has over 10 more than ``words_shown`` words."""
    words = segment.text.split(" ")
    half = words_shown // 2
    if len(words) <= words_shown + 10:
        return segment
    text = f"{' '.join(words[:half])} (… {len(words) - 2 * half} words …) {' '.join(words[-half:])}"
    return replace(segment, text=text)
