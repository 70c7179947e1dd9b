r"""The prompts of a judge: those of the package, and prompts from a file.

A prompt file is YAML::

    system: |            # a system message; optional
      …
    user: |              # the user message
      … {question} … {answer_a} … {answer_b} …
    ties: true           # whether C and "tie" are verdicts; default false
    verdicts:            # regular expressions (Python's) instead of the usual forms of a verdict; optional
      A: '\bfirst\b'     # the answer shown first, answer_a, is better
      B: '\bsecond\b'
      tie: '\bequal\b'   # optional

``{question}`` (or ``{post}``) is the whole prompt: a text without the cue at its end (``Assistant:``, ``TL;DR:``); of
messages, the content of a single one, else all of them, each after its speaker. Without ``verdicts``, a verdict is read
in any common form: ``[[A]]``, ``Preferred: A``, ``Answer: **B**``, or a line that holds only the letter
(:func:`read_verdict`). ``summary`` and ``dialogue`` keep the criteria, order and answer format of the paper's
appendix C in our own words; a file may hold the published text. By default, the source of the data decides between
them.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from meetlm.config.errors import ConfigError, nearest
from meetlm.config.settings import Settings
from meetlm.config.yaml_files import read_yaml, validate
from meetlm.data.example import Prompt
from meetlm.data.sources import SOURCES

Verdict = Literal["A", "B", "tie"]
"""A judge's verdict: the answer shown first is better (A), the answer shown second (B), or neither (tie)."""
Messages = list[dict[str, str]]

DEFAULT = "dialogue"
"""The prompt for data whose kind of response is unknown."""
_RESPONSES = {"dialogue": "replies in a dialogue", "summary": "summaries"}
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_QUESTION = ("question", "post")
_ANSWERS = ("answer_a", "answer_b")
_CUE = re.compile(r"\n\s*(?:Assistant|TL;DR):\s*\Z")

_QUOTES = r"""[ \t*_"'“”‘’`()\[\]]*"""
_NOUN = r"(?:(?i:assistant|summary|reply|response|answer|option)\b[ \t]*)?"
_LETTER = rf"{_QUOTES}{_NOUN}{_QUOTES}(?P<{{name}}>[ABC]\b|(?i:tie)\b)"
_MARK = re.compile(
    rf"""
    \[\[ {_LETTER.format(name="bracketed")} {_QUOTES} \]\]
    | (?i:preferred|answer|verdict|choice|winner|decision) (?:\s+{_NOUN})? [\s*_"'`]* [:：] \s* (?P<angle><)?
      {_LETTER.format(name="labelled")} {_QUOTES} (?(angle)>) {_QUOTES}
      # what follows ends the sentence or gives a reason; "A good reply …" and "A or B" are not verdicts
      (?= $ | [,.;:!(–—，。；：（！-] | (?:is|was|because|since|as|for|over|by|with|it)\b )
      (?! {_QUOTES.replace("[", r"[,/|&+=", 1)} (?:(?i:and|or|nor|vs)\b{_QUOTES})? {_NOUN}{_QUOTES} [ABC]\b )
    | ^ {_LETTER.format(name="alone")} {_QUOTES} [.:]? {_QUOTES} $
    """,
    re.VERBOSE | re.MULTILINE,
)
_CONDITION = re.compile(r"""["'”’`*_,:(\s]*(?:if|when|means|or|for\s+a\s+tie)\b""")
"""What follows a mark where a judge repeats the instructions: ``"[[A]]" if assistant A is better``."""


class Verdicts(Settings):
    """Regular expressions that read a verdict from an answer."""

    A: str = Field(description="the answer shown first is better")
    B: str = Field(description="the answer shown second is better")
    tie: str | None = Field(None, description="neither is better; null where the prompt has no tie")

    @field_validator("A", "B", "tie")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is None:
            return value
        try:
            matches_empty = re.search(value, "")
        except re.error as error:
            raise ValueError(f"expected a regular expression, got {value!r}: {error}") from error
        if matches_empty:
            raise ValueError(f"the regular expression {value!r} matches an empty answer, so it would match every one")
        return value


class JudgePrompt(Settings):
    """A judge's prompt, and how its answers are read."""

    system: str | None = Field(None, description="system message; null = none")
    user: str = Field(min_length=1, description="user message with {question}, {answer_a} and {answer_b}")
    ties: bool = Field(False, description="whether C and 'tie' are verdicts, without `verdicts`")
    verdicts: Verdicts | None = Field(None, description="regular expressions instead of the usual forms of a verdict")

    @field_validator("user")
    @classmethod
    def _check_placeholders(cls, value: str) -> str:
        placeholders = _PLACEHOLDER.findall(value)
        for name in placeholders:
            if name not in _QUESTION + _ANSWERS:
                raise ValueError(f"unknown placeholder {{{name}}}{nearest(name, _QUESTION + _ANSWERS)}")
        if not set(placeholders) & set(_QUESTION):
            raise ValueError("expected a placeholder for the prompt: {question} or {post}")
        for name in _ANSWERS:
            if name not in placeholders:
                raise ValueError(f"expected the placeholder {{{name}}}")
        return value

    @property
    def text(self) -> str:
        """The whole prompt, for readers."""
        return "\n\n".join(part.strip() for part in (self.system, self.user) if part)

    def messages(self, prompt: Prompt, answer_a: str, answer_b: str) -> Messages:
        """Return the messages to send to the judge.

        Args:
            prompt: The prompt that both answers reply to.
            answer_a: The answer shown first; white space around it is removed.
            answer_b: The answer shown second.
        """
        question = as_question(prompt)
        values = {"question": question, "post": question, "answer_a": answer_a.strip(), "answer_b": answer_b.strip()}
        # All placeholders at once: braces inside a completion stay as they are.
        user = _PLACEHOLDER.sub(lambda placeholder: values[placeholder[1]], self.user.strip())
        system = [{"role": "system", "content": self.system.strip()}] if self.system else []
        return [*system, {"role": "user", "content": user}]

    def verdict(self, answer: str) -> Verdict | None:
        """Return the verdict of an answer; ``None`` if it has no verdict, or different verdicts.

        The thoughts of a reasoning model (``<think>…</think>``) are not part of its answer.
        """
        answer = answer.rpartition("</think>")[2]
        if "<think>" in answer:  # never closed: cut off while it was still thinking
            answer = answer.partition("<think>")[0]
        if self.verdicts is None:
            verdict = read_verdict(answer)
            return None if verdict == "tie" and not self.ties else verdict
        patterns: dict[Verdict, str | None] = {"A": self.verdicts.A, "B": self.verdicts.B, "tie": self.verdicts.tie}
        matches = [verdict for verdict, pattern in patterns.items() if pattern and re.search(pattern, answer)]
        return matches[0] if len(matches) == 1 else None


def read_verdict(answer: str) -> Verdict | None:
    """Return the verdict of an answer in any common form; ``None`` if its marks differ, or there is none."""
    marks = list(_MARK.finditer(answer))
    verdicts = {match["bracketed"] or match["labelled"] or match["alone"] for match in marks}
    is_stated = any(not _CONDITION.match(answer, match.end()) for match in marks)
    if len(verdicts) != 1 or not is_stated:
        return None
    verdict = verdicts.pop()
    return "A" if verdict == "A" else "B" if verdict == "B" else "tie"


def as_question(prompt: Prompt) -> str:
    """Return a prompt as it is shown to a judge: the whole dialogue, without the cue for the reply."""
    if not prompt.is_chat:
        return _CUE.sub("", prompt.text()).strip()
    return prompt.text().strip() if len(prompt.turns) == 1 else prompt.dialogue()


def prompt_names() -> list[str]:
    """Return the names of the prompts that ship with the package."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def prompt_for(source: str) -> tuple[str, str]:
    """Return the prompt for a source of data, and why, in a clause.

    Args:
        source: One of :data:`meetlm.data.sources.SOURCES`.
    """
    task = SOURCES[source].task
    if task is None:
        return DEFAULT, f"the default, since the kind of response in {source} data is unknown"
    return task, f"for the data source {source}, whose responses are {_RESPONSES[task]}"


def load_prompt(name: str) -> JudgePrompt:
    """Return a prompt.

    Args:
        name: Name of a prompt of the package, or the path of a file.

    Raises:
        ConfigError: There is no such prompt or file, or it is wrong; names the file, the line and the field.
    """
    file = _folder() / f"{name}.yaml" if name in prompt_names() else Path(name)
    if not file.is_file():
        raise ConfigError(
            f"--judge.prompt {name}: neither a built-in prompt nor a YAML file{nearest(name, prompt_names())}"
        )
    return validate(JudgePrompt, *read_yaml(file), name=str(file))


def _folder() -> Path:
    return Path(str(resources.files("meetlm.evaluation"))) / "prompts"
