"""A tokenizer's chat template on a pinned day, and the text that it writes around messages."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from meetlm.config.errors import ConfigError
from meetlm.data.example import Message, Turn

MARK = "meetlm-marks-this-message"
"""Placeholder for a message's text, which locates the text that the template writes around it."""

_DATE = re.compile(r"""strftime_now\(\s*["']([^"']+)["']\s*\)""")
"""A template's call for the current date."""
_ESSENTIAL_FIELDS = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
"""Fields that hold part of a message, which a template must not leave out."""


class ChatTemplate:
    """Renders conversations.

    Args:
        tokenizer: The tokenizer with the template.
        day: The date that the template reads, ``YYYY-MM-DD``; ``None`` for the real date.

    Attributes:
        text: The template, with the pinned date in it; ``None`` if the tokenizer has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, day: str | None) -> None:
        self.tokenizer = tokenizer
        template = tokenizer.chat_template
        self._names = sorted(template) if isinstance(template, dict) else []
        self.text = default_template(tokenizer)
        if day is not None and self.text is not None:
            self.text = _with_date(self.text, day)
        self._first_unwritten = lru_cache(maxsize=256)(self._find_unwritten)
        self._takes_parts = self.text is not None and not self._writes(MARK) and self._writes(_parts(MARK))

    def render(self, turns: Sequence[Turn], *, open_reply: bool = False, **variables: Any) -> str:
        """Return the text of a conversation.

        Args:
            turns: The messages.
            open_reply: Add the generation prompt of the template.
            variables: Other variables of the template.

        Raises:
            ConfigError: There is no template, or it refuses the conversation or fails on it.
        """
        messages = [turn.to_message() for turn in turns]
        if self._takes_parts:
            messages = [{**message, "content": _parts(message["content"])} for message in messages]
        return self._apply(messages, open_reply, **variables)

    def _apply(self, messages: list[Message], open_reply: bool, **variables: Any) -> str:
        if self.text is None:
            if self._names:
                raise ConfigError(
                    f"the tokenizer has the chat templates {', '.join(self._names)}, but none named 'default': set its "
                    "chat_template to one of them and save it"
                )
            raise ConfigError(
                "the data are conversations, but the tokenizer has no chat template; set its chat_template"
            )
        roles = ", ".join(message["role"] for message in messages)
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=open_reply,
                **{"chat_template": self.text, **variables},
            )
        except TemplateError as error:
            raise ConfigError(f"the chat template refuses a conversation of {roles}: {error}") from error
        except Exception as error:  # a template is a program: it can raise anything
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(f"the chat template fails on a conversation of {roles}: {reason}") from error
        return str(text)

    def _writes(self, content: Any) -> bool:
        """Whether the template writes the content of a user's message."""
        try:
            return MARK in self._apply([{"role": "user", "content": content}], open_reply=False)
        except ConfigError:
            return False

    def preamble(self) -> str | None:
        """Return the text before the opening of a first user message; ``None`` without a template.

        Raises:
            ConfigError: The template opens a first message differently from later ones, or refuses a conversation.
        """
        if self.text is None:
            return None
        opening = self.render([Turn("user", MARK)]).split(MARK)[0]
        later = self.user_opening()
        between = later.lstrip() or later  # a line break between messages is not before the first one
        for candidate in (later, between):
            if opening.endswith(candidate):
                return opening[: len(opening) - len(candidate)]
        raise ConfigError(f"the chat template opens a first message in {opening!r} and later ones in {later!r}")

    def replaceable_preamble(self, system: str) -> str | None:
        """Return the preamble; "" if it cannot be found and stays as it is, ``None`` without a template.

        Args:
            system: ``none`` requires the preamble, to leave it out; ``auto`` only pins it.

        Raises:
            ConfigError: The preamble cannot be found, and ``system`` is ``none``.
        """
        try:
            return self.preamble()
        except ConfigError:
            if system == "none":
                raise
            return ""

    def user_opening(self) -> str:
        """Return the text before every user message, found at the second user message of a conversation."""
        turns = (Turn("user", "a"), Turn("assistant", MARK))
        closed = self.render(turns).split(MARK)[1]
        after = self.render((*turns, Turn("user", MARK))).split(MARK)[1]
        for end in (
            closed,
            closed.removesuffix(str(self.tokenizer.eos_token)),
        ):  # EOS may end the conversation, not a reply
            if after.startswith(end):
                return after[len(end) :]
        raise ConfigError("the chat template changes a reply once a message follows it, so it cannot be pinned")

    def opening(self, turns: tuple[Turn, ...]) -> str:
        """Return the text of a prompt up to the beginning of its reply.

        Text between the generation prompt and the reply, such as an empty block of reasoning, is part of the prompt.
        Trailing spaces are not, since they merge with the first word of the reply. A final assistant turn is continued,
        as with ``continue_final_message`` in transformers.
        """
        if turns and turns[-1].role == "assistant":
            last = Turn("assistant", turns[-1].content + MARK, turns[-1].extra)
            return self._before_mark((*turns[:-1], last))
        before = self._before_mark((*turns, Turn("assistant", MARK)))
        generation_prompt = self.render(turns, open_reply=True)
        start = generation_prompt if before.startswith(generation_prompt) else ""
        return start + before[len(start) :].rstrip(" ")

    def _before_mark(self, turns: tuple[Turn, ...]) -> str:
        before, mark, _ = self.render(turns).rpartition(MARK)
        if not mark:
            raise ConfigError("the chat template does not write the assistant's message")
        return before

    def check_complete(self, turns: Sequence[Turn], text: str) -> None:
        """Refuse a conversation if a part of it is missing from its rendered ``text``.

        Raises:
            ConfigError: A part is missing; the message names it and its role.
        """
        omission = self._omission(turns, text)
        if omission:
            raise ConfigError(
                f"the chat template leaves out {omission}; use roles and fields that the template supports, such as "
                "user and assistant"
            )

    def _omission(self, turns: Sequence[Turn], text: str) -> str | None:
        """Return the part of a conversation that is missing from ``text``; ``None`` if nothing is missing."""
        letters = "".join(text.split())
        for number, turn in enumerate(turns):
            message = f"message {number + 1} of the conversation, of role {turn.role!r}"
            if "".join(turn.content.split()) not in letters:
                return message
            for name in json.loads(turn.extra) if turn.extra else ():
                if name in _ESSENTIAL_FIELDS and not self._writes_field(turns, number, name):
                    return f"{name!r} of {message}"
        index = self._first_unwritten(tuple((turn.role, bool(turn.content.strip()), turn.extra) for turn in turns))
        return None if index is None else f"message {index + 1} of the conversation, of role {turns[index].role!r}"

    def _find_unwritten(self, messages: tuple[tuple[str, bool, str], ...]) -> int | None:
        """Return the index of the first omitted message; messages are (role, whether it has text, other fields)."""
        marked = [Turn(role, f"{MARK}-{number}-", extra) for number, (role, _, extra) in enumerate(messages)]
        try:
            rendered = self.render(marked)
        except ConfigError:
            return None  # the template refuses these texts, not the roles
        unwritten = (n for n, (_, has_text, _) in enumerate(messages) if has_text and f"{MARK}-{n}-" not in rendered)
        return next(unwritten, None)

    def _writes_field(self, turns: Sequence[Turn], number: int, name: str) -> bool:
        message = turns[number].to_message()
        value = message.pop(name)
        without = [*turns[:number], Turn.from_message(message), *turns[number + 1 :]]
        try:
            return not value or self.render(turns) != self.render(without)
        except ConfigError:
            return True  # the template requires the field

    def exported(self, preamble: str | None, *, opens_reply: bool) -> PreTrainedTokenizerBase:
        """Return the tokenizer with a template that renders prompts as in the run, on any day.

        Args:
            preamble: The pinned preamble; ``None`` if there is none.
            opens_reply: Whether the generation prompt ends where :meth:`opening` ends.

        Raises:
            ConfigError: The template refuses a conversation of one message.
        """
        assert self.text is not None, "a tokenizer with a chat template"
        template = self._with_opening() if opens_reply else self.text
        replaced = self.replaceable_preamble("auto")
        if replaced and preamble is not None and preamble != replaced:
            pinned = f"{_literal(preamble)} + rendered[{len(replaced)}:]"
            template = f"{{%- set rendered %}}{template}{{% endset %}}"
            template += f"{{{{- rendered if messages[0]['role'] == 'system' else {pinned} }}}}"
        return with_template(self.tokenizer, template)

    def _with_opening(self) -> str:
        """Return the template, changed so that its generation prompt ends where :meth:`opening` ends."""
        question = (Turn("user", MARK),)
        opened, generation_prompt = self.opening(question), self.render(question, open_reply=True)
        assert self.text is not None
        if opened == generation_prompt:
            return self.text
        if opened.startswith(generation_prompt):
            text = _literal(opened[len(generation_prompt) :])
            condition = "add_generation_prompt"
            if self.render(question, open_reply=True, enable_thinking=False) == opened:
                condition += " and enable_thinking is not defined"  # if it is, the template writes the text itself
            return f"{self.text}{{%- if {condition} %}}{{{{- {text} }}}}{{%- endif %}}"
        end = len(opened) - len(generation_prompt)
        template = f"{{%- set rendered %}}{self.text}{{% endset %}}"
        return f"{template}{{{{- rendered[:{end}] if add_generation_prompt else rendered }}}}"


def default_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the chat template of a tokenizer, or the template ``default`` of several; ``None`` if there is none."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def with_template(tokenizer: PreTrainedTokenizerBase, template: str) -> PreTrainedTokenizerBase:
    """Return a tokenizer with this default chat template; the same object if it already has it."""
    if template == default_template(tokenizer):
        return tokenizer
    changed, templates = copy.copy(tokenizer), tokenizer.chat_template
    changed.chat_template = {**templates, "default": template} if isinstance(templates, dict) else template
    return changed


def _parts(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}]


def _literal(text: str) -> str:
    """Return ``text`` as a literal of a template; Jinja has no escapes for characters beyond the basic plane."""
    return json.dumps(text, ensure_ascii=False)


def _with_date(template: str, day: str) -> str:
    """Return ``template`` with ``day`` in place of the current date."""
    pinned = datetime.fromisoformat(day)
    dated = _DATE.sub(lambda match: _literal(pinned.strftime(match[1])), template)
    if "strftime_now(" in dated:
        raise ConfigError("the chat template computes the format of its date, which cannot be pinned")
    return dated
