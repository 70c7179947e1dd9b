"""The way back from a run: a model with a dial."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from meetlm.config.errors import ConfigError, DataError, RunError, nearest
from meetlm.config.yaml_files import check
from meetlm.controls.build import build_control, parse_control
from meetlm.data.encoding import Encoder, one_hot
from meetlm.data.example import Origin, Text, Turn
from meetlm.data.pairs import text_or_turns
from meetlm.data.prompt_format import PromptFormat
from meetlm.data.rows import Row
from meetlm.data.sources import SOURCES
from meetlm.generation.engine import Engine
from meetlm.generation.rows import Request
from meetlm.generation.sampling import Sampling
from meetlm.policy.fingerprint import sha256_of
from meetlm.policy.loading import ModelSettings, embedding_rows, load_lm
from meetlm.policy.policy import Policy
from meetlm.run.folder import CONTROL, MODEL, Meet, read_meet

Level = str | Mapping[str, float]
"""A level's name, or weights of several: ``{"good": 1.5, "bad": -0.5}``."""

Prompt = str | Sequence[Mapping[str, str]]
r"""Text, or messages with role and content.

Text is put as the run's data put prompts. For a run on conversations it is one user message. For a run on HH's
transcripts, text without ``\n\nHuman:`` in it becomes ``\n\nHuman: TEXT\n\nAssistant:``. Else it is continued as it is.
"""


@dataclass(frozen=True, slots=True)
class Completion:
    """One line of ``completions/*.jsonl``.

    Attributes:
        prompt: As given: text or messages.
        completion: Cut at its end and stripped.
        level: Name, or weights.
        sampling: Temperature, nucleus, most new tokens, stop strings.
        seed: Of the random streams.
        run: The run's id.
        num_tokens: New tokens.
        finish: ``eos``, ``stop`` or ``length``.
    """

    prompt: str | list[dict[str, str]]
    completion: str
    level: str | dict[str, float]
    sampling: dict[str, Any]
    seed: int
    run: str
    num_tokens: int
    finish: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


class Aligned:
    """A finished run, loaded: generates under any level. :func:`load` makes it.

    Attributes:
        levels: Names of the levels.
        default_level: What ``generate`` uses where no level is given.
    """

    def __init__(self, policy: Policy, prompt_format: PromptFormat, meet: Meet) -> None:
        self.policy, self.format, self.meet = policy, prompt_format, meet
        self.levels, self.default_level = meet.levels, meet.default_level
        placement = policy.control.settings.placement
        self.encoder = Encoder(prompt_format, policy.control.slots, placement, embedding_rows(policy.lm))
        self._engine = Engine(policy, prompt_format)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The run's tokenizer."""
        return self.format.tokenizer

    def generate(
        self,
        prompts: Sequence[Prompt],
        level: Level | None = None,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 32,
    ) -> list[str]:
        """Return a completion for each prompt.

        Args:
            prompts: Texts or conversations; see :data:`Prompt` for what becomes of bare text.
            level: A level or weights of levels; the run's default where ``None``.
            max_new_tokens: Most new tokens.
            temperature: 0 takes the likeliest token.
            top_p: Mass of the nucleus.
            seed: A prompt's draws depend on it and on the prompt's place in the list, not on its batch.
            batch_size: Rows at once.

        Raises:
            ConfigError: Unknown level, a mix for a control that cannot mix, a setting out of its range, or a message
                without role or content.
        """
        given = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        sampling = check(Sampling, given, {}, "generate")
        return [c.completion for c in self.complete(prompts, level, sampling, seed=seed, batch_size=batch_size)]

    def complete(
        self,
        prompts: Sequence[Prompt],
        level: Level | None,
        sampling: Sampling,
        *,
        seed: int = 0,
        batch_size: int = 32,
        on_done: Callable[[int], Any] | None = None,
    ) -> Iterator[Completion]:
        """Yield a full record for each prompt, in order; arguments as in :meth:`generate`."""
        found = dict(self.stream(prompts, level, sampling, seed=seed, batch_size=batch_size, on_done=on_done))
        yield from (found[number] for number in range(len(prompts)))

    def stream(
        self,
        prompts: Sequence[Prompt],
        level: Level | None,
        sampling: Sampling,
        *,
        seed: int = 0,
        batch_size: int = 32,
        skip: Container[int] = (),
        on_done: Callable[[int], Any] | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """Yield the place of each prompt and its full record, batch by batch; arguments as in :meth:`generate`.

        Args:
            prompts: See there.
            level: See there.
            sampling: How.
            seed: See there.
            batch_size: See there.
            skip: Places of prompts that are left out; the others are continued as they would be with them.
            on_done: Is told the number of prompts done after each batch.
        """
        level = self.default_level if level is None else level
        weights, slot = self.weights(level)
        if isinstance(prompts, str):
            raise ConfigError("prompts: expected a list of prompts, got one string")
        requests = [
            Request(tuple(self.encoder.prompt(self._text(number, prompt), slot)), weights, number)
            for number, prompt in enumerate(prompts)
            if number not in skip
        ]
        done = self._engine.stream(requests, sampling, seed=seed, batch_size=batch_size, on_done=on_done)
        for place, one in done:
            number = requests[place].stream
            prompt = prompts[number]
            record = Completion(
                prompt=prompt if isinstance(prompt, str) else [dict(m) for m in prompt],
                completion=one.text,
                level=level if isinstance(level, str) else dict(level),
                sampling={**sampling.model_dump(), "stop": list(self.format.spec.stop)},
                seed=seed,
                run=self.meet.run,
                num_tokens=one.num_tokens,
                finish=one.finish,
            )
            yield number, record

    def weights(self, level: Level) -> tuple[tuple[float, ...], int]:
        """Return level weights [K] and the index of the level whose slot is used (virtual slots are all the same).

        Raises:
            ConfigError: Unknown level, a weight that is not finite, or a mix for a control that cannot mix.
        """
        given = {level: 1.0} if isinstance(level, str) else dict(level)
        check_level(self.levels, level)
        weights = tuple(float(given.get(name, 0.0)) for name in self.levels)
        if not all(map(math.isfinite, weights)):
            raise ConfigError(f"level {given}: expected finite weights")
        slot = max(range(len(weights)), key=lambda k: weights[k])
        if weights != one_hot(slot, len(weights)) and not self.policy.control.can_mix_levels:
            raise ConfigError(f"a control of kind {self.meet.kind!r} takes one level at a time, not a mix")
        return weights, slot

    def _text(self, number: int, prompt: Prompt) -> Text:
        """Return a prompt as the run's data would have it; ``number`` is its place in the list, for messages."""
        value = prompt
        if isinstance(prompt, Sequence) and not isinstance(prompt, str):
            value = [dict(message) if isinstance(message, Mapping) else message for message in prompt]
        try:
            text = text_or_turns(Row({"prompt": value}, Origin("prompts", number + 1)), "prompt")
        except DataError as error:
            raise ConfigError(str(error)) from error
        if isinstance(text, str) and self.meet.conversational:
            return (Turn("user", text),)
        return SOURCES[self.meet.source].ask(text)


def check_level(levels: Sequence[str], level: Level | None) -> None:
    """Refuse a level, or one in a mix, that is not among ``levels``; ``None`` is the default one.

    Raises:
        ConfigError: Names the nearest.
    """
    for name in () if level is None else (level,) if isinstance(level, str) else level:
        if name not in levels:
            raise ConfigError(f"unknown level {name!r}{nearest(name, levels)}")


def load(run: str | Path, *, device: str = "auto") -> Aligned:
    """Return a finished run, ready to generate.

    Args:
        run: The run's folder.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        RunError: No finished run is there, or its control belongs to another language model.
    """
    folder = Path(run)
    meet = read_meet(folder)
    lm, tokenizer = load_lm(ModelSettings.model_validate({"name": str(folder / MODEL), "device": device}))
    if sha256_of(lm) != meet.lm_sha256:
        raise RunError(f"{folder / MODEL} is not the language model that the run's control was trained with")
    prompt_format = PromptFormat(tokenizer, meet.format)
    control = build_control(parse_control(meet.control), lm, prompt_format.words, seed=0)
    if (folder / CONTROL).is_file():
        control.load_state_dict(load_file(folder / CONTROL))
    return Aligned(Policy(lm, control), prompt_format, meet)
