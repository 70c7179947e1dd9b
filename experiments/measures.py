"""What is measured of a trained model: greedy replies to held-out prompts, and its log-probs of held-out pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tasks import base_model

from meetlm.data.example import Example
from meetlm.evaluation.dial import repetition
from meetlm.generation.settings import Sampling
from meetlm.run.aligned import Aligned
from meetlm.run.completion_record import CompletionRecord
from meetlm.run.dial import EncodedReply, encode_reply, nlls_per_token
from meetlm.run.levels import NO_GUIDANCE, Guidance, Level
from meetlm.run.score import score_pairs

Measures = dict[str, list[float | None]]
"""A value per prompt for each measure."""


def measure_replies(
    model: Aligned,
    prompts: Sequence[Any],
    level: Level,
    scorer: Callable[[object, str], float | None],
    sampling: Sampling,
    guidance: Guidance = NO_GUIDANCE,
) -> Measures:
    """Return reward, words, NLL under the base model, repetition and whether it was cut, of each reply."""
    records = model.complete(prompts, level, sampling, guidance=guidance, batch_size=64)
    return {
        "reward": [scorer(record.prompt, record.completion) for record in records],
        "words": [float(len(record.completion.split())) for record in records],
        "nll": base_nll(records),
        "repetition": [repetition(record.completion) for record in records],
        "cut": [float(record.finish == "length") for record in records],
    }


def base_nll(records: Sequence[CompletionRecord]) -> list[float | None]:
    """Return the NLL per token of each reply under the base model; ``None`` for an empty one."""
    base = base_model()
    encoded = {index: row for index, record in enumerate(records) if (row := _encode(base, index, record)) is not None}
    nlls = dict(zip(encoded, nlls_per_token(base.policy, list(encoded.values())), strict=True))
    return [nlls.get(index) for index in range(len(records))]


def _encode(base: Aligned, index: int, record: CompletionRecord) -> EncodedReply | None:
    prompt = base.parse_prompt(index, record.prompt)
    return encode_reply(base.format, prompt, record.completion, is_cut=record.finish == "length")


def measure_pairs(model: Aligned, examples: Sequence[Example]) -> Measures:
    """Return whether the levels order each pair (a tie counts half), and the NLL per token of its chosen reply."""
    scored = score_pairs(model.policy, model.encoder, examples)
    best = model.encoder.levels.best
    chosen = [model.encoder.encode(pair.example.prompt, pair.example.best_and_worst[0], best) for pair in scored]
    sums, counts = model.policy.score(chosen)
    margins = [pair.margin for pair in scored]
    return {"accuracy": [(margin > 0) + 0.5 * (margin == 0) for margin in margins], "nll": (-sums / counts).tolist()}
