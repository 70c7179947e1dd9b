"""How many rows a reward model scores at once, and the forward passes: padded, or packed with prompts shared.

Knows ids and one classifier of transformers; knows neither tokenizers nor prompts.

A decoder that pools its last token (``GenericForSequenceClassification``) can score rows *packed*: one row of tokens
with no padding, in which completions of one prompt share the ids that they begin with. Every score is what it is alone,
which :func:`packs` checks on rows of the job; other models get padded batches of rows of like length.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from itertools import accumulate, takewhile

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification

from meetlm.evaluation.reward_input import Ids
from meetlm.policy.attention import VARLEN
from meetlm.policy.packing import packed_arguments, packing_obstacle

TOLERANCE = 1e-4
"""Largest difference of a packed score and the same row's alone, relative to the score where that is above 1."""


def pad_id_of(model: PreTrainedModel) -> int | None:
    """Return the id that ``model`` takes for padding; ``None`` where its config names none."""
    pad = model.config.get_text_config().pad_token_id
    return None if pad is None else int(pad)


def pooled(ids: Sequence[int], pad: int | None) -> int:
    """Return which token of a row is pooled: the last that is not ``pad``, as transformers has it."""
    at = len(ids) - 1
    while at > 0 and ids[at] == pad:
        at -= 1
    return at


def padded_batches(rows: Sequence[Ids], max_tokens: int) -> Iterator[list[int]]:
    """Yield the numbers of rows of like length, longest first, of at most ``max_tokens`` tokens with padding."""
    group: list[int] = []
    for number in sorted(range(len(rows)), key=lambda n: -len(rows[n].ids)):
        if group and (len(group) + 1) * len(rows[group[0]].ids) > max_tokens:
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def padded_scores(model: PreTrainedModel, rows: Sequence[Ids], fallback_pad: int) -> Tensor:
    """Return the scores [B] f32, on the CPU, of rows padded on the right to the longest.

    Args:
        model: A classifier of one label.
        rows: With token types all, or none.
        fallback_pad: What rows are padded with where the model's config names no id. No row may end with it: a decoder
            looks for the last token that is none.
    """
    pad, config = pad_id_of(model), model.config.get_text_config()
    inputs = {
        "input_ids": _padded([row.ids for row in rows], fallback_pad if pad is None else pad),
        "attention_mask": _padded([(1,) * len(row.ids) for row in rows], 0),
    }
    if rows[0].types is not None:
        inputs["token_type_ids"] = _padded([row.types or () for row in rows], 0)
    device = model.device
    if pad is None:
        config.pad_token_id = fallback_pad
    try:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            logits: Tensor = model(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits
    finally:
        config.pad_token_id = pad
    return logits[:, 0].float().cpu()


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def packed_batches(rows: Sequence[Ids], prompts: Sequence[Hashable], max_tokens: int) -> Iterator[list[int]]:
    """Yield the numbers of rows, those of one prompt together, of at most ``max_tokens`` tokens (or one row).

    Args:
        rows: In any order.
        prompts: What names each row's prompt.
        max_tokens: Counted without sharing.
    """
    families: dict[Hashable, list[int]] = {}
    for number, prompt in enumerate(prompts):
        families.setdefault(prompt, []).append(number)
    batch: list[int] = []
    total = 0
    for family in sorted(families.values(), key=lambda family: -max(len(rows[n].ids) for n in family)):
        for number in sorted(family, key=lambda n: rows[n].ids):  # neighbours share the most
            if batch and total + len(rows[number].ids) > max_tokens:
                yield batch
                batch, total = [], 0
            batch.append(number)
            total += len(rows[number].ids)
    if batch:
        yield batch


def packed_scores(model: PreTrainedModel, rows: Sequence[Ids], prompts: Sequence[Hashable]) -> Tensor:
    """Return the scores [B] f32 of rows packed into one, whose neighbours of one prompt share what they begin with.

    Args:
        model: One that :func:`packs` has said ``None`` of.
        rows: In the order of a batch of :func:`packed_batches`.
        prompts: As there.
    """
    pad = pad_id_of(model)
    read = [row.ids[: pooled(row.ids, pad) + 1] for row in rows]  # what comes later is not looked at
    shared = _shared(read, prompts)
    own = [ids[skip:] for ids, skip in zip(read, shared, strict=True)]
    borders = torch.tensor([0, *accumulate(map(len, own))], dtype=torch.int32)
    positions = [torch.arange(skip, len(ids)) for ids, skip in zip(read, shared, strict=True)]
    with torch.no_grad():
        states = model.base_model(
            torch.tensor([[one for ids in own for one in ids]]),
            position_ids=torch.cat(positions)[None],
            use_cache=False,
            **packed_arguments(model, borders, shared if any(shared) else None),
        ).last_hidden_state[0]
        head = model.get_submodule("score")
        scores: Tensor = head(states[(borders[1:] - 1).long()])[:, 0]
    return scores.float()


def _shared(rows: Sequence[tuple[int, ...]], prompts: Sequence[Hashable]) -> list[int]:
    """Return how many ids each row has in common with the last row before it that shares none; its last is its own."""
    counts: list[int] = []
    root: tuple[tuple[int, ...], Hashable] | None = None
    for ids, prompt in zip(rows, prompts, strict=True):
        common = 0
        if root is not None and root[1] == prompt:
            alike = takewhile(lambda both: both[0] == both[1], zip(root[0], ids, strict=False))
            common = min(sum(1 for _ in alike), len(ids) - 1)
        counts.append(common)
        if not common:
            root = (ids, prompt)
    return counts


def packs(model: PreTrainedModel, rows: Sequence[Ids], prompts: Sequence[Hashable]) -> str | None:
    """Switch ``model`` to packed attention if packed scores are those of rows one by one; return why not.

    Args:
        model: In eval mode. Left with its own attention where it does not pack.
        rows: Those of the job: checked are the two longest of the largest family that shares a prompt, the longest and
            the shortest row.
        prompts: What names each row's prompt.
    """
    if not isinstance(model, GenericForSequenceClassification):
        return f"{type(model).__name__} does not pool the last token of a decoder"
    if model.device.type != "cpu":
        return "rows are packed on CPUs only, where calls of attention for each row alone cost nothing"
    obstacle = packing_obstacle(model)
    if obstacle:
        return obstacle
    own = model.config._attn_implementation
    checked = _to_check(rows, prompts)
    alone = [float(padded_scores(model, [rows[n]], _other(rows[n]))) for n in checked]
    try:
        model.set_attn_implementation(VARLEN)
        packed = packed_scores(model, [rows[n] for n in checked], [prompts[n] for n in checked]).tolist()
    except (RuntimeError, ValueError, TypeError) as error:
        model.set_attn_implementation(own)
        return f"packed attention failed: {error}"
    compared = [both for both in zip(alone, packed, strict=True) if not all(map(math.isnan, both))]
    gaps = [abs(one - other) / max(1.0, abs(one)) for one, other in compared]
    if gaps and all(gap <= TOLERANCE for gap in gaps):
        return None
    model.set_attn_implementation(own)
    if not gaps:
        return "the scores of the rows that it was to be checked on are NaN"
    return f"packed scores differ from those of rows alone: {gaps} (bound {TOLERANCE:g})"


def _to_check(rows: Sequence[Ids], prompts: Sequence[Hashable]) -> list[int]:
    by_length = sorted(range(len(rows)), key=lambda n: len(rows[n].ids))
    counts: dict[Hashable, list[int]] = {}
    for number in by_length:
        counts.setdefault(prompts[number], []).append(number)
    largest = max(counts.values(), key=len)[-2:]
    rest = [number for number in (by_length[-1], by_length[0]) if number not in largest]
    return [*largest, *dict.fromkeys(rest)]


def _other(row: Ids) -> int:
    """Return an id that the row does not end with."""
    return 0 if row.ids[-1] else 1
