"""An LLM as the judge of pairs: each pair is shown in both orders, and both verdicts give one outcome (appendix C).

Replies that are equal, apart from white space around them, are a tie without a call: the judge would be shown the same
text twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.example import Prompt
from meetlm.evaluation.judge_account import Judgement, consistency_of, finish_reasons, problems_of, usage
from meetlm.evaluation.judge_cache import ResponseCache
from meetlm.evaluation.judge_client import Call, JudgeResponse, ask
from meetlm.evaluation.judge_prompts import DEFAULT, JudgePrompt, Verdict, load_prompt
from meetlm.evaluation.outcomes import Outcome, by_judge, judge_margin
from meetlm.evaluation.record import JudgeAccount, Problem
from meetlm.evaluation.settings import JudgeSettings

Pair = tuple[Prompt, str, str]
"""A prompt, the system's completion, the baseline's."""


class Judged(NamedTuple):
    """The result of :func:`judge`.

    Attributes:
        outcomes: The system's outcome for each pair; ``None`` where one of the orders has no verdict.
        margins: The mean of both verdicts for each pair: a win is 1, a tie 0, a loss -1.
        account: What the judge was asked and how it answered.
        problems: Named and counted.
    """

    outcomes: list[Outcome | None]
    margins: list[float | None]
    account: JudgeAccount
    problems: list[Problem]


_OUTCOMES: tuple[dict[Verdict, Outcome], dict[Verdict, Outcome]] = (
    {"A": "win", "B": "lose", "tie": "tie"},
    {"A": "lose", "B": "win", "tie": "tie"},
)
"""The outcome from the system's view: where the system is shown first, and where it is shown second."""
_ORDERS = ("shown first", "shown second")


def judge(
    pairs: Sequence[Pair],
    settings: JudgeSettings,
    cache_dir: Path,
    *,
    names: Sequence[str] | None = None,
    systems: Sequence[str] | None = None,
    reporter: Reporter = SILENT,
) -> Judged:
    """Ask a judge about every pair in both orders.

    Responses are stored in ``cache_dir`` as they arrive. Calls with a stored response are not repeated; where there is
    one for every call, neither key nor endpoint is needed. Equal calls are sent once.

    Args:
        pairs: What is compared.
        settings: Settings of the judge.
        cache_dir: Folder of the responses; created where it is missing.
        names: Names of the pairs in problems; ``pair 1``, … by default.
        systems: The system of each pair: the account states how far both orders agree for each system.
        reporter: Shows the progress.

    Raises:
        ConfigError: The judge prompt is wrong, or the endpoint does not answer
            (see :func:`meetlm.evaluation.judge_client.ask`).
    """
    prompt_name = settings.prompt or DEFAULT
    prompt = load_prompt(prompt_name)
    pair_names = names if names is not None else [f"pair {number}" for number in range(1, len(pairs) + 1)]
    pair_systems = systems if systems is not None else [""] * len(pairs)
    assert len(pair_names) == len(pair_systems) == len(pairs), "one name and one system per pair"
    asked = [place for place, (_, ours, theirs) in enumerate(pairs) if ours.strip() != theirs.strip()]
    judgements = [
        judgement
        for place in asked
        for judgement in _judgements(pairs[place], pair_systems[place], pair_names[place], prompt, settings)
    ]
    with ResponseCache(cache_dir) as cache:
        num_cached, new_responses = _answer(judgements, prompt, settings, cache, reporter)
        stored = {judgement.key: cache.all(judgement.key) for judgement in judgements}
        damaged = cache.damaged
    for judgement in judgements:
        judgement.responses = stored[judgement.key]
        verdict = prompt.verdict(judgement.response.text) if judgement.response else None
        judgement.outcome = _OUTCOMES[judgement.order][verdict] if verdict else None
    outcomes: list[Outcome | None] = ["tie"] * len(pairs)
    margins: list[float | None] = [0.0] * len(pairs)
    for place, first, second in zip(asked, judgements[0::2], judgements[1::2], strict=True):
        decided = first.outcome and second.outcome and (first.outcome, second.outcome)
        outcomes[place] = by_judge(*decided) if decided else None
        margins[place] = judge_margin(*decided) if decided else None
    by_system = {
        name: consistency_of([judgement for judgement in judgements if judgement.system == name])
        for name in dict.fromkeys(judgement.system for judgement in judgements)
    }
    account = JudgeAccount(
        model=settings.model,
        base_url=settings.base_url,
        prompt=prompt_name,
        prompt_text=prompt.text,
        overall=consistency_of(judgements),
        num_cached=num_cached,
        this_run=usage(new_responses, settings.prices),
        kept=usage([response for responses in stored.values() for response in responses], settings.prices),
        num_same=len(pairs) - len(asked),
        finish_reasons=finish_reasons(judgements),
        by_system=by_system if systems is not None else {},
    )
    problems = [*_damaged(damaged), *problems_of(judgements), *_empty_completions(pairs, pair_names)]
    return Judged(outcomes, margins, account, problems)


def _judgements(pair: Pair, system: str, name: str, prompt: JudgePrompt, settings: JudgeSettings) -> list[Judgement]:
    """Return a pair in both orders."""
    question, ours, theirs = pair
    orders = ((ours, theirs), (theirs, ours))
    calls = [Call.to_judge(settings, prompt.messages(question, *replies)) for replies in orders]
    return [
        Judgement(order, system, question.id, f"{name}, {_ORDERS[order]}", call, call.key)
        for order, call in enumerate(calls)
    ]


def _answer(
    judgements: Sequence[Judgement],
    prompt: JudgePrompt,
    settings: JudgeSettings,
    cache: ResponseCache,
    reporter: Reporter,
) -> tuple[int, list[JudgeResponse]]:
    """Set the response or the failure of each judgement; return how many were stored, and the new responses."""
    by_key: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        by_key.setdefault(judgement.key, []).append(judgement)
        response = cache.get(judgement.key)
        if response and (not settings.ask_again or prompt.verdict(response.text)):
            judgement.response = response
    missing = {judgement.key: judgement.call for judgement in judgements if judgement.response is None}
    num_cached = sum(judgement.response is not None for judgement in judgements)
    has_responses = any(cache.get(key) for key in by_key)
    new_responses: list[JudgeResponse] = []
    with reporter.progress("judge", total=len(missing), unit="call") as progress:

        def on_response(call: Call, response: JudgeResponse) -> None:
            cache.add(call, response)
            new_responses.append(response)
            for judgement in by_key[call.key]:
                judgement.response = response
            progress.advance()

        def on_failure(call: Call, reason: str) -> None:
            for judgement in by_key[call.key]:
                judgement.failure = reason
            progress.advance()

        ask(list(missing.values()), settings, on_response, on_failure, has_responses=has_responses)
    return num_cached, new_responses


def _empty_completions(pairs: Sequence[Pair], names: Sequence[str]) -> list[Problem]:
    empty = [
        f"{name}, {owner}"
        for name, (_, ours, theirs) in zip(names, pairs, strict=True)
        for owner, text in (("the system's", ours), ("the baseline's", theirs))
        if not text.strip()
    ]
    return [Problem("judge: empty completions, compared like any other", len(empty), empty)] if empty else []


def _damaged(lines: list[str]) -> list[Problem]:
    text = "judge: damaged lines among the stored responses, as a kill leaves them; their calls are asked again"
    return [Problem(text, len(lines), lines, of_rows=False)] if lines else []
