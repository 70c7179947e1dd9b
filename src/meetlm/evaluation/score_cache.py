"""Scores that are kept as they are made, so that a stopped evaluation goes on and a second one costs nothing.

Scores alone are kept; what is wrong with rows is told of the rows that are asked about, each time anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from meetlm.config.errors import DataError
from meetlm.evaluation.record import Problem
from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.reward_input import Ids, Prompt
from meetlm.policy.fingerprint import sha256_of

CHUNK = 64
"""Rows scored between two writes, at least: those of one prompt stay together, so that a model can share it."""
_NAMES = ("_name_or_path", "transformers_version")
"""Of a model's config: these change no score."""

Scores = dict[str, float | None]
"""By :func:`_key`; ``None`` for a score that is NaN or infinite."""


class KeptScores:
    """A reward model whose scores are kept in a folder, by all that decides them.

    That is a file for the weights, their config and the precision, and in it the row with its token ids: another
    tokenizer, chat template, form or length changes these, and the row is scored anew.

    Args:
        model: Scores what is not there.
        folder: Made where it is missing.

    Attributes:
        weights_sha256: Of the model's weights, whatever they are called and wherever they lie.
        file: Its scores.
    """

    def __init__(self, model: RewardModel, folder: Path) -> None:
        self.model = model
        config = {name: value for name, value in model.model.config.to_dict().items() if name not in _NAMES}
        self.weights_sha256 = sha256_of(model.model)
        told = json.dumps([self.weights_sha256, config, model.precision], sort_keys=True, default=str)
        self.file = folder / f"reward-{hashlib.sha256(told.encode()).hexdigest()[:16]}.jsonl"

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        names: Sequence[str],
        on_done: Callable[[int], object] | None = None,
    ) -> tuple[list[float | None], list[Problem]]:
        """Return each completion's reward, and the problems of these rows, whether scored now or before.

        Args:
            prompts: One a completion.
            completions: As many.
            names: What problems call the rows.
            on_done: Called with the number of rows done.

        Raises:
            DataError: The kept scores cannot be read.
        """
        read = self.model.read(prompts, completions)
        keys = [_key(*row) for row in zip(prompts, completions, read, strict=True)]
        firsts = {key: place for place, key in reversed(list(enumerate(keys))) if key is not None}
        scores = self._read()
        missing = [place for key, place in firsts.items() if key not in scores]
        done = on_done or (lambda number: None)
        done(len(keys) - len(missing))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        for places in _chunks(missing, prompts, completions):
            values = self.model.score([prompts[n] for n in places], [completions[n] for n in places], done)
            made = {str(keys[n]): value for n, value in zip(places, values, strict=True)}
            with self.file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(made) + "\n")
            scores |= made
        rewards = [None if key is None else scores[key] for key in keys]
        return rewards, self.model.problems_of(read, rewards, names)

    def _read(self) -> Scores:
        """Return what is kept; a last line that was cut short is scored again."""
        if not self.file.is_file():
            return {}
        *lines, torn = self.file.read_text(encoding="utf-8").split("\n")
        if torn:
            self.file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        scores: Scores = {}
        try:
            for line in lines:
                scores |= {key: None if value is None else float(value) for key, value in json.loads(line).items()}
        except (ValueError, TypeError, AttributeError):
            raise DataError(
                "has a line that is no kept score", file=str(self.file), expected="JSON; delete the file to score anew"
            ) from None
        return scores


def _chunks(missing: Sequence[int], prompts: Sequence[Prompt], completions: Sequence[str]) -> list[list[int]]:
    """Return the places of rows in chunks: all rows of a prompt in one, prompts of like length together."""
    families: dict[str, list[int]] = {}
    for place in missing:
        families.setdefault(json.dumps(prompts[place]), []).append(place)
    chunks: list[list[int]] = [[]]
    for prompt in sorted(families, key=lambda one: len(one) + max(len(completions[n]) for n in families[one])):
        if len(chunks[-1]) >= CHUNK:
            chunks.append([])
        chunks[-1] += families[prompt]
    return chunks if missing else []


def _key(prompt: Prompt, completion: str, read: Ids | str) -> str | None:
    """Return what names a row and all that is read of it; ``None`` where nothing is."""
    if isinstance(read, str):
        return None
    told = json.dumps([prompt, completion.strip(), read.ids, read.types], ensure_ascii=False)
    return hashlib.sha256(told.encode()).hexdigest()[:24]
