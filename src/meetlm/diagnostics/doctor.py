"""The doctor: checks of data and model before a run, without training or sampling.

``check_data`` checks whether something other than preference distinguishes the replies, and whether enough pairs are
held out. ``check_run`` checks whether there are enough steps and whether the model fits the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.example import Example, UnfilteredRows
from meetlm.data.filters import filter_eval, filter_train
from meetlm.data.fitted_levels import fit_levels, merge_prompts
from meetlm.data.levels import LevelSpace
from meetlm.data.prompt_format import PromptFormat
from meetlm.data.settings import DataSettings
from meetlm.data.sources import SOURCES, read_examples
from meetlm.data.splits import read_splits
from meetlm.diagnostics.check_data import check_data, check_test
from meetlm.diagnostics.check_run import StageSteps, check_model, check_steps
from meetlm.diagnostics.checks import Check, Diagnosis
from meetlm.diagnostics.data_report import TokenCounts


def diagnose(
    settings: DataSettings,
    lm: PreTrainedModel,
    prompt_format: PromptFormat,
    steps_for: Callable[[int], Sequence[StageSteps]],
    *,
    preset: str,
    min_steps: int,
    slot_for: Callable[[LevelSpace], int],
    with_eval: bool,
    reporter: Reporter = SILENT,
) -> Diagnosis:
    """Return all checks.

    Args:
        settings: Location of the data.
        lm: The language model, in eval mode.
        prompt_format: The run's prompt format.
        steps_for: Returns the steps of each stage for a number of training pairs.
        preset: Name of the recipe's preset.
        min_steps: Number of steps below which a stage hardly changes a control.
        slot_for: Returns the tokens of the longest control slot for the levels of the data.
        with_eval: Whether there are held-out rows to read.
        reporter: Receives messages.

    Raises:
        DataError: The data cannot be read, or no row can be used.
    """
    reporter.message("reading the data")
    read, held_out = read_splits(settings) if with_eval else (read_examples(settings, "train"), UnfilteredRows([], []))
    is_chat = read.rows[0].prompt.is_chat
    fitted = fit_levels(settings, merge_prompts(read.rows))
    reporter.message("checking the model")
    model = check_model(
        lm,
        prompt_format.tokenizer,
        is_chat=is_chat,
        has_markers=bool(SOURCES[settings.source].stop),
        max_length=settings.max_length,
        slot=slot_for(fitted.levels),
    )
    if is_chat and prompt_format.tokenizer.chat_template is None:
        finding = f"not checked: the {len(read.rows)} rows cannot be tokenised without a chat template"
        return Diagnosis((*model, Check("data", "problem", finding, advice="Set the chat template first.", rows=0)))
    reporter.message("checking the data")
    count_tokens = TokenCounts(prompt_format)
    train, train_report = filter_train(read, count_tokens, settings.max_length, settings.limit_train)
    test: list[Example] = []
    test_report = None
    if with_eval:
        test, test_report = filter_eval(held_out, count_tokens, settings.max_length, limit=settings.limit_eval)
    return Diagnosis(
        (
            *check_data(train, train_report, count_tokens, fitted),
            *check_test(train, test, test_report),
            *check_steps(steps_for(len(train)), preset, len(train), min_steps),
            *model,
        )
    )
