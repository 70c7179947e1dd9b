"""Scores completions with a reward model: any sequence classifier of transformers with one label (paper, 4.3).

The paper's is ``OpenAssistant/reward-model-deberta-v3-large-v2``, which reads question and answer as two sequences; one
that ``meet reward train`` has written, or that has a chat template, is read as it was trained.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from meetlm.config.errors import ConfigError
from meetlm.config.settings import Settings
from meetlm.controls.linear import use_fast_products
from meetlm.evaluation.record import Problem
from meetlm.evaluation.reward_forward import (
    packed_batches,
    packed_scores,
    packs,
    pad_id_of,
    padded_batches,
    padded_scores,
)
from meetlm.evaluation.reward_input import RECORD, Ids, Prompt, RewardInput, form_of
from meetlm.policy.loading import num_positions

UNLIMITED = 10**9
"""Tokenizers that state no length have a number above this one."""


class RewardSettings(Settings):
    """Which reward model, and how it reads."""

    model: str = Field(description="hub name or folder of a sequence classifier with one label")
    input: Literal["auto", "pair", "chat", "text"] = Field(
        "auto",
        description="pair: question and answer as two sequences; chat: the tokenizer's chat template; text: prompt and "
        "completion as one text, one space between unless the prompt ends in white space; auto: as the checkpoint or "
        "its tokenizer tells; white space around a completion is never read",
    )
    eos: bool = Field(False, description="input text: close it with the EOS token")
    max_length: int | None = Field(None, ge=8, description="most tokens of a row; null for the model's positions")
    batch_tokens: int = Field(4096, ge=1, description="most tokens of a forward pass, padding counted")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA where there is one")


class RewardModel:
    """A reward model, ready to score: f32 on a CPU, bf16 autocast on CUDA.

    Args:
        model: A sequence classifier with one label.
        tokenizer: Its own.
        settings: How it reads.

    Attributes:
        form: What it reads: ``pair``, ``chat`` or ``text``.
        told_by: By what that was told.
        most: Most tokens of a row; ``None`` for any number.
        problems: Of the last call of :meth:`score`: rows cut, refused, or without a finite score.
        why_padded: Why the last call padded its rows; ``None`` where it packed them.

    Raises:
        ConfigError: It gives more than one number, or how it reads cannot be told.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: RewardSettings) -> None:
        if model.config.num_labels != 1:
            raise ConfigError(
                f"{settings.model!r} gives {model.config.num_labels} numbers a row; expected a reward model, "
                "which gives one (num_labels: 1)"
            )
        model.train(False)
        use_fast_products(model)
        self.settings, self.tokenizer, self.model = settings, tokenizer, model
        self.form, self.told_by = form_of(tokenizer, getattr(model.config, RECORD, None), settings.input)
        limits = (settings.max_length, _positions(model), min(tokenizer.model_max_length, UNLIMITED))
        most = min(limit for limit in limits if limit is not None)
        self.most = most if most < UNLIMITED else None
        self._input = RewardInput(tokenizer, self.form, self.most, eos=settings.eos)
        self.problems: list[Problem] = []
        self.why_padded: str | None = None
        self._packs: bool | None = None

    @property
    def precision(self) -> str:
        """What scores are computed in, and where: numbers of another precision are no repetition of these."""
        device = self.model.device.type
        return f"{'bfloat16' if device == 'cuda' else self.model.dtype} on {device}"

    @classmethod
    def load(cls, settings: RewardSettings) -> RewardModel:
        """Return the reward model that ``settings`` name.

        Raises:
            ConfigError: It cannot be found, is no reward model, how it reads cannot be told, or the device is missing.
        """
        name = settings.model
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device is 'cuda', and PyTorch finds no CUDA device; expected cpu or auto")
        try:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                name, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ConfigError(f"the reward model {name!r} cannot be loaded: {error}") from error
        missing = sorted(info["missing_keys"])
        if missing:
            raise ConfigError(
                f"{name!r} is no reward model: it has no weights for {', '.join(missing[:3])}; "
                "`meet reward train` makes one of a language model"
            )
        cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
        nn.Module.to(model, torch.device("cuda" if cuda else "cpu"))
        return cls(model, tokenizer, settings)

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        on_done: Callable[[int], object] | None = None,
        *,
        names: Sequence[str] | None = None,
    ) -> list[float | None]:
        """Return each completion's reward, in the order given; rows of one prompt and completion are scored once.

        Args:
            prompts: One a completion: text, or messages with ``role`` and ``content``.
            completions: As many.
            on_done: Called with the number of rows done, batch by batch.
            names: What :attr:`problems` call the rows; ``row 1`` and so on by default.

        Returns:
            Rewards; ``None`` for a row that has no token, that the chat template refuses, or whose score is NaN or
            infinite. Each stands in :attr:`problems`, as do rows that were cut to :attr:`most` tokens.
        """
        assert len(prompts) == len(completions), "one prompt a completion"
        names = [f"row {number + 1}" for number in range(len(prompts))] if names is None else names
        numbers: dict[tuple[str, str], int] = {}
        keys = [(json.dumps(p, ensure_ascii=False), c.strip()) for p, c in zip(prompts, completions, strict=True)]
        of = [numbers.setdefault(key, len(numbers)) for key in keys]
        where: list[list[int]] = [[] for _ in numbers]
        for place, number in enumerate(of):
            where[number].append(place)
        firsts = [places[0] for places in where]
        encoded = self.read([prompts[n] for n in firsts], [completions[n] for n in firsts])
        values: list[float | None] = [None] * len(encoded)
        usable = [number for number, row in enumerate(encoded) if isinstance(row, Ids)]
        done = on_done or (lambda number: None)
        done(len(of) - sum(len(where[number]) for number in usable))
        rows = [row for row in encoded if isinstance(row, Ids)]
        for batch, scores in self._scores(rows, [keys[firsts[number]][0] for number in usable]):
            for number, score in zip(batch, scores, strict=True):
                values[usable[number]] = score if math.isfinite(score) else None
            done(sum(len(where[usable[number]]) for number in batch))
        rewards = [values[number] for number in of]
        self.problems = self.problems_of([encoded[number] for number in of], rewards, names)
        return rewards

    def read(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Ids | str]:
        """Return what the model reads of each row, or in one line why it has nothing to read."""
        return self._input.encode(prompts, completions)

    def problems_of(
        self, read: Sequence[Ids | str], rewards: Sequence[float | None], names: Sequence[str]
    ) -> list[Problem]:
        """Return what is wrong with rows, named and counted by kind.

        Args:
            read: Of each row, as :meth:`read` returns it.
            rewards: As many; ``None`` for a row that has none.
            names: As many.
        """
        found: dict[str, list[str]] = {}
        cut = 0
        for row, reward, name in zip(read, rewards, names, strict=True):
            if isinstance(row, str):
                found.setdefault(f"has no reward: {row}", []).append(name)
                continue
            if row.cut:
                cut += row.cut
                found.setdefault("cut", []).append(name)
            if reward is None:
                found.setdefault("has no reward: the reward model's score is NaN or infinite", []).append(name)
        if "cut" in found:
            what = (
                f"is longer than the {self.most} tokens that the reward model reads; {cut} tokens were left out, "
                "the oldest of the prompt first"
            )
            found[what] = found.pop("cut")
        return [Problem(f"a completion {what}", len(rows), rows) for what, rows in found.items()]

    def _scores(self, rows: list[Ids], prompts: list[str]) -> Iterator[tuple[list[int], list[float]]]:
        """Yield the numbers of rows and their scores, batch by batch."""
        if not rows:
            return
        if self._packs is None:
            self.why_padded = packs(self.model, rows, prompts)
            self._packs = self.why_padded is None
        budget = self.settings.batch_tokens
        if self._packs:
            for batch in packed_batches(rows, prompts, budget):
                scores = packed_scores(self.model, [rows[n] for n in batch], [prompts[n] for n in batch])
                yield batch, scores.tolist()
            return
        for batch in padded_batches(rows, budget):
            chosen = [rows[number] for number in batch]
            yield batch, padded_scores(self.model, chosen, self._fallback_pad(chosen)).tolist()

    def _fallback_pad(self, rows: Sequence[Ids]) -> int:
        """Return what to pad with where the model's config does not say: an id that no row ends with."""
        if pad_id_of(self.model) is not None:
            return -1  # not looked at
        ends = {row.ids[-1] for row in rows}
        named = [one for one in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if one is not None]
        return next(int(one) for one in (*named, *range(len(ends) + 1)) if one not in ends)


def _positions(model: PreTrainedModel) -> int | None:
    """Return the most tokens of a row; models of RoBERTa's kind count positions from behind their padding id."""
    for name, module in model.named_modules():
        learned = name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
        if learned and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return int(module.num_embeddings - module.padding_idx - 1)
    return num_positions(model)
