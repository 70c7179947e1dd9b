"""Rollouts: sample several replies per prompt from a run or a model, score them, and write them in TRL's formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from meetlm.config.errors import ConfigError
from meetlm.config.files import write_atomic
from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.example import Prompt
from meetlm.data.hh import ASSISTANT
from meetlm.evaluation.callables import load_scorer
from meetlm.evaluation.evaluate import Scorer
from meetlm.evaluation.outcomes import Column
from meetlm.evaluation.record import Problem
from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.reward_scorer import RewardScorer
from meetlm.evaluation.settings import RewardSettings
from meetlm.generation.settings import Sampling
from meetlm.run.aligned import Aligned, joined_reply
from meetlm.run.completions import complete_resumably
from meetlm.run.levels import Level

FORMATS = ("scores", "pairs", "unpaired")
"""TRL's formats: a score per reply; chosen and rejected; a label per reply."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A prompt with scored replies.

    Attributes:
        prompt: The prompt.
        replies: Texts of the replies.
        scores: A score per reply, higher is better.
    """

    prompt: Prompt
    replies: tuple[str, ...]
    scores: tuple[float, ...]


class LevelScorer:
    """Scores replies by the levels of a run (:meth:`Aligned.score`).

    Args:
        aligned: The run.
        attribute: As in :meth:`Aligned.score`.
    """

    name = "levels"
    description = "log p at the best level − log p at the worst level, in nats"
    higher_is_better = True

    def __init__(self, aligned: Aligned, attribute: str | None = None) -> None:
        self.aligned, self.attribute = aligned, attribute

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        chosen: Sequence[str | None],
        names: Sequence[str],
        *,
        reporter: Reporter = SILENT,
    ) -> tuple[Column, list[Problem]]:
        """Return the summed score of each completion; ``chosen`` and ``names`` are not used."""
        scores = self.aligned.score(prompts, completions, self.attribute, reporter=reporter)
        return [score.total for score in scores], []


def make_scorer(reward: RewardSettings | None, function: str | None, folder: Path) -> Scorer | None:
    """Return a scorer by a reward model or a Python function; ``None`` for neither.

    Args:
        reward: Settings of a reward model.
        function: Function as ``MODULE:FUNCTION``.
        folder: Folder where rewards are stored as they are computed.

    Raises:
        ConfigError: Both are set, or the scorer cannot be loaded.
    """
    if reward is not None and function is not None:
        raise ConfigError("--reward and --scorer are both set: choose one of them")
    if reward is not None:
        return RewardScorer(RewardModel.load(reward), folder)
    return None if function is None else load_scorer(function)


def sample_rollouts(
    aligned: Aligned,
    prompts: Sequence[Prompt],
    scorer: Scorer,
    sampling: Sampling,
    unfinished: Path,
    *,
    replies: int,
    level: Level | None = None,
    seed: int = 0,
    batch_size: int = 32,
    reporter: Reporter = SILENT,
) -> list[Rollout]:
    """Sample and score replies to each prompt; an interrupted call continues.

    Args:
        aligned: A run or a base model.
        prompts: The prompts.
        scorer: Scores the replies; where lower is better, the score is the negative value.
        sampling: How to sample.
        unfinished: Journal of the replies so far; the caller removes it when the results are written.
        replies: Number of replies per prompt.
        level: As in :meth:`Aligned.generate`.
        seed: Seed of sampling.
        batch_size: Prompts per batch.
        reporter: Shows the progress, and the number of replies without a score.

    Raises:
        ConfigError: ``replies`` is above 1 at temperature 0, or no reply to a prompt has a score.
    """
    if replies > 1 and sampling.temperature == 0:
        raise ConfigError("several replies require a temperature above 0: greedy decoding gives equal replies")
    repeated = [prompt for prompt in prompts for _ in range(replies)]
    level = aligned.default_level if level is None else level
    completions = complete_resumably(
        aligned, repeated, level, sampling, unfinished, seed=seed, batch_size=batch_size, reporter=reporter
    )
    texts = [completion.completion for completion in completions]
    names = [f"reply {number}" for number in range(1, len(texts) + 1)]
    values, problems = scorer.score(repeated, texts, [None] * len(texts), names, reporter=reporter)
    for problem in problems:
        reporter.warning(f"{scorer.name}: {problem}")
    sign = 1 if scorer.higher_is_better else -1
    scores = [None if value is None else sign * value for value in values]
    if None in scores:
        reporter.warning(f"{scores.count(None)} of {len(texts)} replies have no score and are left out")
    rollouts = []
    for start in range(0, len(texts), replies):
        scored = {index: score for index in range(start, start + replies) if (score := scores[index]) is not None}
        if not scored:
            raise ConfigError(f"no reply to the prompt {repeated[start].text()[:60]!r} has a score")
        rollouts.append(Rollout(repeated[start], tuple(texts[index] for index in scored), tuple(scored.values())))
    return rollouts


def write_rows(rollouts: Sequence[Rollout], out: Path, form: str, reporter: Reporter = SILENT) -> int:
    """Write rollouts in one of TRL's formats as JSON lines; return the number of rows.

    Args:
        rollouts: The rollouts.
        out: The file.
        form: A value of :data:`FORMATS`.
        reporter: Shows the number of prompts that give no pair.
    """
    rows = rows_of(rollouts, form)
    if form == "pairs" and len(rows) < len(rollouts):
        reporter.message(f"{len(rollouts) - len(rows)} of {len(rollouts)} prompts give no pair: their scores are equal")
    write_atomic(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)


def rows_of(rollouts: Sequence[Rollout], form: str) -> list[dict[str, Any]]:
    """Return rollouts as rows of one of TRL's formats.

    ``scores`` has a row per reply. ``pairs`` has the best and the worst reply of each prompt; a prompt whose replies
    have equal scores gives no row. ``unpaired`` has a row per reply; its label is whether the score is above the mean
    of the prompt's replies, and a reply at the mean gives no row. Pairs of HH transcripts are whole transcripts, as in
    HH.
    """
    rows: list[dict[str, Any]] = []
    for rollout in rollouts:
        prompt, scores = rollout.prompt.to_json(), rollout.scores
        completions = [_completion(rollout.prompt, text) for text in rollout.replies]
        if form == "scores":
            rows += [
                {"prompt": prompt, "completion": completion, "score": score}
                for completion, score in zip(completions, scores, strict=True)
            ]
        elif form == "unpaired":
            rows += [
                {"prompt": prompt, "completion": completion, "label": score > fmean(scores)}
                for completion, score in zip(completions, scores, strict=True)
                if score != fmean(scores)
            ]
        elif max(scores) > min(scores):
            best, worst = scores.index(max(scores)), scores.index(min(scores))
            columns = {"chosen": completions[best], "rejected": completions[worst]}
            if is_transcript(rollout.prompt):
                columns = {name: f"{prompt}{text}" for name, text in columns.items()}
            else:
                columns = {"prompt": prompt, **columns}
            rows.append({**columns, "score_chosen": scores[best], "score_rejected": scores[worst]})
    return rows


def is_transcript(prompt: Prompt) -> bool:
    """Return whether a prompt is an HH transcript."""
    return isinstance(prompt.content, str) and prompt.content.endswith(ASSISTANT)


def _completion(prompt: Prompt, text: str) -> str | list[dict[str, str]]:
    """Return a reply as TRL's formats have it."""
    return [{"role": "assistant", "content": text}] if prompt.is_chat else joined_reply(prompt, text).content
