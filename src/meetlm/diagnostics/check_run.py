"""The doctor's checks of what a run would do with model and data: enough steps, a model that can take them.

Settings of stages and presets come in as plain numbers. Runs the model forward once, trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from meetlm.diagnostics.checks import Check, status_of
from meetlm.policy.loading import embedding_rows
from meetlm.policy.packing import packing_failure_reason

GOOD_STEPS = 100
SMALL_UNDER = 200
"""The paper's setting is advised against where it gives a stage fewer steps than this: a tenth of them is
warm-up, and the rate falls from there on."""

MANY_EPOCHS = 10
"""Twice the paper's: from there on a model that is trained too learns its pairs by heart."""


@dataclass(frozen=True, slots=True)
class Planned:
    """What a stage would do.

    Attributes:
        name: The stage's.
        steps: Optimizer steps.
        epochs: Passes over the pairs that these are.
    """

    name: str
    steps: int
    epochs: float


def check_steps(
    stages: Sequence[Planned], preset: str, by_preset: Mapping[str, int], pairs: int, min_steps: int
) -> list[Check]:
    """Return a check of each stage's steps, and one of the preset.

    Args:
        stages: Of the recipe under the preset.
        preset: The preset's name.
        by_preset: The steps of the shortest stage under ``paper`` and under ``small``.
        pairs: Training pairs.
        min_steps: A stage of fewer hardly moves a control.
    """
    checks = []
    for stage in stages:
        few = stage.steps < GOOD_STEPS
        status = status_of(few or stage.epochs > MANY_EPOCHS, stage.steps < min_steps)
        word = "pass" if stage.epochs == 1 else "passes"
        text = f"{stage.steps} optimizer steps, {stage.epochs:.3g} {word} over {pairs} pairs"
        advice = ""
        if few:
            advice = (
                f"{GOOD_STEPS} are advisable, under {min_steps} hardly move a control. Fewer pairs a step "
                "(batch.pairs) or more epochs give more."
            )
        elif status != "ok":
            advice = f"More than {MANY_EPOCHS} passes learn the pairs by heart: more data, or fewer steps."
        checks.append(Check(f"steps of {stage.name}", status, text, stage.steps, advice=advice))
    best = "small" if by_preset["paper"] < SMALL_UNDER else "paper"
    text = (
        f"{best} is the one for {pairs} pairs: paper would give a stage {by_preset['paper']} steps, "
        f"small {by_preset['small']}"
    )
    unwise = preset == "paper" and best == "small"
    advice = f"Under {SMALL_UNDER} steps, smaller batches and other rates do better: --preset small."
    checks.append(Check("preset", status_of(unwise), text, by_preset["paper"], advice=advice if unwise else ""))
    return checks


def check_model(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    conversational: bool,
    max_length: int,
    slot: int,
    new_tokens: int = 128,
) -> list[Check]:
    """Return the checks of the model.

    Args:
        lm: In eval mode; its attention is switched to the packed one where it packs.
        tokenizer: Its own.
        conversational: Whether the data are chat messages rather than plain text.
        max_length: Most tokens of prompt and reply.
        slot: Tokens of the control slot.
        new_tokens: That generation adds to a prompt.
    """
    return [
        _chat(tokenizer, conversational),
        _vocabulary(lm, tokenizer),
        _context(lm, max_length, slot, new_tokens),
        _packing(lm, max_length),
        _head(lm),
    ]


def _chat(tokenizer: PreTrainedTokenizerBase, conversational: bool) -> Check:
    has = tokenizer.chat_template is not None
    if not conversational:
        text = "the data are plain text" + (", so the tokenizer's chat template is not used" if has else "")
        return Check("chat template", "ok", text)
    if has:
        return Check("chat template", "ok", "the data are conversations, and the tokenizer has a template")
    text = "the data are conversations, and the tokenizer has no chat template to write them with"
    advice = "Take an instruction-tuned model, set tokenizer.chat_template and save it, or give plain text."
    return Check("chat template", "problem", text, advice=advice)


def _vocabulary(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Check:
    rows = embedding_rows(lm)
    most = max(tokenizer.get_vocab().values()) + 1
    text = f"the tokenizer has ids up to {most - 1}, the model {rows} embeddings"
    if most <= rows:
        return Check("vocabulary", "ok", text, rows - most)
    advice = "The tokenizer is not this model's, or tokens were added without resizing the embeddings."
    return Check("vocabulary", "problem", text, rows - most, advice=advice)


def _context(lm: PreTrainedModel, max_length: int, slot: int, new_tokens: int) -> Check:
    most = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
    train, generate = slot + max_length, slot + max_length + new_tokens
    needs = f"training needs up to {train} positions (slot {slot}, max_length {max_length})"
    if most is None:
        return Check("context", "ok", f"{needs}; the model names no limit")
    text = f"{needs}, generation {generate}; the model has {most}"
    status = status_of(generate > most, train > most)
    advice = "" if status == "ok" else f"Set data.max_length to {most - slot - new_tokens} or less."
    return Check("context", status, text, most - generate, advice=advice)


def _packing(lm: PreTrainedModel, longest: int) -> Check:
    reason = packing_failure_reason(lm, longest)
    if reason is None:
        text = "packs: sequences share a row without padding, with the logits that each has alone"
        return Check("packing", "ok", text, 1)
    text = f"does not pack ({reason}): batches are grouped by length and padded, slower with the same result"
    return Check("packing", "ok", text, 0)


def _head(lm: PreTrainedModel) -> Check:
    head = lm.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None or not hasattr(head, "weight"):
        return Check("head", "problem", "the model has no LM head", advice="Take a causal language model.")
    tied = head.weight is lm.get_input_embeddings().weight
    text = (
        "tied to the input embeddings: training the model moves both; a control adds no rows to either"
        if tied
        else "apart from the input embeddings"
    )
    return Check("head", "ok", text, int(tied))
