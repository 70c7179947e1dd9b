"""The rows of a run, read and filtered; lengths exclude the control, so that every method has the same rows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from meetlm.config.errors import DataError
from meetlm.data.encoding import example_lengths
from meetlm.data.example import Example, fingerprint
from meetlm.data.filters import ExampleTokens, FilterReport, filter_eval, filter_train
from meetlm.data.fitted_levels import (
    FittedLevels,
    fit_levels,
    level_lines,
    merge_prompts,
    num_replies,
    split_large,
    without_level_lines,
)
from meetlm.data.levels import LevelSpace
from meetlm.data.prompt_format import FormatSpec, PromptFormat, pin_format
from meetlm.data.settings import DataSettings
from meetlm.data.sources import SOURCES
from meetlm.data.splits import read_splits
from meetlm.recipes.config import RunConfig


@dataclass(frozen=True)
class PreparedData:
    """Training and held-out examples of a run.

    Attributes:
        fitted: Level schemes of the data.
        train: Examples that passed the filters, with level weights.
        test: Held-out examples, one per prompt.
        reports: Filter reports of both splits.
        spec: Prompt format with which lengths were counted.
        num_without_level: Number of replies of both splits that have no level and are left out.
    """

    fitted: FittedLevels
    train: list[Example]
    test: list[Example]
    reports: tuple[FilterReport, FilterReport]
    spec: FormatSpec
    num_without_level: tuple[int, int] = (0, 0)

    @property
    def levels(self) -> LevelSpace:
        """The levels of the data."""
        return self.fitted.levels

    def lines(self) -> list[str]:
        """Return the reports of the filters, training rows first, and the levels, as lines of text."""
        left_out = [
            line
            for report, number in zip(self.reports, self.num_without_level, strict=True)
            for line in without_level_lines(report.file, number)
        ]
        filtered = [line for report in self.reports for line in report.lines()]
        return [*filtered, *left_out, *level_lines(self.fitted, self.train)]

    @property
    def key(self) -> str:
        """Identifies rows and prompt format, for stages that runs share."""
        return f"{self.fingerprint} {json.dumps(self.spec.to_dict(), sort_keys=True)}"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all rows that are used, in order."""
        examples = (*self.train, *self.test)
        texts = fingerprint((example.prompt, *example.replies) for example in examples)
        if all(example.is_pair for example in examples):
            return texts
        weights = repr([completion.weights for example in examples for completion in example.completions])
        return hashlib.sha256(f"{texts} {tuple(self.levels)} {weights}".encode()).hexdigest()


def prepare_data(
    settings: DataSettings, prompt_format: PromptFormat, *, pinned_levels: FittedLevels | None = None
) -> PreparedData:
    """Read and filter both splits, and assign levels to their replies.

    Lengths exclude the control, so that every method has the same rows.

    Args:
        settings: Location of the data, filters, level schemes.
        prompt_format: Counts tokens.
        pinned_levels: Level schemes of a run that continues; fitted on the training rows otherwise.
    """

    def lengths(example: Example) -> ExampleTokens:
        return example_lengths(prompt_format, example)

    training_rows, held_out = read_splits(settings)
    train, train_report = filter_train(training_rows, lengths, settings.max_length, settings.limit_train)
    test, test_report = filter_eval(held_out, lengths, settings.max_length, limit=settings.limit_eval)
    train, test = merge_prompts(train), merge_prompts(test)
    fitted = pinned_levels or fit_levels(settings, train)
    levelled = fitted.apply(train), fitted.apply(test)
    num_train, num_test = (
        num_replies(before) - num_replies(after) for before, after in zip((train, test), levelled, strict=True)
    )
    if not levelled[1]:
        raise DataError(
            f"none of the {num_test} held-out replies has a level",
            file=test_report.file,
            expected="replies with different scores to the same prompt",
        )
    train, test = map(split_large, levelled)
    return PreparedData(fitted, train, test, (train_report, test_report), prompt_format.spec, (num_train, num_test))


def pinned_format(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
    """Return the prompt format of a new run of ``config``."""
    settings = config.format
    stop = SOURCES[config.data.source].stop
    return pin_format(tokenizer, system=settings.system, stop=stop, reasoning=settings.reasoning)
