"""An LLM as the judge of pairs: each is shown in both orders, and both verdicts become one outcome (appendix C).

A judge may go by the position alone, so the account says how often both orders agree, and what a judge that cannot see
the completions at all would reach. Where the two cannot be told apart, no conclusion can be drawn from its outcomes.

Replies that are the same, but for white space around them, are a tie without asking: a judge would be shown the same
thing in both orders, and what it says of that tells nothing of either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import NormalDist
from typing import Literal, NamedTuple

from pydantic import Field

from meetlm.config.settings import Settings
from meetlm.evaluation.judge_cache import Answer, AnswerCache, Call
from meetlm.evaluation.judge_client import EndpointSettings, ask
from meetlm.evaluation.judge_prompts import JudgePrompt, Messages, Verdict, load_prompt
from meetlm.evaluation.outcomes import by_judge, judge_margin
from meetlm.evaluation.record import Interval, JudgeAccount, Outcome, Problem

Pair = tuple[str | Messages, str, str]
"""A prompt, the system's completion, the baseline's."""


class Judged(NamedTuple):
    """What :func:`judge` found.

    Attributes:
        outcomes: Of the system, one a pair; ``None`` where an order has no verdict: its call failed for good, or its
            answer says none.
        margins: Likewise: the mean of both orders, a win being 1, a tie 0, a loss -1.
        account: Of the judge.
        problems: Named and counted.
    """

    outcomes: list[Outcome | None]
    margins: list[float | None]
    account: JudgeAccount
    problems: list[Problem]


_SEEN: tuple[dict[Verdict, Outcome], dict[Verdict, Outcome]] = (
    {"A": "win", "B": "lose", "tie": "tie"},
    {"A": "lose", "B": "win", "tie": "tie"},
)
"""A verdict from the system's view: where the system is shown first, and where it is shown second."""

_ORDERS = ("shown first", "shown second")


class Prices(Settings):
    """What an endpoint takes, per million tokens, in any currency.

    Attributes:
        prompt: For tokens that it reads.
        completion: For tokens that it writes.
    """

    prompt: float = Field(ge=0, description="per million prompt tokens")
    completion: float = Field(ge=0, description="per million completion tokens")


class JudgeSettings(EndpointSettings):
    """A judge: an endpoint and what it is asked.

    Attributes:
        prompt: ``summary``, ``dialogue`` or a file (see :mod:`meetlm.evaluation.judge_prompts`).
        prices: Of the endpoint; ``None`` leaves the cost open.
        ask_again: Ask again where the kept answer holds no verdict. Other answers are used as they are.
    """

    prompt: str = Field(description="summary, dialogue or a prompt file")
    prices: Prices | None = Field(None, description="per million tokens; null leaves the cost open")
    ask_again: bool = Field(False, description="ask again where the kept answer holds no verdict")


@dataclass(slots=True)
class _Judgement:
    """One pair in one order.

    Attributes:
        order: 0 where the system is shown first.
        name: For messages.
        call: What is sent.
        key: The call's.
        outcome: From the system's view; ``None`` while, or where, there is none.
    """

    order: Literal[0, 1]
    name: str
    call: Call
    key: str
    outcome: Outcome | None = None


@dataclass(slots=True)
class _Found:
    """What came back, by the key of the call."""

    answers: dict[str, Answer] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def judge(
    pairs: Sequence[Pair],
    settings: JudgeSettings,
    cache_dir: Path,
    on_done: Callable[[int], object] | None = None,
    *,
    names: Sequence[str] | None = None,
) -> Judged:
    """Ask a judge about every pair in both orders.

    Answers are kept in ``cache_dir`` as they arrive: what is there is not asked again, and where all of it is, neither
    key nor endpoint is needed. Calls that are the same to the letter are sent once. An empty completion is judged like
    any other, and named; replies that are the same are not asked about.

    Args:
        pairs: What is compared.
        settings: Of the judge.
        cache_dir: Folder of the answers; made where it is missing.
        on_done: Called with a number of judgements as they are done, of two a pair, whether asked about or not.
        names: Of pairs, for problems (such as ids of prompts); ``pair 1``, … by default.

    Raises:
        ConfigError: The prompt is wrong, or the endpoint does not answer
            (see :func:`meetlm.evaluation.judge_client.ask`).
    """
    prompt = load_prompt(settings.prompt)
    called = list(names) if names is not None else [f"pair {number}" for number in range(1, len(pairs) + 1)]
    assert len(called) == len(pairs), "one name a pair"
    on_done = on_done or (lambda number: None)
    asked = [place for place, (_, ours, theirs) in enumerate(pairs) if ours.strip() != theirs.strip()]
    if num_same := len(pairs) - len(asked):
        on_done(2 * num_same)
    judgements = [
        _judgement(order, called[place], pairs[place], prompt, settings) for place in asked for order in (0, 1)
    ]
    with AnswerCache(cache_dir) as cache:
        kept = {one.key: known for one in judgements if (known := cache.get(one.key))}
        answers = bool(kept)
        if settings.ask_again:
            kept = {key: answer for key, answer in kept.items() if prompt.verdict(answer.text)}
        found = _Found(kept)
        num_cached = sum(one.key in found.answers for one in judgements)
        _ask_missing(judgements, settings, cache, found, on_done, answers=answers)
        problems = [_damaged(cache)] if cache.damaged else []
    for one in judgements:
        verdict = prompt.verdict(found.answers[one.key].text) if one.key in found.answers else None
        one.outcome = _SEEN[one.order][verdict] if verdict else None
    both = [(first.outcome, second.outcome) for first, second in zip(judgements[0::2], judgements[1::2], strict=True)]
    outcomes: list[Outcome | None] = ["tie"] * len(pairs)
    margins: list[float | None] = [0.0] * len(pairs)
    for place, (first, second) in zip(asked, both, strict=True):
        outcomes[place] = by_judge(first, second) if first and second else None
        margins[place] = judge_margin(first, second) if first and second else None
    problems += _problems(pairs, called, judgements, found)
    account = _account(settings, prompt, [pairs[place] for place in asked], judgements, both, found, num_cached)
    return Judged(outcomes, margins, replace(account, num_same=num_same), problems)


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


def wilson(share: float, num: int, confidence: float = 0.95) -> Interval:
    """Return a share with its score interval (Wilson, 1927), which has a width for 0 and 1 too.

    Args:
        share: Observed, in [0, 1].
        num: Independent observations behind it, at least one; ``share`` need not be a multiple of 1 / ``num``.
        confidence: Of the interval.
    """
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    middle = (share + z2 / (2 * num)) / (1 + z2 / num)
    half = math.sqrt(z2 * (share * (1 - share) / num + z2 / (4 * num**2))) / (1 + z2 / num)
    low = 0.0 if share == 0 else max(middle - half, 0.0)
    return Interval(share, low, 1.0 if share == 1 else min(middle + half, 1.0))


def _judgement(order: Literal[0, 1], name: str, pair: Pair, prompt: JudgePrompt, settings: JudgeSettings) -> _Judgement:
    question, ours, theirs = pair
    call = settings.call(prompt.messages(question, *((ours, theirs) if order == 0 else (theirs, ours))))
    return _Judgement(order, f"{name}, {_ORDERS[order]}", call, call.key)


def _ask_missing(
    judgements: Sequence[_Judgement],
    settings: JudgeSettings,
    cache: AnswerCache,
    found: _Found,
    on_done: Callable[[int], object],
    *,
    answers: bool,
) -> None:
    waiting: dict[str, int] = {}
    calls: dict[str, Call] = {}
    for one in judgements:
        if one.key in found.answers:
            on_done(1)
        else:
            waiting[one.key] = waiting.get(one.key, 0) + 1
            calls[one.key] = one.call
    by_call = {id(call): key for key, call in calls.items()}

    def answered(call: Call, answer: Answer) -> None:
        cache.add(call, answer)
        key = by_call[id(call)]
        found.answers[key] = answer
        on_done(waiting[key])

    def failed(call: Call, why: str) -> None:
        key = by_call[id(call)]
        found.failures[key] = why
        on_done(waiting[key])

    ask(list(calls.values()), settings, answered, failed, answers=answers)


def _account(
    settings: JudgeSettings,
    prompt: JudgePrompt,
    pairs: Sequence[Pair],
    judgements: Sequence[_Judgement],
    both: Sequence[tuple[Outcome | None, Outcome | None]],
    found: _Found,
    num_cached: int,
) -> JudgeAccount:
    told = [(pair, first, second) for pair, (first, second) in enumerate(both) if first and second]
    consistency = chance = None
    if told:
        # Replies to one prompt under several seeds are no independent observations: what counts is prompts.
        num_prompts = len({repr(pairs[pair][0]) for pair, _, _ in told})
        consistency = wilson(sum(first == second for _, first, second in told) / len(told), num_prompts)
        chance = consistency_chance([(first, second) for _, first, second in told])
    used = [(one.prompt_tokens, one.completion_tokens) for one in found.answers.values()]
    read = [tokens for tokens, _ in used if tokens is not None]
    written = [tokens for _, tokens in used if tokens is not None]
    known = bool(used) and len(read) == len(written) == len(used)
    prices = settings.prices
    return JudgeAccount(
        model=settings.model,
        base_url=settings.base_url,
        prompt=settings.prompt,
        prompt_text=prompt.text,
        num_calls=len(judgements),
        num_cached=num_cached,
        num_unparsable=sum(one.key in found.answers and not one.outcome for one in judgements),
        num_failed=sum(one.key in found.failures for one in judgements),
        consistency=consistency,
        chance=chance,
        conclusive=consistency is not None and chance is not None and consistency.low > chance,
        prompt_tokens=sum(read) if known else None,
        completion_tokens=sum(written) if known else None,
        cost=(sum(read) * prices.prompt + sum(written) * prices.completion) / 1e6 if known and prices else None,
    )


def _problems(
    pairs: Sequence[Pair], names: Sequence[str], judgements: Sequence[_Judgement], found: _Found
) -> list[Problem]:
    unparsable = [(one, found.answers[one.key]) for one in judgements if one.key in found.answers and not one.outcome]
    cut_off = sum(answer.finish_reason == "length" for _, answer in unparsable)
    empty = [
        f"{name}, {whose}"
        for name, (_, ours, theirs) in zip(names, pairs, strict=True)
        for whose, text in (("the system's", ours), ("the baseline's", theirs))
        if not text.strip()
    ]
    uncounted = [
        one.name
        for one in judgements
        if one.key in found.answers
        and None in (found.answers[one.key].prompt_tokens, found.answers[one.key].completion_tokens)
    ]
    cut = f" ({cut_off} of them cut off at the most tokens)" if cut_off else ""
    said = [f"{one.name}: {_head(answer.text)!r}" for one, answer in unparsable]
    failed = [f"{one.name}: {found.failures[one.key]}" for one in judgements if one.key in found.failures]
    listed = [
        (f"judge: answers without a verdict, so that their pairs have no outcome{cut}", said, True),
        ("judge: calls that failed for good, so that their pairs have no outcome", failed, True),
        ("judge: empty completions, compared like any other", empty, True),
        ("judge: answers that came without token counts, so that tokens and cost are not known", uncounted, False),
    ]
    return [Problem(what, len(those), those, of_rows) for what, those, of_rows in listed if those]


def _damaged(cache: AnswerCache) -> Problem:
    what = "judge: damaged lines among the answers on disk, as a kill leaves them; their calls are asked again"
    return Problem(what, len(cache.damaged), cache.damaged, of_rows=False)


def _head(text: str, most: int = 120) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
