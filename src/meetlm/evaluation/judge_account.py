"""A judge's account: how far its two orders agree, what its answers cost, and which of them say nothing.

A judge may go by the position alone, so the account says how often both orders agree, and what a judge that cannot see
the completions at all would reach. Where the two cannot be told apart, no conclusion can be drawn from its outcomes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from meetlm.config.settings import Settings
from meetlm.diagnostics.intervals import mean_interval
from meetlm.evaluation.judge_cache import Answer, Call
from meetlm.evaluation.record import Consistency, Outcome, Problem, Usage


class Prices(Settings):
    """What an endpoint takes, per million tokens, in any currency.

    Attributes:
        prompt: For tokens that it reads.
        completion: For tokens that it writes.
    """

    prompt: float = Field(ge=0, description="per million prompt tokens")
    completion: float = Field(ge=0, description="per million completion tokens")


@dataclass(slots=True)
class Judgement:
    """One pair in one order; those of a pair stand one after the other.

    Attributes:
        order: 0 where the system is shown first.
        system: Whose reply is compared with the baseline's.
        prompt: What the pair answers, as one text.
        name: For messages.
        call: What is sent.
        key: The call's.
        outcome: From the system's view; ``None`` while, or where, there is none.
    """

    order: Literal[0, 1]
    system: str
    prompt: str
    name: str
    call: Call
    key: str
    outcome: Outcome | None = None


@dataclass(slots=True)
class Found:
    """What came back, by the key of the call.

    Attributes:
        answers: The one that counts.
        failures: Why there is none.
        every: All that are kept, those of earlier runs too.
        this_run: All that came in this run, in their order.
    """

    answers: dict[str, Answer] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    every: dict[str, Sequence[Answer]] = field(default_factory=dict)
    this_run: list[Answer] = field(default_factory=list)

    def without_verdict(self, judgements: Sequence[Judgement]) -> list[tuple[Judgement, Answer]]:
        """Return the judgements whose answer says none."""
        return [(one, self.answers[one.key]) for one in judgements if one.key in self.answers and not one.outcome]


def consistency_chance(both: Sequence[tuple[Outcome, Outcome]]) -> float:
    """Return how often a judge that cannot see the completions would give both orders the same outcome.

    Such a judge says A with some chance a, B with b and tie with c, whatever it is shown. From the system's view both
    orders then agree where it says A in one and B in the other, or tie in both: 2ab + c². a, b and c are the shares
    of this judge's verdicts in both orders together. One half for a fair coin, 0 for a judge that always says A: the
    consistency of such judges too, so above chance means that a judge sees the completions.

    Args:
        both: Outcomes of pairs, the system shown first and shown second; at least one.
    """
    size = 2 * len(both)
    a = sum((first == "win") + (second == "lose") for first, second in both) / size
    b = sum((first == "lose") + (second == "win") for first, second in both) / size
    return 2 * a * b + (1 - a - b) ** 2


def consistency_of(judgements: Sequence[Judgement], found: Found) -> Consistency:
    """Return how far both orders of some pairs agree."""
    pairs = zip(judgements[0::2], judgements[1::2], strict=True)
    told = [(one.prompt, one.outcome, other.outcome) for one, other in pairs if one.outcome and other.outcome]
    consistency = chance = None
    if told:
        agree = [float(first == second) for _, first, second in told]
        consistency = mean_interval(agree, [prompt for prompt, _, _ in told], bounds=(0, 1))
        chance = consistency_chance([(first, second) for _, first, second in told])
    return Consistency(
        num_calls=len(judgements),
        num_unparsable=len(found.without_verdict(judgements)),
        num_failed=sum(one.key in found.failures for one in judgements),
        consistency=consistency,
        chance=chance,
        conclusive=consistency is not None and chance is not None and consistency.low > chance,
    )


def by_system(judgements: Sequence[Judgement], found: Found) -> dict[str, Consistency]:
    """Return how far both orders agree for each system that was asked about."""
    names = dict.fromkeys(one.system for one in judgements)
    return {name: consistency_of([one for one in judgements if one.system == name], found) for name in names}


def usage(answers: Sequence[Answer], prices: Prices | None) -> Usage:
    """Return what answers cost; tokens and cost are not known where one of them came without its token counts."""
    read = [one.prompt_tokens for one in answers if one.prompt_tokens is not None]
    written = [one.completion_tokens for one in answers if one.completion_tokens is not None]
    if not len(read) == len(written) == len(answers):
        return Usage(len(answers), None, None, None)
    cost = (sum(read) * prices.prompt + sum(written) * prices.completion) / 1e6 if prices else None
    return Usage(len(answers), sum(read), sum(written), cost)


def finish_reasons(judgements: Sequence[Judgement], found: Found) -> dict[str, int]:
    """Return with which finish reasons answers without a verdict came, the most frequent first."""
    counts = Counter(answer.finish_reason or "not told" for _, answer in found.without_verdict(judgements))
    return dict(counts.most_common())


def problems_of(judgements: Sequence[Judgement], found: Found) -> list[Problem]:
    """Return what is wrong with answers, named and counted."""
    silent = found.without_verdict(judgements)
    kinds = {
        "empty": sum(answer.is_empty for _, answer in silent),
        "cut off at the most tokens": sum(answer.finish_reason == "length" for _, answer in silent),
        "filtered by the endpoint": sum(answer.finish_reason == "content_filter" for _, answer in silent),
    }
    of_them = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)
    uncounted = [
        one.name
        for one in judgements
        if any(None in (each.prompt_tokens, each.completion_tokens) for each in found.every.get(one.key, ()))
    ]
    listed = [
        (
            "judge: answers without a verdict, so that their pairs have no outcome"
            + (f" (of them: {of_them})" if of_them else ""),
            [f"{one.name}: {_shown(answer)}" for one, answer in silent],
            True,
        ),
        (
            "judge: calls that failed for good, so that their pairs have no outcome",
            [f"{one.name}: {found.failures[one.key]}" for one in judgements if one.key in found.failures],
            True,
        ),
        ("judge: answers that came without token counts, so that tokens and cost are not known", uncounted, False),
    ]
    return [Problem(what, len(those), those, of_rows) for what, those, of_rows in listed if those]


def _shown(answer: Answer, most: int = 120) -> str:
    """Return an answer in short, with its finish reason where that is not the usual one."""
    if answer.is_empty:
        return f"an empty answer (finish_reason {answer.finish_reason})"
    text = answer.text if len(answer.text) <= most else answer.text[: most - 1] + "…"
    return repr(text) + (
        f" (finish_reason {answer.finish_reason})" if answer.finish_reason not in (None, "stop") else ""
    )
