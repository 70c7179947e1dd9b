"""The parity check of exports: token ids of prompts and log-probs of replies, in the run and in the other tool.

The run completes held-out prompts greedily. The other tool renders the same prompts with its own template and tokenizer
and returns the log-probs of the same tokens at each position of the run's reply.

N tokens of a reply, C candidate tokens per position, K levels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from meetlm.data.example import Prompt, Weights
from meetlm.data.prompt_format import PromptFormat
from meetlm.generation.decoding import Branch, decoder_of
from meetlm.policy.loading import embedding_rows, end_tokens
from meetlm.policy.policy import Policy

REPLY_TOKENS = 16
"""Largest number of tokens of a compared reply."""
CANDIDATES = 20
"""Compared tokens per position: the most likely ones of the run."""


@dataclass(frozen=True, slots=True)
class ParityCase:
    """A prompt at a level, and what the run computes for it.

    Attributes:
        prompt: The prompt.
        number: Its number among the held-out prompts, from 1.
        level: Text of the level.
        weights: Level weights [K].
        ids: Ids that the model reads: control slot, if there is one, and prompt. Ids of soft prompts are at or above
            the number of rows of the embedding table.
        reply: Ids [N] of the greedy reply; EOS, where it ends there, included.
        candidates: Ids of the most likely tokens at each position of the reply, [N, C].
        log_probs: Their log-probs after the prompt and the reply so far, [N, C] f32, in nats.
    """

    prompt: Prompt
    number: int
    level: str
    weights: Weights
    ids: tuple[int, ...]
    reply: tuple[int, ...]
    candidates: Tensor
    log_probs: Tensor


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What another tool computes for a case.

    Attributes:
        ids: Ids that the tool's model reads, in the ids of :attr:`ParityCase.ids`.
        log_probs: Log-probs of the candidates, [N, C]; NaN where the tool reports none.
        note: A further result to print, such as the probability of tokens that the export adds.
    """

    ids: tuple[int, ...]
    log_probs: Tensor
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Parity:
    """The result of a parity check.

    Attributes:
        tool: Name of the tool.
        num_prompts: Number of compared prompts, each at its level.
        num_log_probs: Number of compared log-probs.
        largest: Largest difference of a log-prob, in nats.
        tolerance: Largest difference that is accepted.
        problems: Prompts whose token ids differ, and replies without any log-prob.
        notes: Further results.
    """

    tool: str
    num_prompts: int
    num_log_probs: int
    largest: float
    tolerance: float
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passes(self) -> bool:
        """Whether ids are equal and no difference exceeds the tolerance."""
        return not self.problems and self.largest <= self.tolerance

    def __str__(self) -> str:
        return (
            f"{self.num_prompts} held-out prompts read with {self.tool}: largest difference of {self.num_log_probs} "
            f"log-probs {self.largest:.2g} nats (tolerance {self.tolerance:g})"
        )


@torch.no_grad()
def record_cases(
    policy: Policy, prompt_format: PromptFormat, prompts: Sequence[Prompt], levels: dict[str, Weights]
) -> list[ParityCase]:
    """Return a case for every prompt at every level.

    Args:
        policy: Language model and control.
        prompt_format: Format of the prompts.
        prompts: The prompts.
        levels: Weights [K] by the text of a level.
    """
    encoder = policy.control.encoder(prompt_format, embedding_rows(policy.lm))
    ends = end_tokens(policy.lm, prompt_format.tokenizer)
    cases = []
    for level, weights in levels.items():
        branches = {row: Branch(tuple(encoder.prompt(prompt, weights)), weights) for row, prompt in enumerate(prompts)}
        decoder = decoder_of(policy)
        first = decoder.add(branches, dict.fromkeys(branches, REPLY_TOKENS)).log_softmax(dim=-1)
        log_probs = {row: [of_row] for row, of_row in zip(branches, first, strict=True)}
        for _ in range(REPLY_TOKENS - 1):
            tokens = torch.stack([log_probs[row][-1].argmax() for row in decoder.rows])
            for row, of_row in zip(decoder.rows, decoder.step(tokens).log_softmax(dim=-1), strict=True):
                log_probs[row].append(of_row)
        for row, prompt in enumerate(prompts):
            reply = [int(of_token.argmax()) for of_token in log_probs[row]]
            length = next((index + 1 for index, token in enumerate(reply) if token in ends), len(reply))
            top = torch.stack(log_probs[row][:length]).topk(CANDIDATES, dim=-1)
            ids, reply = branches[row].ids, reply[:length]
            cases.append(ParityCase(prompt, row + 1, level, weights, ids, tuple(reply), top.indices, top.values))
    return cases


def compare(
    cases: Sequence[ParityCase], outputs: Iterable[ToolOutput], tool: str, tolerance: float, prompt_format: PromptFormat
) -> Parity:
    """Return how far the outputs of another tool are from the run.

    Args:
        cases: The cases.
        outputs: The tool's output for each case.
        tool: Name of the tool.
        tolerance: Largest difference of a log-prob that is accepted, in nats.
        prompt_format: Shows the text of tokens in messages.
    """
    largest, num_log_probs, problems = 0.0, 0, []
    notes: dict[str, None] = {}
    for case, output in zip(cases, outputs, strict=True):
        place = f"held-out prompt {case.number} at level {case.level}"
        if output.ids != case.ids:
            problems.append(f"{place}: {ids_difference(case.ids, output.ids, prompt_format)}")
        differences = (output.log_probs - case.log_probs).abs()
        is_reported = ~output.log_probs.isnan()
        if not is_reported.any():
            problems.append(f"{place}: {tool} returned no log-prob of the run's most likely tokens")
            continue
        num_log_probs += int(is_reported.sum())
        largest = max(largest, float(differences[is_reported].max()))
        if output.note:
            notes[output.note] = None
    return Parity(tool, len(cases), num_log_probs, largest, tolerance, problems, list(notes))


def ids_difference(expected: Sequence[int], actual: Sequence[int], prompt_format: PromptFormat) -> str:
    """Return where two sequences of ids differ first, in words."""
    first = next(
        (index for index, pair in enumerate(zip(expected, actual, strict=False)) if pair[0] != pair[1]),
        min(len(expected), len(actual)),
    )

    def show(ids: Sequence[int]) -> str:
        if first >= len(ids):
            return "the end"
        return f"{prompt_format.tokenizer.convert_ids_to_tokens(ids[first])!r} ({ids[first]})"

    return (
        f"token ids of the prompt differ at position {first + 1}: {show(actual)}, and the run reads {show(expected)} "
        f"({len(actual)} and {len(expected)} tokens)"
    )
