"""Rewards on disk as they are computed: an interrupted evaluation continues, and a repeated one scores nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from meetlm.config.journal import Journal
from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.example import Prompt
from meetlm.evaluation.record import Problem
from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.reward_input import TokenizedRow
from meetlm.policy.fingerprint import sha256_of

CHUNK = 256
"""Rows scored between two writes."""
_IRRELEVANT_CONFIG = ("_name_or_path", "transformers_version")
"""Keys of a model's config that do not affect scores."""


class CachedRewardModel:
    """A reward model whose scores are kept in a folder.

    There is one file per weights, config and precision; within it a score is keyed by the row's token ids, so another
    tokenizer, chat template, form or maximum length never reuses a score.

    Args:
        model: Scores the rows that are not in the cache.
        folder: Folder of the cache; created with the first score.

    Attributes:
        weights_sha256: Hash of the model's weights.
        file: The file of scores.
    """

    def __init__(self, model: RewardModel, folder: Path) -> None:
        self.model = model
        config = {key: value for key, value in model.model.config.to_dict().items() if key not in _IRRELEVANT_CONFIG}
        self.weights_sha256 = sha256_of(model.model)
        identity = json.dumps([self.weights_sha256, config, model.precision], sort_keys=True, default=str)
        self.file = folder / f"reward-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.jsonl"

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        names: Sequence[str],
        *,
        reporter: Reporter = SILENT,
    ) -> tuple[list[float | None], list[Problem]]:
        """Return the reward of each completion, and the problems of these rows.

        Args:
            prompts: One per completion.
            completions: As many.
            names: How problems name each row.
            reporter: Shows the progress.
        """
        rows = self.model.tokenize(prompts, completions)
        by_key = {_key(row): row for row in rows if isinstance(row, TokenizedRow)}
        with Journal(self.file) as journal:
            scores = {key: score for entry in journal.entries for key, score in entry.items() if key in by_key}
            missing = sorted(by_key.keys() - scores.keys(), key=lambda key: (len(by_key[key].ids), key))
            for start in range(0, len(missing), CHUNK):
                keys = missing[start : start + CHUNK]
                values = self.model.score([by_key[key] for key in keys], reporter=reporter)
                journal.append(dict(zip(keys, values, strict=True)))
                scores |= journal.entries[-1]
        rewards = [scores[_key(row)] if isinstance(row, TokenizedRow) else None for row in rows]
        return rewards, self.model.problems(rows, rewards, names)


def _key(row: TokenizedRow) -> str:
    return hashlib.sha256(json.dumps([row.ids, row.types]).encode()).hexdigest()[:24]
