"""An LLM as the judge of pairs: each pair is shown in both orders, and both verdicts give one outcome (appendix C).

Replies that are equal, apart from white space around them, are a tie without a call: the judge would be shown the same
text twice.

Every response is written to ``judge_calls.jsonl`` as it arrives, together with the request; empty and cut responses
too, since they were paid for. So an interrupted evaluation continues, and a repeated one makes no calls. A call is
identified by a hash of endpoint, model, messages and sampling settings. Of several responses to a call the last counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from meetlm.config.journal import Journal
from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.example import Prompt
from meetlm.evaluation.judge_client import Call, JudgeResponse, ask
from meetlm.evaluation.judge_prompts import DEFAULT, JudgePrompt, Verdict, load_prompt
from meetlm.evaluation.judge_summary import Judgement, consistency_of, problems_of, usage
from meetlm.evaluation.outcomes import Column, Outcome, decide, judge_margin
from meetlm.evaluation.record import JudgeAccount, Problem
from meetlm.evaluation.settings import JudgeSettings

FILE = "judge_calls.jsonl"
Pair = tuple[Prompt, str, str]
"""A prompt, the system's completion, the baseline's."""

_OUTCOMES: tuple[dict[Verdict, Outcome], dict[Verdict, Outcome]] = (
    {"A": "win", "B": "lose", "tie": "tie"},
    {"A": "lose", "B": "win", "tie": "tie"},
)
"""The outcome for the system by verdict: where the system is shown first, and where it is shown second."""
_ORDERS = ("shown first", "shown second")


class Judged(NamedTuple):
    """The result of :func:`judge`.

    Attributes:
        outcomes: The system's outcome for each pair; ``None`` if one of the orders has no verdict.
        margins: The mean of both verdicts for each pair: a win is 1, a tie 0, a loss -1.
        account: What the judge was asked and how it responded.
        problems: Responses and calls that the report must mention.
    """

    outcomes: list[Outcome | None]
    margins: Column
    account: JudgeAccount
    problems: list[Problem]


def choose_prompts(ids: Sequence[str], number: int, seed: int) -> set[str]:
    """Return ``number`` of the prompts, or all: the first by a hash of seed and id.

    A prompt that is added or removed displaces at most one other, so a judge's stored responses stay useful.
    """
    return set(sorted(ids, key=lambda prompt: sha256(f"{seed}:{prompt}".encode()).digest())[:number])


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

    Calls with a stored response are not repeated; where there is one for every call, neither key nor endpoint is
    needed. Equal calls are sent once.

    Args:
        pairs: What is compared.
        settings: Settings of the judge.
        cache_dir: Folder of the responses; created where it is missing.
        names: Names of the pairs in problems; ``pair 1``, … by default.
        systems: The system of each pair: the account has the agreement between both orders for each system.
        reporter: Shows the progress.

    Raises:
        ConfigError: The judge prompt is wrong, or the endpoint does not answer
            (see :func:`meetlm.evaluation.judge_client.ask`).
    """
    prompt_name = settings.prompt or DEFAULT
    prompt = load_prompt(prompt_name)
    pair_names = names if names is not None else [f"pair {number}" for number in range(1, len(pairs) + 1)]
    pair_systems = systems if systems is not None else [""] * len(pairs)
    with Journal(cache_dir / FILE) as journal:
        stored, damaged = _stored_responses(journal)
        judgements = [
            Judgement(index, order, system, question.id, f"{name}, {_ORDERS[order]}", call, stored[call.key])
            for index, ((question, *replies), system, name) in enumerate(
                zip(pairs, pair_systems, pair_names, strict=True)
            )
            if replies[0].strip() != replies[1].strip()
            for order in (0, 1)
            for call in [Call.to_judge(settings, prompt.messages(question, replies[order], replies[1 - order]))]
        ]
        num_cached, new_responses = _ask(judgements, prompt, settings, journal, reporter)
    for judgement in judgements:
        verdict = prompt.verdict(judgement.response.text) if judgement.response else None
        judgement.outcome = _OUTCOMES[judgement.order][verdict] if verdict else None
    margins: Column = [0.0] * len(pairs)
    for first, second in zip(judgements[0::2], judgements[1::2], strict=True):
        first_outcome, second_outcome = first.outcome, second.outcome
        margins[first.pair] = judge_margin(first_outcome, second_outcome) if first_outcome and second_outcome else None
    account = JudgeAccount(
        model=settings.model,
        base_url=settings.base_url,
        prompt=prompt_name,
        prompt_text=prompt.text,
        overall=consistency_of(judgements),
        num_cached=num_cached,
        this_run=usage(new_responses, settings.prices),
        stored=usage(
            [response for key in {judgement.call.key for judgement in judgements} for response in stored[key]],
            settings.prices,
        ),
        num_identical=len(pairs) - len(judgements) // 2,
        by_system={
            name: consistency_of([judgement for judgement in judgements if judgement.system == name])
            for name in dict.fromkeys(judgement.system for judgement in judgements)
            if systems is not None
        },
    )
    description = "judge: damaged lines among the stored responses (an interruption cuts a line); asked again"
    problems = [Problem(description, damaged), *problems_of(judgements)]
    return Judged(decide(margins), margins, account, [problem for problem in problems if problem.examples])


def _stored_responses(journal: Journal) -> tuple[defaultdict[str, list[JudgeResponse]], list[str]]:
    """Return the responses to each call by its key, in the order of their arrival, and the damaged lines."""
    responses: defaultdict[str, list[JudgeResponse]] = defaultdict(list)
    damaged = list(journal.damaged)
    for entry in journal.entries:
        try:
            responses[entry["key"]].append(JudgeResponse(**entry["answer"]))
        except (KeyError, TypeError):
            damaged.append(str(journal.path))
    return responses, damaged


def _ask(
    judgements: Sequence[Judgement], prompt: JudgePrompt, settings: JudgeSettings, journal: Journal, reporter: Reporter
) -> tuple[int, list[JudgeResponse]]:
    """Add the missing responses; return the number of judgements that had one before, and the new responses."""
    by_key: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        by_key[judgement.call.key].append(judgement)
    missing = {
        key: group[0].call
        for key, group in by_key.items()
        if group[0].response is None or (settings.ask_again and not prompt.verdict(group[0].response.text))
    }
    num_cached = len(judgements) - sum(len(by_key[key]) for key in missing)
    new_responses: list[JudgeResponse] = []
    with reporter.progress("judge", total=len(missing), unit="call") as progress:

        def store(call: Call, result: JudgeResponse | str) -> None:
            if isinstance(result, JudgeResponse):
                entry = {"key": call.key, "time": datetime.now(UTC).isoformat(timespec="seconds")}
                journal.append(entry | asdict(call) | {"answer": asdict(result)})
                new_responses.append(result)
                by_key[call.key][0].responses.append(result)  # equal calls share the list
            else:
                for judgement in by_key[call.key]:
                    judgement.failure = result
            progress.advance()

        has_responses = any(judgement.responses for judgement in judgements)
        ask(list(missing.values()), settings, store, has_responses=has_responses)
    return num_cached, new_responses
