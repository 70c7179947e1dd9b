"""Scores that are kept as they are made, so that a stopped evaluation goes on and a second one costs nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from meetlm.config.errors import DataError
from meetlm.evaluation.answers import SHOWN
from meetlm.evaluation.record import Problem
from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.reward_input import Prompt
from meetlm.policy.fingerprint import sha256_of

CHUNK = 64
"""Rows scored between two writes."""


class KeptScores:
    """A reward model whose scores are kept in a folder, by its weights, its settings and the row.

    Args:
        model: Scores what is not there.
        folder: Made where it is missing.
    """

    def __init__(self, model: RewardModel, folder: Path) -> None:
        self.model = model
        settings = model.settings.model_dump(include={"eos", "max_length"})
        told = json.dumps([sha256_of(model.model), model.form, model.most, settings], sort_keys=True)
        self.file = folder / f"reward-{hashlib.sha256(told.encode()).hexdigest()[:16]}.jsonl"

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        names: Sequence[str],
        on_done: Callable[[int], object] | None = None,
    ) -> tuple[list[float | None], list[Problem]]:
        """Return each completion's reward, and the problems of the rows scored now or before.

        Args:
            prompts: One a completion.
            completions: As many.
            names: What problems call the rows.
            on_done: Called with the number of rows done.

        Raises:
            DataError: The kept scores cannot be read.
        """
        rows = [_key(*row) for row in zip(prompts, completions, strict=True)]
        firsts = {row: place for place, row in reversed(list(enumerate(rows)))}
        chunks = self._read()
        kept = {row for chunk in chunks for row in chunk.scores}
        missing = [place for row, place in firsts.items() if row not in kept]
        missing.sort(key=lambda place: len(completions[place]) + len(str(prompts[place])))
        done = on_done or (lambda number: None)
        done(len(firsts) - len(missing))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(missing), CHUNK):
            places = missing[start : start + CHUNK]
            values = self.model.score(
                [prompts[n] for n in places], [completions[n] for n in places], done, names=[names[n] for n in places]
            )
            chunks.append(
                _Chunk({rows[n]: value for n, value in zip(places, values, strict=True)}, self.model.problems)
            )
            with self.file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(asdict(chunks[-1])) + "\n")
        wanted = [chunk for chunk in chunks if not firsts.keys().isdisjoint(chunk.scores)]
        scores = {row: value for chunk in wanted for row, value in chunk.scores.items()}
        return [scores[row] for row in rows], merged(problem for chunk in wanted for problem in chunk.problems)

    def _read(self) -> list[_Chunk]:
        """Return what is kept; a last line that was cut short is scored again."""
        if not self.file.is_file():
            return []
        *lines, torn = self.file.read_text(encoding="utf-8").split("\n")
        if torn:
            self.file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        try:
            found = [json.loads(line) for line in lines]
            return [_Chunk(one["scores"], [Problem(**problem) for problem in one["problems"]]) for one in found]
        except (ValueError, KeyError, TypeError):
            raise DataError(
                "has a line that is no kept score", file=str(self.file), expected="JSON; delete the file to score anew"
            ) from None


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Scores of some rows, by :func:`_key`, and what was wrong with them."""

    scores: dict[str, float | None]
    problems: list[Problem]


def merged(problems: Iterable[Problem]) -> list[Problem]:
    """Return problems with those of one kind as one."""
    found: dict[str, Problem] = {}
    for one in problems:
        before = found.get(one.what, Problem(one.what, 0, []))
        found[one.what] = Problem(one.what, before.count + one.count, (before.examples + one.examples)[:SHOWN])
    return list(found.values())


def _key(prompt: Prompt, completion: str) -> str:
    return hashlib.sha256(json.dumps([prompt, completion], ensure_ascii=False).encode()).hexdigest()[:24]
