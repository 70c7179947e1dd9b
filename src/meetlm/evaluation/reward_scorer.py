"""A reward model as a scorer that writes its rewards to disk as soon as they are computed.

An interrupted evaluation resumes, and a repeated evaluation reads all rewards from disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from meetlm.config.journal import Journal, stored_or_computed
from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.example import Prompt
from meetlm.evaluation.outcomes import Column
from meetlm.evaluation.record import Problem
from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.reward_input import TokenizedRow
from meetlm.policy.fingerprint import sha256_of

CHUNK = 256
"""Number of rows that are scored before their rewards are written."""
_IRRELEVANT_CONFIG = ("_name_or_path", "transformers_version")
"""Keys of a model's config that do not affect scores."""


class RewardScorer:
    """Scores completions with a reward model and stores each score in a folder.

    There is one file per weights, config and precision; within it a score is keyed by the row's token ids, so another
    tokenizer, chat template, form or maximum length never reuses a score.

    Args:
        model: Scores the rows that are not stored.
        folder: Folder of the file; created with the first score.

    Attributes:
        description: Name of the model and the form of its input.
        record: Settings and identity of the model, for the record of an evaluation.
        file: The file of scores.
    """

    name = "reward"
    higher_is_better = True

    def __init__(self, model: RewardModel, folder: Path) -> None:
        self.model = model
        self.description = f"reward of {model.settings.model} (input form {model.form}: {model.form_reason})"
        config = {key: value for key, value in model.model.config.to_dict().items() if key not in _IRRELEVANT_CONFIG}
        weights_sha256 = sha256_of(model.model)
        self.record: dict[str, Any] = {
            **model.settings.model_dump(mode="json"),
            "reads": model.form,
            "precision": model.precision,
            "weights_sha256": weights_sha256,
        }
        identity = json.dumps([weights_sha256, config, model.precision], sort_keys=True, default=str)
        self.file = folder / f"reward-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.jsonl"

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        chosen: Sequence[str | None],
        names: Sequence[str],
        *,
        reporter: Reporter = SILENT,
    ) -> tuple[Column, list[Problem]]:
        """Return the reward of each completion, and the problems of these rows.

        Args:
            prompts: The prompt of each completion.
            completions: The completions.
            chosen: Not used: a reward model does not read the preferred reply.
            names: Name of each row in problems.
            reporter: Shows progress.
        """
        rows = self.model.tokenize(prompts, completions)
        by_key = {_key(row): row for row in rows if isinstance(row, TokenizedRow)}
        by_length = dict(sorted(by_key.items(), key=lambda entry: (len(entry[1].ids), entry[0])))
        with Journal(self.file) as journal:
            scores = stored_or_computed(journal, by_length, partial(self.model.score, reporter=reporter), CHUNK)
        rewards = [scores[_key(row)] if isinstance(row, TokenizedRow) else None for row in rows]
        return rewards, self.model.problems(rows, rewards, names)


def _key(row: TokenizedRow) -> str:
    return hashlib.sha256(json.dumps([row.ids, row.type_ids]).encode()).hexdigest()[:24]
