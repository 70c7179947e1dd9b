"""The doctor: what would spoil a run, told before it starts. Trains nothing, samples nothing.

Puts together the checks of ``check_data`` (what but preference tells the levels apart; is enough held out)
and ``check_run`` (are there enough steps; can the model take the data).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.example import PreferenceExample, Read
from meetlm.data.filters import filter_eval, filter_train
from meetlm.data.prompt_format import PromptFormat
from meetlm.data.settings import DataSettings
from meetlm.data.sources import read_examples
from meetlm.data.splits import read_splits
from meetlm.diagnostics.check_data import check_data, check_test
from meetlm.diagnostics.check_run import Planned, check_model, check_steps
from meetlm.diagnostics.checks import Check, Diagnosis, diagnosis
from meetlm.diagnostics.data_report import TokenCounts


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recipe would do with a number of training pairs, in plain numbers.

    Attributes:
        preset: The preset's name.
        stages: Each stage's steps under it.
        by_preset: The steps of the shortest stage under ``paper`` and under ``small``.
        min_steps: Fewer hardly move a control.
    """

    preset: str
    stages: tuple[Planned, ...]
    by_preset: dict[str, int]
    min_steps: int


def diagnose(
    settings: DataSettings,
    lm: PreTrainedModel,
    prompt_format: PromptFormat,
    plan: Callable[[int], Plan],
    *,
    slot: int,
    with_eval: bool,
    reporter: Reporter = SILENT,
) -> Diagnosis:
    """Return every check.

    Args:
        settings: Where the data are.
        lm: In eval mode.
        prompt_format: Of the run.
        plan: From the number of training pairs to what would be done with them.
        slot: Tokens of the longest control slot.
        with_eval: Whether there are held-out rows to read.
        reporter: Shows what is being done.

    Raises:
        DataError: The data cannot be read, or no row of them can be used.
    """
    reporter.message("reading the data")
    read, held_out = read_splits(settings) if with_eval else (read_examples(settings, "train"), Read([], []))
    conversational = read.rows[0].prompt.is_chat
    reporter.message("checking the model")
    model = check_model(
        lm,
        prompt_format.tokenizer,
        conversational=conversational,
        max_length=settings.max_length,
        slot=slot,
    )
    if conversational and prompt_format.tokenizer.chat_template is None:
        return diagnosis([*model, _unread(read.rows)])  # nothing can be tokenised, so nothing else can be said
    reporter.message("checking the data")
    count = TokenCounts(prompt_format)
    train, account = filter_train(read, count, settings.max_length, settings.limit_train)
    test: list[PreferenceExample] = []
    of_test = None
    if with_eval:
        test, of_test = filter_eval(held_out, count, settings.max_length, limit=settings.limit_eval)
    planned = plan(len(train))
    return diagnosis(
        [
            *check_data(train, account, count),
            *check_test(train, test, of_test),
            *check_steps(planned.stages, planned.preset, planned.by_preset, len(train), planned.min_steps),
            *model,
        ]
    )


def _unread(rows: list[PreferenceExample]) -> Check:
    text = f"the {len(rows)} rows cannot be turned into tokens, so nothing was checked of them"
    return Check("data", "problem", text, len(rows), advice="See to the chat template first.")
