"""The rows of a run, read and filtered: the same for every method, as lengths do not count its control."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from meetlm.data.encoding import example_lengths
from meetlm.data.example import Example, fingerprint
from meetlm.data.filters import ExampleTokens, FilterReport, filter_eval, filter_train
from meetlm.data.levels import PAIR_LEVELS, LevelSpace, with_weights
from meetlm.data.prompt_format import FormatSpec, PromptFormat, pin_format
from meetlm.data.settings import DataSettings
from meetlm.data.sources import SOURCES
from meetlm.data.splits import read_splits
from meetlm.recipes.config import RunConfig


@dataclass(frozen=True)
class PreparedData:
    """Training and held-out examples of a run.

    Attributes:
        levels: The levels of the data.
        train: Examples that passed the filters, with level weights.
        test: Held-out examples, one per prompt.
        reports: Reports of the filters of both.
        spec: Prompt format that lengths were counted in.
    """

    levels: LevelSpace
    train: list[Example]
    test: list[Example]
    reports: tuple[FilterReport, FilterReport]
    spec: FormatSpec

    def lines(self) -> list[str]:
        """Return the reports of the filters as lines of text, training rows first."""
        return [line for report in self.reports for line in report.lines()]

    @property
    def key(self) -> str:
        """Identifies rows and prompt format, for stages that runs share."""
        return f"{self.fingerprint} {json.dumps(self.spec.to_dict(), sort_keys=True)}"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all rows that are used, in order."""
        return fingerprint((example.prompt, *example.replies) for example in (*self.train, *self.test))


def prepare_data(settings: DataSettings, prompt_format: PromptFormat) -> PreparedData:
    """Read and filter both splits; lengths are counted without a control, so that every method has the same rows."""

    def lengths(example: Example) -> ExampleTokens:
        return example_lengths(prompt_format, example)

    read, held = read_splits(settings)
    train, of_train = filter_train(read, lengths, settings.max_length, settings.limit_train)
    test, of_test = filter_eval(held, lengths, settings.max_length, limit=settings.limit_eval)
    levels = PAIR_LEVELS
    train, test = ([with_weights(example, levels) for example in rows] for rows in (train, test))
    return PreparedData(levels, train, test, (of_train, of_test), prompt_format.spec)


def pinned_format(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
    """Return the prompt format of a new run of ``config``."""
    settings = config.format
    stop = SOURCES[config.data.source].stop
    return pin_format(tokenizer, system=settings.system, stop=stop, reasoning=settings.reasoning)
