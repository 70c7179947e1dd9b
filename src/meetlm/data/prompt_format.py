"""Text to token ids, the same way for every method. Knows the tokenizer; knows no level and no model.

Prompt and completion are tokenised apart and joined, so that the border between them never moves with what follows,
and EOS closes a completion. Conversations go through the tokenizer's chat template. Many templates open with an
automatic system message, some with today's date in it: the date and what stands before the first message are pinned
when a run starts and saved with it, so that a model is asked next year in the words in which it was trained.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from meetlm.config.errors import ConfigError
from meetlm.data.example import Prompt, Turn

_MARK = "meetlm-marks-the-first-message"


@dataclass(frozen=True, slots=True)
class FormatSpec:
    """What a run saves of its format.

    Attributes:
        preamble: What the chat template puts before a first user message when no system message is given; ``None``
            where the tokenizer has no template. ``system`` replaces it.
        system: ``auto`` keeps the template's automatic system message, ``none`` leaves it out.
        stop: Strings at which a generated completion ends (cut off, not kept), besides EOS.
        date: The day that templates are told it is, ``YYYY-MM-DD``; ``None`` leaves them the real one.
    """

    preamble: str | None
    system: str
    stop: tuple[str, ...]
    date: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "stop": list(self.stop)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> FormatSpec:
        """Return the spec that :meth:`to_dict` wrote."""
        return cls(fields["preamble"], fields["system"], tuple(fields["stop"]), fields.get("date"))


class PromptFormat:
    """Turns prompts and completions into ids.

    Args:
        tokenizer: A transformers tokenizer with an EOS token.
        spec: The pinned format; :func:`pin_format` makes it.

    Raises:
        ConfigError: The tokenizer has no EOS token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spec: FormatSpec) -> None:
        if tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no EOS token, so nothing could close a completion")
        self.tokenizer, self.spec = tokenizer, spec
        self._template = _Template(tokenizer, spec.date)
        self._template_preamble = self._template.replaceable(spec.system)
        self._opens_with_space = _opens_with_space(tokenizer)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt, with the BOS token where the tokenizer adds one; never empty."""
        if not prompt.is_chat:
            ids = list(self.tokenizer(prompt.content)["input_ids"])
            while ids and ids[-1] == self.tokenizer.eos_token_id and ids[-1] != self.tokenizer.bos_token_id:
                ids.pop()  # some tokenizers close every text; the prompt goes on
        else:
            ids = self._ids(self._render(prompt.turns, open_reply=True))
        if not ids:
            start = self.tokenizer.bos_token_id
            ids = [self.tokenizer.eos_token_id if start is None else start]
        return ids

    def completion_ids(self, prompt: Prompt, completion: Turn) -> list[int]:
        """Return the ids of a completion of ``prompt``, closed by EOS.

        Raises:
            ConfigError: The chat template does not continue the prompt that it rendered before.
        """
        if not prompt.is_chat:
            text = completion.content
        else:
            opened = self._render(prompt.turns, open_reply=True)
            whole = self._render((*prompt.turns, completion), open_reply=False)
            if not whole.startswith(opened):
                raise ConfigError(
                    "the chat template changes the prompt once a completion follows it, "
                    f"so the completion cannot be told from it: {opened[-60:]!r} became {whole[: len(opened)][-60:]!r}"
                )
            text = whole[len(opened) :]
            closed = self.tokenizer.eos_token in text  # what templates put behind it, a line break, is not the reply
            text = text.rsplit(str(self.tokenizer.eos_token), 1)[0] if closed else text.rstrip()
        return [*self._continuation(text), self.tokenizer.eos_token_id]

    def words(self, text: str) -> list[int]:
        """Return the ids of plain words with no BOS and no EOS: for control slots."""
        return self._ids(text)

    def text(self, ids: list[int]) -> str:
        """Return the text of generated ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _continuation(self, text: str) -> list[int]:
        """Return the ids of text that goes on after other text.

        Tokenizers in SentencePiece's old manner put a space before whatever they are given; behind a line break,
        which they never merge, they do not.
        """
        if not self._opens_with_space:
            return self._ids(text)
        before, both = self._ids("\n"), self._ids("\n" + text)
        return both[len(before) :] if both[: len(before)] == before else self._ids(text)

    def _render(self, turns: tuple[Turn, ...], *, open_reply: bool) -> str:
        if self.tokenizer.chat_template is None or self.spec.preamble is None:
            raise ConfigError("the data are conversations and the tokenizer has no chat template")
        rendered = self._template.render(turns, open_reply=open_reply)
        if turns and turns[0].role != "system" and self._template_preamble:
            if not rendered.startswith(self._template_preamble):
                raise ConfigError("the chat template's automatic opening depends on the messages; it cannot be pinned")
            return self.spec.preamble + rendered[len(self._template_preamble) :]
        return rendered


def pin_format(
    tokenizer: PreTrainedTokenizerBase, *, system: str = "auto", stop: tuple[str, ...] = (), today: str | None = None
) -> PromptFormat:
    """Return the format of a new run, its automatic opening and its date pinned.

    Args:
        tokenizer: The run's tokenizer.
        system: ``auto`` keeps the template's automatic system message; ``none`` leaves it out (BOS stays).
        stop: Where generated completions end besides EOS; comes from the data source.
        today: The date to pin, ``YYYY-MM-DD``; the real one by default.

    Raises:
        ConfigError: ``system`` is neither, or the template cannot be pinned.
    """
    day = today or date.today().isoformat()
    template = _Template(tokenizer, day)
    if system not in ("auto", "none"):
        raise ConfigError(f"system is {system!r}; expected 'auto' or 'none'")
    preamble = template.replaceable(system)
    if system == "none" and preamble:
        bos = tokenizer.bos_token  # kept, unless it is what opens every message (ChatML)
        keeps = bos is not None and preamble.startswith(bos) and bos not in template.user_opening()
        preamble = str(bos) if keeps else ""
    return PromptFormat(tokenizer, FormatSpec(preamble, system, stop, None if preamble is None else day))


class _Template:
    """A tokenizer's chat template on a given day."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, day: str | None) -> None:
        self.tokenizer = tokenizer
        self._names: dict[str, Any] = {}
        template = tokenizer.chat_template
        if day is not None and isinstance(template, str) and "strftime_now(" in template:
            forms = set(re.findall(r"""strftime_now\(\s*["']([^"']+)["']\s*\)""", template))
            if template.count("strftime_now(") != len(re.findall(r"strftime_now\(\s*[\"']", template)):
                raise ConfigError("the chat template computes the form of its date, which cannot be pinned")
            then = datetime.fromisoformat(day)
            # Templates are given data, no functions: a macro of the same name reads the pinned day from a table.
            self._names = {
                "chat_template": "{%- macro strftime_now(form) -%}{{ meet_day[form] }}{%- endmacro -%}" + template,
                "meet_day": {form: then.strftime(form) for form in forms},
            }

    def render(self, turns: tuple[Turn, ...], *, open_reply: bool) -> str:
        """Return the text of a conversation."""
        messages = [turn.to_message() for turn in turns]
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=open_reply,
                **self._names,
            )
        except TemplateError as error:
            roles = ", ".join(turn.role for turn in turns)
            raise ConfigError(f"the chat template refuses a conversation of {roles}: {error}") from error
        return str(text)

    def replaceable(self, system: str) -> str | None:
        """Return the preamble, or nothing where it cannot be told and stays as it is; ``None`` without a template.

        Args:
            system: ``auto`` replaces a preamble by itself, so that it need not be known: the date is pinned anyway.

        Raises:
            ConfigError: It cannot be told from the first message, and ``system`` is ``none``.
        """
        try:
            return self.preamble()
        except ConfigError:
            if system == "none":
                raise
            return ""

    def preamble(self) -> str | None:
        """What stands before the first user message's own opening; ``None`` without a template.

        Raises:
            ConfigError: The template opens a first message in another way than later ones, or refuses a conversation.
        """
        if self.tokenizer.chat_template is None:
            return None
        opening = self.render((Turn("user", _MARK),), open_reply=False).split(_MARK)[0]
        later = self.user_opening()
        between = later.lstrip() or later  # a line break between messages opens no first one
        for own in (later, between):
            if opening.endswith(own):
                return opening[: len(opening) - len(own)]
        raise ConfigError(f"the chat template opens a first message in {opening!r} and later ones in {later!r}")

    def user_opening(self) -> str:
        """What opens every user message, read off the second one of a conversation."""
        turns = (Turn("user", "a"), Turn("assistant", _MARK))
        closed = self.render(turns, open_reply=False).split(_MARK)[1]
        after = self.render((*turns, Turn("user", _MARK)), open_reply=False).split(_MARK)[1]
        for end in (closed, closed.removesuffix(str(self.tokenizer.eos_token))):  # EOS may close the whole, not a reply
            if after.startswith(end):
                return after[len(end) :]
        raise ConfigError("the chat template changes a reply once a message follows it; it cannot be pinned")


def _opens_with_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a space of its own before any text."""
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("x", add_special_tokens=False)["input_ids"])
    return bool(tokens) and str(tokens[0]).startswith("\u2581")
