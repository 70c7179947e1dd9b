"""What a reward model reads of a prompt and its completion: two sequences, a conversation, or one text.

:meth:`RewardInput.encode` is the only way in, for training, held-out accuracy and scoring alike, so that white space
around a completion, which data sources keep and `meet generate` does not, changes nothing that is read.

Knows tokenizers; knows no model and no reward.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from meetlm.config.errors import ConfigError
from meetlm.data.example import PreferenceExample, Text
from meetlm.data.hh import ASSISTANT, HUMAN

Message = dict[str, str]
Prompt = str | list[Message]
"""Text, or messages with ``role`` and ``content``."""

Form = Literal["pair", "chat", "text"]
"""Two sequences (question, answer); the chat template's conversation; prompt and completion as one text."""

FORMS: tuple[Form, ...] = ("pair", "chat", "text")
RECORD = "reward_input"
"""Key of a checkpoint's ``config.json`` under which its form stands: ``meet reward train`` writes it."""

_MARKS = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_SPEAKERS = {"user": "Human", "assistant": "Assistant"}


@dataclass(frozen=True, slots=True)
class Ids:
    """A row as the model reads it.

    Attributes:
        ids: Token ids.
        types: Token type ids, where the tokenizer gives any.
        cut: Tokens that did not fit and were left out.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...] | None = None
    cut: int = 0


def form_of(tokenizer: PreTrainedTokenizerBase, recorded: object, asked: str) -> tuple[Form, str]:
    """Return the form that a reward model reads, and by what it was told.

    Args:
        tokenizer: The model's.
        recorded: What its ``config.json`` has under :data:`RECORD`; ``None`` where it has nothing.
        asked: A form, or ``auto``.

    Raises:
        ConfigError: It cannot be told, or the tokenizer cannot do what is asked for.
    """
    if asked != "auto":
        form, told_by = _known(asked, "input"), "asked for"
    elif recorded is not None:
        form, told_by = _known(str(recorded), f"config.json: {RECORD}"), "recorded in the model's config.json"
    elif tokenizer.chat_template is not None:
        return "chat", "the tokenizer has a chat template"
    elif _pairs(tokenizer):
        return "pair", "the tokenizer has tokens for two sequences, and no chat template"
    else:
        raise ConfigError(
            "how the reward model reads a prompt and its reply cannot be told: its tokenizer has neither a chat "
            "template nor tokens that part two sequences; expected input: pair, chat or text, such as "
            "--reward-set input=text (of `meet reward`: --input text)"
        )
    if form == "chat" and tokenizer.chat_template is None:
        raise ConfigError("input is 'chat', and the reward model's tokenizer has no chat template")
    return form, told_by


def _known(name: str, where: str) -> Form:
    for form in FORMS:
        if form == name:
            return form
    raise ConfigError(f"{where} is {name!r}; expected {', '.join(FORMS)}")


def _pairs(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None


def as_prompt(text: Text) -> Prompt:
    """Return text of a data source as a prompt."""
    return text if isinstance(text, str) else [{"role": turn.role, "content": turn.content} for turn in text]


def row_of(example: PreferenceExample, reply: Text) -> tuple[Prompt, str]:
    """Return a pair's prompt and one of its replies as prompt and completion."""
    said = reply if isinstance(reply, str) else "\n\n".join(turn.content for turn in reply)
    return as_prompt(example.prompt), said


class RewardInput:
    """Turns prompts and completions into ids.

    White space around a completion is left out in every form. ``pair`` is the tokenizer's two sequences: the question
    is the bare text of a prompt of one user message, else the dialogue as text (HH's transcripts as they are), without
    white space around it. ``chat`` is the chat template's text with the completion as the assistant's turn; HH's
    transcripts are taken apart into turns. ``text`` is prompt and completion as one text, :func:`joined` by one space
    as in HH's transcripts; conversations are put as these.

    Args:
        tokenizer: The model's.
        form: Which of the three.
        most: Most tokens of a row; ``None`` for any number. The oldest tokens of the prompt are left out of longer
            rows, a first BOS or CLS stays; of a reply that is too long by itself, its end.
        eos: Whether ``text`` is closed by the EOS token.

    Raises:
        ConfigError: ``eos`` is asked for and there is no such token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, form: Form, most: int | None, *, eos: bool = False) -> None:
        if eos and tokenizer.eos_token is None:
            raise ConfigError("eos is true, and the reward model's tokenizer has no EOS token")
        self.tokenizer, self.form, self.most = tokenizer, form, most
        self._end = str(tokenizer.eos_token) if eos and form == "text" else ""

    def encode(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Ids | str]:
        """Return each row's ids, or in one line why it has none: no token, or a conversation the template refuses.

        White space around completions changes nothing.
        """
        answers = [completion.strip() for completion in completions]
        if self.form == "pair":
            return self._pairs(prompts, answers)
        texts, refused = [], {}
        for number, (prompt, completion) in enumerate(zip(prompts, answers, strict=True)):
            try:
                texts.append(self._text(prompt, completion))
            except TemplateError as error:
                texts.append("")
                refused[number] = f"the chat template refuses it: {error}"
        if not texts:
            return []
        found = self.tokenizer(texts, add_special_tokens=self.form != "chat", verbose=False)["input_ids"]
        return [refused.get(number) or self._cut(ids) for number, ids in enumerate(found)]

    def _text(self, prompt: Prompt, completion: str) -> str:
        if self.form == "chat":
            turns = [*messages_of(prompt), {"role": "assistant", "content": completion}]
            return str(self.tokenizer.apply_chat_template(_one_reply(turns), tokenize=False))
        before = prompt if isinstance(prompt, str) else f"\n\n{transcript(prompt)}"
        return joined(before, completion) + self._end

    def _cut(self, ids: list[int]) -> Ids | str:
        if not ids:
            return "it has no token"
        if self.most is None or len(ids) <= self.most:
            return Ids(tuple(ids))
        head = ids[:1] if ids[0] == self.tokenizer.bos_token_id else []
        tail = ids[len(ids) - (self.most - len(head)) :]
        return Ids((*head, *tail), cut=len(ids) - self.most)

    def _pairs(self, prompts: Sequence[Prompt], answers: list[str]) -> list[Ids | str]:
        questions = [question_of(prompt) for prompt in prompts]
        if not questions:
            return []
        rows: list[Ids | str] = []
        found = self.tokenizer(questions, answers, verbose=False)
        types = found.get("token_type_ids")
        for number, ids in enumerate(found["input_ids"]):
            if self.most is not None and len(ids) > self.most:
                rows.append(self._cut_pair(questions[number], answers[number], len(ids)))
            elif ids:
                rows.append(Ids(tuple(ids), None if types is None else tuple(types[number])))
            else:
                rows.append("it has no token")
        return rows

    def _cut_pair(self, question: str, answer: str, length: int) -> Ids:
        """Leave out the oldest of the question; where the answer alone does not fit, the end of both."""
        alone = self.tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"]
        assert self.most is not None
        fits = len(alone) + self.tokenizer.num_special_tokens_to_add(pair=True) < self.most
        side = self.tokenizer.truncation_side
        self.tokenizer.truncation_side = "left" if fits else "right"
        try:
            one = self.tokenizer(
                question,
                answer,
                truncation="only_first" if fits else "longest_first",
                max_length=self.most,
                verbose=False,
            )
        finally:
            self.tokenizer.truncation_side = side
        types = one.get("token_type_ids")
        ids = tuple(one["input_ids"])
        return Ids(ids, None if types is None else tuple(types), length - len(ids))


def joined(before: str, completion: str) -> str:
    """Return a text with a completion behind it, which has no white space around it.

    One space is between them, as in HH's transcripts; none where the text is empty or ends in white space itself.
    """
    gap = "" if not before or before[-1].isspace() else " "
    return f"{before}{gap}{completion}"


def question_of(prompt: Prompt) -> str:
    """Return a prompt as one text: a single user message bare, else the dialogue."""
    if isinstance(prompt, str):
        return prompt.strip()
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return prompt[0]["content"].strip()
    return transcript(prompt)


def transcript(messages: Sequence[Message]) -> str:
    """Return a conversation as HH's transcripts put it, open for the assistant's reply, without the first line breaks.

    Other roles than HH's two are named as they are: ``System: …``.
    """
    said = [f"{_SPEAKERS.get(m['role'], m['role'].capitalize())}: {m['content'].strip()}" for m in messages]
    return "\n\n".join([*said, ASSISTANT.strip()])


def messages_of(prompt: Prompt) -> list[Message]:
    """Return a prompt as messages: one of HH's transcripts taken apart, other text as one user message."""
    if not isinstance(prompt, str):
        return list(prompt)
    if HUMAN not in prompt:
        return [{"role": "user", "content": prompt.strip()}]
    before, *parts = _MARKS.split(prompt)
    messages = [{"role": "system", "content": before.strip()}] if before.strip() else []
    for mark, said in zip(parts[::2], parts[1::2], strict=True):
        messages.append({"role": _ROLES[mark], "content": said.strip()})
    if messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()  # what opens the reply
    return messages


def _one_reply(turns: list[Message]) -> list[Message]:
    """Return the turns, a reply that the prompt has begun joined to its beginning."""
    *earlier, last = turns
    if earlier and earlier[-1]["role"] == "assistant":
        whole = joined(earlier[-1]["content"], last["content"])
        return [*earlier[:-1], {"role": "assistant", "content": whole}]
    return turns
