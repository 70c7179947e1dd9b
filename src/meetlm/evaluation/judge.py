"""An LLM as the judge of pairs: each is shown in both orders, and both verdicts become one outcome (appendix C).

Replies that are the same, but for white space around them, are a tie without asking: a judge would be shown the same
thing in both orders, and what it says of that tells nothing of either.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from meetlm.data.example import Prompt
from meetlm.evaluation.judge_account import (
    Found,
    Judgement,
    Prices,
    by_system,
    consistency_of,
    finish_reasons,
    problems_of,
    usage,
)
from meetlm.evaluation.judge_cache import Answer, AnswerCache, Call
from meetlm.evaluation.judge_client import EndpointSettings, ask
from meetlm.evaluation.judge_prompts import JudgePrompt, Verdict, load_prompt
from meetlm.evaluation.outcomes import by_judge, judge_margin
from meetlm.evaluation.record import JudgeAccount, Outcome, Problem

Pair = tuple[Prompt, str, str]
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


def judge(
    pairs: Sequence[Pair],
    settings: JudgeSettings,
    cache_dir: Path,
    on_done: Callable[[int], object] | None = None,
    *,
    names: Sequence[str] | None = None,
    systems: Sequence[str] | None = None,
) -> Judged:
    """Ask a judge about every pair in both orders.

    Answers are kept in ``cache_dir`` as they arrive, whatever they say: what is there is not asked again, and where all
    of it is, neither key nor endpoint is needed. Calls that are the same to the letter are sent once. An empty
    completion is judged like any other, and named; replies that are the same are not asked about.

    Args:
        pairs: What is compared.
        settings: Of the judge.
        cache_dir: Folder of the answers; made where it is missing.
        on_done: Called with a number of judgements as they are done, of two a pair, whether asked about or not.
        names: Of pairs, for problems (such as ids of prompts); ``pair 1``, … by default.
        systems: Of pairs: for each of these, the account says how far both orders agree; one for all by default.

    Raises:
        ConfigError: The prompt is wrong, or the endpoint does not answer
            (see :func:`meetlm.evaluation.judge_client.ask`).
    """
    prompt = load_prompt(settings.prompt)
    called = list(names) if names is not None else [f"pair {number}" for number in range(1, len(pairs) + 1)]
    whose = list(systems) if systems is not None else [""] * len(pairs)
    assert len(called) == len(whose) == len(pairs), "one name and one system a pair"
    on_done = on_done or (lambda number: None)
    asked = [place for place, (_, ours, theirs) in enumerate(pairs) if ours.strip() != theirs.strip()]
    if num_same := len(pairs) - len(asked):
        on_done(2 * num_same)
    judgements = [
        _judgement(order, whose[place], called[place], pairs[place], prompt, settings)
        for place in asked
        for order in (0, 1)
    ]
    with AnswerCache(cache_dir) as cache:
        kept = {one.key: known for one in judgements if (known := cache.get(one.key))}
        usable = {key: one for key, one in kept.items() if not settings.ask_again or prompt.verdict(one.text)}
        found = Found(usable)
        num_cached = sum(one.key in found.answers for one in judgements)
        _ask_missing(judgements, settings, cache, found, on_done, kept.values())
        found.every = {one.key: cache.every(one.key) for one in judgements}
        damaged = [_damaged(cache)] if cache.damaged else []
    for one in judgements:
        verdict = prompt.verdict(found.answers[one.key].text) if one.key in found.answers else None
        one.outcome = _SEEN[one.order][verdict] if verdict else None
    outcomes: list[Outcome | None] = ["tie"] * len(pairs)
    margins: list[float | None] = [0.0] * len(pairs)
    for place, one, other in zip(asked, judgements[0::2], judgements[1::2], strict=True):
        outcomes[place] = by_judge(one.outcome, other.outcome) if one.outcome and other.outcome else None
        margins[place] = judge_margin(one.outcome, other.outcome) if one.outcome and other.outcome else None
    account = JudgeAccount(
        model=settings.model,
        base_url=settings.base_url,
        prompt=settings.prompt,
        prompt_text=prompt.text,
        overall=consistency_of(judgements, found),
        num_cached=num_cached,
        this_run=usage(found.this_run, settings.prices),
        kept=usage([answer for every in found.every.values() for answer in every], settings.prices),
        num_same=num_same,
        finish_reasons=finish_reasons(judgements, found),
        by_system=by_system(judgements, found) if systems is not None else {},
    )
    problems = [*damaged, *problems_of(judgements, found), *_empty_completions(pairs, called)]
    return Judged(outcomes, margins, account, problems)


def _judgement(
    order: Literal[0, 1], system: str, name: str, pair: Pair, prompt: JudgePrompt, settings: JudgeSettings
) -> Judgement:
    question, ours, theirs = pair
    call = settings.call(prompt.messages(question, *((ours, theirs) if order == 0 else (theirs, ours))))
    return Judgement(order, system, repr(question), f"{name}, {_ORDERS[order]}", call, call.key)


def _ask_missing(
    judgements: Sequence[Judgement],
    settings: JudgeSettings,
    cache: AnswerCache,
    found: Found,
    on_done: Callable[[int], object],
    kept: Collection[Answer],
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

    def answered(call: Call, answer: Answer, final: bool) -> None:
        cache.add(call, answer, final=final)
        found.this_run.append(answer)
        if final:
            key = by_call[id(call)]
            found.answers[key] = answer
            on_done(waiting[key])

    def failed(call: Call, why: str) -> None:
        key = by_call[id(call)]
        found.failures[key] = why
        on_done(waiting[key])

    ask(list(calls.values()), settings, answered, failed, kept=kept)


def _empty_completions(pairs: Sequence[Pair], names: Sequence[str]) -> list[Problem]:
    empty = [
        f"{name}, {whose}"
        for name, (_, ours, theirs) in zip(names, pairs, strict=True)
        for whose, text in (("the system's", ours), ("the baseline's", theirs))
        if not text.strip()
    ]
    return [Problem("judge: empty completions, compared like any other", len(empty), empty)] if empty else []


def _damaged(cache: AnswerCache) -> Problem:
    what = "judge: damaged lines among the answers on disk, as a kill leaves them; their calls are asked again"
    return Problem(what, len(cache.damaged), cache.damaged, of_rows=False)
