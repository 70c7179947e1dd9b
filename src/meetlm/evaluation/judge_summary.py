"""How far a judge can be trusted and what it cost: agreement between orders, responses without a verdict, usage.

A judge sees each pair in both orders, because it may decide by position alone. Its consistency is how often both orders
agree. If that does not differ significantly from the consistency of a judge that cannot see the completions, its
verdicts support no conclusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meetlm.diagnostics.intervals import mean_interval
from meetlm.evaluation.judge_client import Call, JudgeResponse
from meetlm.evaluation.outcomes import Outcome
from meetlm.evaluation.record import Consistency, Problem, Usage
from meetlm.evaluation.settings import Prices


@dataclass(slots=True)
class Judgement:
    """The judgement of one pair in one order; sequences of judgements hold both orders of a pair in turn.

    Attributes:
        pair: Index of the pair.
        order: 0 if the system is shown first.
        system: The system whose reply is compared with the baseline's.
        prompt: Id of the prompt.
        name: Name of the judgement in messages.
        call: The call that requests the judgement.
        responses: All stored responses to the call, oldest first.
        failure: Why there is no response.
        outcome: The verdict as an outcome for the system; ``None`` if there is none.
    """

    pair: int
    order: int
    system: str
    prompt: str
    name: str
    call: Call
    responses: list[JudgeResponse]
    failure: str | None = None
    outcome: Outcome | None = None

    @property
    def response(self) -> JudgeResponse | None:
        """The response that counts; ``None`` if there is none, or the last call failed."""
        return self.responses[-1] if self.responses and self.failure is None else None


def consistency_chance(outcomes: Sequence[tuple[Outcome, Outcome]]) -> float:
    """Return how often both orders would agree for a judge that cannot see the completions.

    Such a judge answers A with probability a, B with b and tie with c, whatever it is shown. Both orders agree on the
    winner if it answers A in one order and B in the other, or tie in both: with probability 2ab + c². a, b and c are
    estimated by the shares of this judge's verdicts over both orders. Chance is ½ for a fair coin, and 0 for a judge
    that always answers A, whose consistency is 0 as well. Only a judge that sees the completions exceeds chance.

    Args:
        outcomes: Outcomes of pairs, the system shown first and shown second; at least one pair.
    """
    size = 2 * len(outcomes)
    a = sum((first == "win") + (second == "lose") for first, second in outcomes) / size
    b = sum((first == "lose") + (second == "win") for first, second in outcomes) / size
    return 2 * a * b + (1 - a - b) ** 2


def consistency_of(judgements: Sequence[Judgement]) -> Consistency:
    """Return how often both orders of a pair agree, with counts of the calls."""
    pairs = zip(judgements[0::2], judgements[1::2], strict=True)
    decided = [(a.prompt, a.outcome, b.outcome) for a, b in pairs if a.outcome and b.outcome]
    consistency = chance = None
    if decided:
        agreements = [float(first == second) for _, first, second in decided]
        consistency = mean_interval(agreements, [prompt for prompt, _, _ in decided], bounds=(0, 1))
        chance = consistency_chance([(first, second) for _, first, second in decided])
    return Consistency(
        num_calls=len(judgements),
        num_without_verdict=len(_without_verdict(judgements)),
        num_failed=sum(judgement.failure is not None for judgement in judgements),
        consistency=consistency,
        chance=chance,
    )


def usage(responses: Sequence[JudgeResponse], prices: Prices | None) -> Usage:
    """Return what responses cost; tokens and cost are unknown where one of them has no token counts."""
    prompt_tokens = [response.prompt_tokens for response in responses if response.prompt_tokens is not None]
    completion_tokens = [response.completion_tokens for response in responses if response.completion_tokens is not None]
    if not len(prompt_tokens) == len(completion_tokens) == len(responses):
        return Usage(len(responses), None, None, None)
    num_prompt, num_completion = sum(prompt_tokens), sum(completion_tokens)
    cost = (num_prompt * prices.prompt + num_completion * prices.completion) / 1e6 if prices else None
    return Usage(len(responses), num_prompt, num_completion, cost)


def problems_of(judgements: Sequence[Judgement]) -> list[Problem]:
    """Return the problems of responses and calls; a problem that did not occur has no examples."""
    without_verdict = _without_verdict(judgements)
    num_cut = sum(response.finish_reason == "length" for _, response in without_verdict)
    cut = f" ({num_cut} cut off at --judge.max_tokens)" if num_cut else ""
    return [
        Problem(
            f"judge: responses without a verdict{cut}, so their pairs have no outcome; --judge.ask_again true repeats "
            "these calls",
            [f"{judgement.name}: {_excerpt(response)}" for judgement, response in without_verdict],
        ),
        Problem(
            "judge: failed calls, so their pairs have no outcome",
            [f"{judgement.name}: {judgement.failure}" for judgement in judgements if judgement.failure],
        ),
    ]


def _without_verdict(judgements: Sequence[Judgement]) -> list[tuple[Judgement, JudgeResponse]]:
    return [(judgement, judgement.response) for judgement in judgements if judgement.response and not judgement.outcome]


def _excerpt(response: JudgeResponse, length: int = 120) -> str:
    """Return the beginning of a response with its finish reason."""
    text = response.text if len(response.text) <= length else response.text[: length - 1] + "…"
    return f"{text!r} (finish_reason {response.finish_reason})"
