r"""What a judge is asked: prompts that ship with the package, and prompts from a file.

A prompt file is YAML::

    system: |            # a system message; may be left out
      …
    user: |              # the user message
      … {question} … {answer_a} … {answer_b} …
    verdicts:            # regular expressions (Python's), searched for in the answer
      A: '\[\[A\]\]'     # the answer shown first, as answer_a, is better
      B: '\[\[B\]\]'
      tie: '\[\[C\]\]'   # left out where the prompt knows no tie

``{question}``, which may be written ``{post}``, is the whole prompt: a text without the cue that it ends with
(``Assistant:``, ``TL;DR:``); of messages, the content of a single one, else all of them, each after its speaker.
``summary`` and ``dialogue`` keep the criteria, order and answer format of the paper's appendix C in words of our own;
with a file, the exact published text can be used. Which of the two is asked is told by the source of the data, unless
somebody says.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from meetlm.config.errors import ConfigError, nearest
from meetlm.config.settings import Settings
from meetlm.config.yaml_files import check, read_yaml
from meetlm.data.example import Prompt
from meetlm.data.sources import SOURCES

Verdict = Literal["A", "B", "tie"]
"""Of a judge: the answer shown first is better, the one shown second is, or neither."""

Messages = list[dict[str, str]]

DEFAULT = "dialogue"
"""Where the data do not say what their responses are."""
_RESPONSES = {"dialogue": "replies in a dialogue", "summary": "summaries"}

_PLACE = re.compile(r"\{(\w+)\}")
_QUESTION = ("question", "post")
_ANSWERS = ("answer_a", "answer_b")
_CUE = re.compile(r"\n\s*(?:Assistant|TL;DR):\s*\Z")


class Verdicts(Settings):
    """Regular expressions that tell a verdict from an answer.

    Attributes:
        A: The answer shown first is better.
        B: The answer shown second is better.
        tie: Neither is; ``None`` where the prompt knows no tie.
    """

    A: str
    B: str
    tie: str | None = None

    @field_validator("A", "B", "tie")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is None:
            return value
        try:
            empty = re.search(value, "")
        except re.error as error:
            raise ValueError(f"expected a regular expression, got {value!r}: {error}") from error
        if empty:
            raise ValueError(f"the regular expression {value!r} matches an empty answer, so it would match every one")
        return value


class JudgePrompt(Settings):
    """A judge's prompt, and how its answers are read.

    Attributes:
        system: The system message; ``None`` for none.
        user: The user message, with places for the question and both answers.
        verdicts: How a verdict looks.
    """

    system: str | None = None
    user: str = Field(min_length=1)
    verdicts: Verdicts

    @field_validator("user")
    @classmethod
    def _has_places(cls, value: str) -> str:
        found = _PLACE.findall(value)
        for name in found:
            if name not in _QUESTION + _ANSWERS:
                raise ValueError(f"knows no place {{{name}}}{nearest(name, _QUESTION + _ANSWERS)}")
        if not set(found) & set(_QUESTION):
            raise ValueError("expected a place for the prompt: {question} or {post}")
        for name in _ANSWERS:
            if name not in found:
                raise ValueError(f"expected the place {{{name}}}")
        return value

    @property
    def text(self) -> str:
        """The whole prompt, for readers."""
        return "\n\n".join(part.strip() for part in (self.system, self.user) if part)

    def messages(self, prompt: Prompt, answer_a: str, answer_b: str) -> Messages:
        """Return what the judge is sent.

        Args:
            prompt: What both answers reply to.
            answer_a: Shown first; white space around it is left out.
            answer_b: Shown second.
        """
        question = as_question(prompt)
        words = {"question": question, "post": question, "answer_a": answer_a.strip(), "answer_b": answer_b.strip()}
        # All at once: braces inside a completion stay what they are.
        filled = _PLACE.sub(lambda place: words[place[1]], self.user.strip())
        system = [{"role": "system", "content": self.system.strip()}] if self.system else []
        return [*system, {"role": "user", "content": filled}]

    def verdict(self, answer: str) -> Verdict | None:
        """Return what an answer says; ``None`` where it says nothing, or several things at once.

        What a reasoning model thinks aloud (``<think>…</think>``) is no part of its answer.
        """
        said = answer.rpartition("</think>")[2]
        if "<think>" in said:  # never closed: cut off while it was still thinking
            said = said.partition("<think>")[0]
        patterns: dict[Verdict, str | None] = {"A": self.verdicts.A, "B": self.verdicts.B, "tie": self.verdicts.tie}
        found = [verdict for verdict, pattern in patterns.items() if pattern and re.search(pattern, said)]
        return found[0] if len(found) == 1 else None


def as_question(prompt: Prompt) -> str:
    """Return a prompt as a judge reads it: the whole dialogue, without the cue that asks for the reply."""
    if not prompt.is_chat:
        return _CUE.sub("", prompt.text()).strip()
    return prompt.text().strip() if len(prompt.turns) == 1 else prompt.dialogue()


def prompt_names() -> list[str]:
    """Return the names of the prompts that ship with the package."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def prompt_for(source: str) -> tuple[str, str]:
    """Return the prompt that a source of data asks for, and why, in a clause.

    Args:
        source: One of :data:`meetlm.data.sources.SOURCES`.
    """
    task = SOURCES[source].task
    if task is None:
        return DEFAULT, f"the default, as the data source {source} does not say what its responses are"
    return task, f"for the data source {source}, whose responses are {_RESPONSES[task]}"


def load_prompt(name: str) -> JudgePrompt:
    """Return a prompt.

    Args:
        name: Of a prompt of the package, or a file's path.

    Raises:
        ConfigError: There is no such prompt or file, or it is wrong; names the file, the line and the field.
    """
    file = _folder() / f"{name}.yaml" if name in prompt_names() else Path(name)
    if not file.is_file():
        raise ConfigError(
            f"judge prompt {name!r}: neither a prompt of meetlm nor a file{nearest(name, prompt_names())}"
        )
    return check(JudgePrompt, *read_yaml(file), what=str(file))


def _folder() -> Path:
    return Path(str(resources.files("meetlm.evaluation"))) / "prompts"
