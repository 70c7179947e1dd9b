"""The doctor's checks of a run: enough optimizer steps, and a model that fits the data.

The checks need no forward pass. The caller passes the steps and epochs of the stages as plain numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from meetlm.diagnostics.checks import Check, worst_status
from meetlm.policy.loading import embedding_rows, num_positions

ADVISABLE_STEPS = {
    "paper": (200, "--preset small has smaller batches, and learning rates for few steps."),
    "small": (100, "Fewer pairs per step (--batch.pairs) or more epochs give more steps."),
}
"""Advisable number of steps by preset, and how to reach it."""

MANY_EPOCHS = 10
"""Twice the paper's number. With more epochs, a trained language model memorises its pairs."""

NEW_TOKENS = 128
"""Tokens that generation adds to a prompt."""

AS_CHAT = "--data.as_chat true renders them with the chat template, each prompt as one user message."


@dataclass(frozen=True, slots=True)
class StageSteps:
    """The length of a stage.

    Attributes:
        name: Name of the stage.
        steps: Optimizer steps.
        epochs: Number of epochs.
    """

    name: str
    steps: int
    epochs: float


def check_steps(stages: Sequence[StageSteps], preset: str, pairs: int, minimum: int) -> list[Check]:
    """Return a check of each stage's steps.

    Args:
        stages: Stages of the recipe under the preset.
        preset: Name of the preset.
        pairs: Number of training pairs.
        minimum: Number of steps below which a stage hardly changes a control.
    """
    checks = []
    advisable, remedy = ADVISABLE_STEPS[preset]
    for stage in stages:
        has_few_steps, has_many_epochs = stage.steps < advisable, stage.epochs > MANY_EPOCHS
        advice = f"In more than {MANY_EPOCHS} epochs the model memorises the pairs: use more data, or fewer steps."
        if has_few_steps:
            advice = f"{advisable} are advisable; fewer than {minimum} hardly change a control. {remedy}"
        status = worst_status(warning=has_few_steps or has_many_epochs, problem=stage.steps < minimum)
        epochs = "1 epoch" if stage.epochs == 1 else f"{stage.epochs:.3g} epochs"
        finding = f"{stage.steps} optimizer steps, {epochs} of {pairs} pairs"
        checks.append(Check(f"steps of {stage.name}", status, finding, stage.steps, advice=advice))
    return checks


def check_model(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    is_chat: bool,
    has_markers: bool,
    max_length: int,
    slot: int,
) -> list[Check]:
    """Return the checks of the model.

    Args:
        lm: The model.
        tokenizer: The model's tokenizer.
        is_chat: Whether the data are conversations rather than plain text.
        has_markers: Whether plain text contains markers of turns, as in HH transcripts.
        max_length: Maximum number of tokens of prompt and reply.
        slot: Number of tokens of the control slot.
    """
    return [
        _chat_template(tokenizer, is_chat, has_markers),
        _vocabulary(lm, tokenizer),
        _context(lm, max_length, slot),
    ]


def _chat_template(tokenizer: PreTrainedTokenizerBase, is_chat: bool, has_markers: bool) -> Check:
    has_template = tokenizer.chat_template is not None
    if is_chat and has_template:
        return Check("chat template", "ok", "the data are conversations, and the tokenizer has a template")
    if is_chat:
        finding = "the data are conversations, but the tokenizer has no chat template"
        advice = "Use an instruction-tuned model, save the tokenizer with a chat_template, or use plain text."
        return Check("chat template", "problem", finding, advice=advice)
    if has_template and not has_markers:
        finding = "the prompts are plain text, but the model is a chat model: training would not use its template"
        return Check("chat template", "warning", finding, advice=AS_CHAT)
    return Check("chat template", "ok", "the data are plain text")


def _vocabulary(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Check:
    rows = embedding_rows(lm)
    ids = max(tokenizer.get_vocab().values()) + 1
    finding = f"the tokenizer has ids up to {ids - 1}, the model {rows} embeddings"
    advice = "Use the model's own tokenizer, or resize the embeddings after adding tokens."
    return Check("vocabulary", worst_status(warning=False, problem=ids > rows), finding, rows - ids, advice=advice)


def _context(lm: PreTrainedModel, max_length: int, slot: int) -> Check:
    positions = num_positions(lm)
    train, generate = slot + max_length, slot + max_length + NEW_TOKENS
    finding = f"training needs up to {train} positions (control slot {slot}, data.max_length {max_length})"
    if positions is None:
        return Check("context", "ok", f"{finding}; the model has no limit")
    finding += f", generation {generate}; the model has {positions}"
    status = worst_status(warning=generate > positions, problem=train > positions)
    advice = f"Set --data.max_length to {positions - slot - NEW_TOKENS} or less."
    return Check("context", status, finding, positions - generate, advice=advice)
