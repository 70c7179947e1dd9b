"""A trained run, loaded: generates replies at any level or mix of levels, and scores replies."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from meetlm.config.errors import ConfigError, DataError, LevelChoiceError, RunError, locate_errors
from meetlm.config.reporter import SILENT, Reporter
from meetlm.config.yaml_files import validate
from meetlm.controls.build import build_control, parse_control
from meetlm.data.example import Origin, Prompt, Turn, Weights, as_reply
from meetlm.data.levels import PAIR_LEVELS
from meetlm.data.messages import read_prompt
from meetlm.data.prompt_format import PromptFormat, pin_format
from meetlm.data.rows import Row
from meetlm.data.sources import SOURCES
from meetlm.export.peft import update_base_paths
from meetlm.generation.decoding import Branch
from meetlm.generation.in_processes import iter_in_processes
from meetlm.generation.session import Request, Session, guided
from meetlm.generation.settings import Sampling
from meetlm.policy.fingerprint import sha256_of
from meetlm.policy.loading import ModelSettings, embedding_rows, load_lm
from meetlm.policy.policy import Policy
from meetlm.run.completion_record import CompletionRecord
from meetlm.run.folder import CONTROL, LEVELS, MODEL, Meet, read_meet
from meetlm.run.levels import (
    NO_GUIDANCE,
    Guidance,
    Level,
    dial_warning,
    level_text,
    weights_by_name,
)
from meetlm.run.score import LevelScore, score_replies

PromptLike = str | Sequence[Mapping[str, Any]] | Prompt
r"""A prompt as callers write it: text, messages with role and content, or a :class:`Prompt`.

Text is formatted as the prompts of the run's data: as one user message for conversations; for HH's transcripts, text
without ``\n\nHuman:`` becomes ``\n\nHuman: TEXT\n\nAssistant:``. Otherwise it is continued as it is.
"""


class Aligned:
    """A finished run, loaded by :func:`load`: generates under any level.

    Attributes:
        levels: Names of the levels, worst first.
        default_level: Level of requests without a level: the best one, or what `meet dial` recommends.
    """

    def __init__(self, policy: Policy, prompt_format: PromptFormat, meet: Meet) -> None:
        self.policy, self.format, self.meet = policy, prompt_format, meet
        self.levels, self.default_level = meet.levels, meet.default_level
        self.encoder = policy.control.encoder(prompt_format, embedding_rows(policy.lm))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The run's tokenizer."""
        return self.format.tokenizer

    def generate(
        self,
        prompts: Iterable[PromptLike],
        level: Level | None = None,
        *,
        guidance: float = 0.0,
        against: Level | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        best_of: int = 1,
        attribute: str | None = None,
        seed: int = 0,
        batch_size: int = 32,
    ) -> list[str]:
        """Return a completion for each prompt.

        Args:
            prompts: Texts or conversations; see :data:`PromptLike` for how text is formatted.
            level: A name, a number (0 = worst, 1 = best, beyond extrapolates) or weights by name. By default the best
                level, or what `meet dial` recommends; with guidance always the best level.
            guidance: Strength s of guidance: sample from ℓ + s·(ℓ − ℓ_against), where ℓ are the logits at the level.
                Works with every kind of control; 0 = none.
            against: Level that guidance moves away from; the worst level where ``None``.
            max_new_tokens: Maximum number of new tokens.
            temperature: Sampling temperature; 0 = greedy decoding.
            top_p: Sample from the most likely tokens of this total probability.
            best_of: Number of replies to sample per prompt; the reply with the highest :meth:`score` is returned.
            attribute: As in :meth:`score`, for ``best_of``.
            seed: Seed of sampling. A prompt's samples depend only on it and on the prompt's index in the list.
            batch_size: Prompts per batch.

        Raises:
            ConfigError: A setting, a level or a prompt is wrong, or the control cannot mix levels in this way.
        """
        settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        sampling = validate(Sampling, settings, {}, "generate")
        records = self.complete(
            prompts,
            level,
            sampling,
            guidance=Guidance(guidance, against),
            best_of=best_of,
            attribute=attribute,
            seed=seed,
            batch_size=batch_size,
        )
        return [record.completion for record in records]

    def complete(
        self,
        prompts: Iterable[PromptLike],
        level: Level | None,
        sampling: Sampling,
        *,
        guidance: Guidance = NO_GUIDANCE,
        best_of: int = 1,
        attribute: str | None = None,
        seed: int = 0,
        batch_size: int = 32,
        reporter: Reporter = SILENT,
    ) -> list[CompletionRecord]:
        """Return a completion with all that is known of it for each prompt; arguments as in :meth:`generate`."""
        self.meet.resolve(level, guidance.strength, reporter=reporter)
        prompts = self.repeat(prompts, best_of, sampling)
        completions = dict(
            self.iter_completions(
                prompts, level, sampling, guidance=guidance, seed=seed, batch_size=batch_size, reporter=reporter
            )
        )
        records = [completions[number] for number in sorted(completions)]
        return [records[index] for index, _ in self.pick_best(records, best_of, attribute, reporter=reporter)]

    def repeat(self, prompts: Iterable[PromptLike], best_of: int, sampling: Sampling) -> list[PromptLike]:
        """Return each prompt ``best_of`` times, for as many samples of it.

        Raises:
            ConfigError: ``best_of`` is not positive, or all samples would be the same.
        """
        if isinstance(prompts, str):
            raise ConfigError("prompts: expected a list of prompts, got one string")
        if best_of < 1:
            raise ConfigError(f"best_of is {best_of}; expected 1 or more")
        if best_of > 1 and sampling.temperature == 0:
            raise ConfigError(
                "best_of requires a temperature above 0, such as 1: greedy decoding always gives the same reply"
            )
        return [prompt for prompt in prompts for _ in range(best_of)]

    def pick_best(
        self,
        records: Sequence[CompletionRecord],
        best_of: int,
        attribute: str | None = None,
        *,
        reporter: Reporter = SILENT,
    ) -> list[tuple[int, float | None]]:
        """Return the index and the score of the best of each ``best_of`` completions; the first one on a tie."""
        if best_of == 1:
            return [(index, None) for index in range(len(records))]
        texts = [record.completion for record in records]
        scores = self.score([record.prompt for record in records], texts, attribute, reporter=reporter)
        groups = [range(start, start + best_of) for start in range(0, len(records), best_of)]
        best = [max(group, key=lambda index: scores[index].total) for group in groups]
        return [(index, scores[index].total) for index in best]

    def score(
        self,
        prompts: Iterable[PromptLike],
        completions: Iterable[str],
        attribute: str | None = None,
        *,
        reporter: Reporter = SILENT,
    ) -> list[LevelScore]:
        """Return log p(completion | prompt, best level) − log p(completion | prompt, worst level) of each completion.

        Args:
            prompts: As in :meth:`generate`, one per completion.
            completions: Texts. After a prompt of plain text, a completion without leading white space is joined by a
                space, unless the prompt ends in white space.
            attribute: Attribute whose best and worst level are compared, in a run with several; by default all ordered
                attributes together.
            reporter: Shows the number of sequences.

        Raises:
            ConfigError: The levels have no best and worst, or a prompt or the attribute is wrong.
        """
        parsed = [self.parse_prompt(number, prompt) for number, prompt in enumerate(prompts)]
        rows = [(prompt, joined_reply(prompt, text)) for prompt, text in zip(parsed, completions, strict=True)]
        return score_replies(self.policy, self.encoder, rows, attribute, reporter=reporter)

    def iter_completions(
        self,
        prompts: Iterable[PromptLike],
        level: Level | None,
        sampling: Sampling,
        *,
        guidance: Guidance = NO_GUIDANCE,
        seed: int = 0,
        batch_size: int = 32,
        skip: Container[int] = (),
        reporter: Reporter = SILENT,
    ) -> Iterator[tuple[int, CompletionRecord]]:
        """Yield the index of each prompt in the list and its completion, as they end.

        Args:
            prompts: As in :meth:`generate`.
            level: As in :meth:`generate`.
            sampling: How to sample.
            guidance: Strength of guidance, and the level to move away from.
            seed: As in :meth:`generate`.
            batch_size: As in :meth:`generate`.
            skip: Indices of prompts to leave out; the completions of the others do not depend on it.
            reporter: Shows the number of completions.
        """
        if isinstance(prompts, str):
            raise ConfigError("prompts: expected a list of prompts, got one string")
        prompts = list(prompts)
        resolved, weights = self._resolve(level, guidance)
        against, against_weights = self._resolve_against(weights, guidance)
        requests = [
            Request(self._branches(number, prompt, weights, against_weights, guidance), sampling, seed, number)
            for number, prompt in enumerate(prompts)
            if number not in skip
        ]
        settings = {**sampling.model_dump(), "stop": list(self.format.spec.stop)}
        settings |= {"guidance": guidance.strength, "against": against} if guidance.strength else {}
        session = Session(self.policy, self.format, batch_size)
        for index, result in iter_in_processes(session, requests, batch_size, reporter):
            number = requests[index].stream
            completion = CompletionRecord(
                prompt=_as_json(prompts[number]),
                completion=result.text,
                level=resolved,
                sampling=settings,
                seed=seed,
                run=self.meet.run,
                num_tokens=result.num_tokens,
                finish=result.finish,
            )
            yield number, completion

    def stream(
        self,
        prompt: PromptLike,
        level: Level | None = None,
        sampling: Sampling | None = None,
        *,
        guidance: Guidance = NO_GUIDANCE,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yield the completion of one prompt in pieces as it is generated; see :meth:`iter_completions`."""
        request = Request(self.branches(prompt, level, guidance), sampling or Sampling(), seed)
        yield from Session(self.policy, self.format).stream(request)

    def branches(self, prompt: PromptLike, level: Level | None, guidance: Guidance = NO_GUIDANCE) -> tuple[Branch, ...]:
        """Return the branches of the :class:`Request` for a prompt; arguments and errors as in :meth:`generate`."""
        _, weights = self._resolve(level, guidance)
        return self._branches(0, prompt, weights, self._resolve_against(weights, guidance)[1], guidance)

    def _branches(
        self, number: int, prompt: PromptLike, weights: Weights, against: Weights | None, guidance: Guidance
    ) -> tuple[Branch, ...]:
        """Return the branches of a prompt under resolved weights; messages name the prompt by its index ``number``."""
        parsed = self.parse_prompt(number, prompt)
        with locate_errors("prompts", number + 1):
            branches = [Branch(tuple(self.encoder.prompt(parsed, w)), w) for w in (weights, against) if w is not None]
        return guided(branches[0], branches[1], guidance.strength) if against is not None else (branches[0],)

    def warning(self, level: Level | None, guidance: Guidance = NO_GUIDANCE) -> str | None:
        """Return a warning about a level outside the safe range that `meet dial` has recorded; ``None`` inside it."""
        return dial_warning(self.levels, self.meet.dial, self._resolve(level, guidance)[0], guidance.strength)

    def parse_prompt(self, number: int, prompt: PromptLike) -> Prompt:
        """Return a prompt formatted as in the run's data; ``number`` is its index in the list, for messages."""
        try:
            parsed = read_prompt(Row({"prompt": _as_json(prompt)}, Origin("prompts", number + 1)), "prompt")
        except DataError as error:
            raise ConfigError(str(error)) from error
        source = SOURCES[self.meet.source]
        return Prompt(source.to_turns(parsed)) if self.meet.conversational else source.format_prompt(parsed)

    def weights(self, level: Level) -> Weights:
        """Return level weights [K].

        Raises:
            ConfigError: The level is unknown, or a mix for a control that cannot mix levels.
        """
        return self._resolve(level)[1]

    def _resolve(self, level: Level | None, guidance: Guidance = NO_GUIDANCE) -> tuple[str | dict[str, float], Weights]:
        resolved = self.meet.resolve(level, guidance.strength)
        by_name = weights_by_name(resolved)
        weights = tuple(by_name.get(name, 0.0) for name in self.levels)
        reason = self.policy.control.weights_failure_reason(weights)
        if reason:
            raise LevelChoiceError(f"level {level_text(resolved)}: {reason}")
        return resolved, weights

    def _resolve_against(self, weights: Weights, guidance: Guidance) -> tuple[Level | None, Weights | None]:
        """Return the level that guidance moves away from, and its weights [K]; ``None`` without guidance."""
        if not math.isfinite(guidance.strength):
            raise ConfigError(f"guidance is {guidance.strength}; expected a finite number")
        if guidance.strength == 0:
            if guidance.against is not None:
                raise ConfigError(
                    "against requires guidance: set its strength, such as 1.5 (--guidance on the command line)"
                )
            return None, None
        level = self._worst_of(weights) if guidance.against is None else guidance.against
        try:
            resolved, against = self._resolve(level)
        except LevelChoiceError as error:
            raise LevelChoiceError(str(error), "--against") from None
        if weights == against:
            raise LevelChoiceError(
                f"level {level_text(resolved)} is the level of the replies; choose another", "--against"
            )
        return resolved, against

    def _worst_of(self, weights: Weights) -> Level:
        """Return the worst level of each attribute that has a weight."""
        active = self.levels.active(weights)
        for attribute in active:
            if not attribute.is_ordered:
                raise ConfigError(
                    f"the levels of {attribute.name!r} have no worst level: guidance requires against (--against)"
                )
        names = [self.levels[self.levels.ranges[attribute.name][0]] for attribute in active]
        return names[0] if len(names) == 1 else dict.fromkeys(names, 1.0)


def joined_reply(prompt: Prompt, text: str) -> Turn:
    """Return a reply whose text continues a prompt of plain text; a space joins them if neither has white space."""
    before = prompt.content
    is_joined = not isinstance(before, str) or not before or before[-1].isspace() or text[:1].isspace()
    return as_reply(text if is_joined else f" {text}")


def _as_json(prompt: PromptLike) -> Any:
    if isinstance(prompt, Prompt):
        return prompt.to_json()
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return prompt
    return [dict(message) if isinstance(message, Mapping) else message for message in prompt]


def load_base(model: ModelSettings, source: str, *, conversational: bool, system: str, reasoning: bool) -> Aligned:
    """Return a language model without a control, ready to generate at its only level.

    Args:
        model: Settings of the model.
        source: Format of the data whose prompts it answers.
        conversational: Whether prompts are conversations.
        system: As of the setting ``format.system``.
        reasoning: As of the setting ``format.reasoning``.

    Raises:
        ConfigError: The model cannot be loaded.
    """
    lm, tokenizer = load_lm(model)
    prompt_format = pin_format(tokenizer, system=system, stop=SOURCES[source].stop, reasoning=reasoning)
    policy = uncontrolled(lm, prompt_format)
    levels = policy.control.levels
    meet = Meet(
        run=model.name,
        kind="none",
        levels=levels,
        default_level=levels[-1],
        control={"kind": "none"},
        lm_sha256=sha256_of(lm),
        format=prompt_format.spec,
        conversational=conversational,
        source=source,
    )
    return Aligned(policy, prompt_format, meet)


def uncontrolled(lm: PreTrainedModel, prompt_format: PromptFormat) -> Policy:
    """Return the policy of a language model without a control; it has one level."""
    control = build_control(parse_control({"kind": "none"}), PAIR_LEVELS.best_only, lm, prompt_format.tokenize, seed=0)
    return Policy(lm, control)


def load(run: str | Path, *, device: str = "auto") -> Aligned:
    """Return a finished run, ready to generate; the PEFT folders of a run that was moved get its new path.

    Args:
        run: Folder of the run.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        RunError: The folder holds no finished run, or its control belongs to another language model.
        ConfigError: There is no such device.
    """
    folder = Path(run)
    meet = read_meet(folder)
    settings = validate(ModelSettings, {"name": str(folder / MODEL), "device": device}, {}, "load")
    lm, tokenizer = load_lm(settings)
    if sha256_of(lm) != meet.lm_sha256:
        raise RunError(f"{folder / MODEL} is not the language model that the control of the run was trained with")
    prompt_format = PromptFormat(tokenizer, meet.format)
    control = build_control(parse_control(meet.control), meet.levels, lm, prompt_format.tokenize, seed=0)
    if (folder / CONTROL).is_file():
        control.load_state_dict(load_file(folder / CONTROL))
    update_base_paths(folder / LEVELS, (folder / MODEL).resolve())
    return Aligned(Policy(lm, control), prompt_format, meet)
