"""Token ids of a prompt and its completion for a reward model: two sequences, a conversation, or one text.

Training, held-out accuracy and scoring all use :meth:`RewardInput.encode`, so a row has the same ids in all of them.
White space around a completion is always removed: data sources keep it, `meet generate` does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from transformers import PreTrainedTokenizerBase

from meetlm.config.errors import ConfigError
from meetlm.data.chat_template import ChatTemplate
from meetlm.data.example import Prompt, Turn, as_reply
from meetlm.data.hh import ASSISTANT, to_turns

Form = Literal["pair", "chat", "text"]
"""Two sequences (question, answer); the chat template's conversation; prompt and completion as one text."""

FORMS: tuple[Form, ...] = ("pair", "chat", "text")
FORM_KEY = "reward_input"
"""Key of the form in a checkpoint's ``config.json``, where ``meet reward train`` writes it."""


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """A prompt and its completion as token ids.

    Attributes:
        ids: Token ids.
        type_ids: Token type ids; ``None`` if the tokenizer has none.
        num_removed: Tokens that exceeded the maximum length and were removed.
    """

    ids: tuple[int, ...]
    type_ids: tuple[int, ...] | None = None
    num_removed: int = 0


def choose_form(tokenizer: PreTrainedTokenizerBase, recorded: object, requested: str) -> tuple[Form, str]:
    """Return the form that a reward model reads, and the reason for it.

    Args:
        tokenizer: The tokenizer of the reward model.
        recorded: The value of :data:`FORM_KEY` in its ``config.json``; ``None`` if there is none.
        requested: A form, or ``auto``.

    Raises:
        ConfigError: The form cannot be determined, or the tokenizer does not support it.
    """
    form: Form
    if requested != "auto":
        form, reason = cast(Form, requested), "as requested"
    elif recorded is not None:
        if recorded not in FORMS:
            raise ConfigError(f"config.json: {FORM_KEY} is {recorded!r}; expected {', '.join(FORMS)}")
        form, reason = recorded, "recorded in the model's config.json"
    elif tokenizer.chat_template is not None:
        form, reason = "chat", "the tokenizer has a chat template"
    elif tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None:
        form, reason = "pair", "the tokenizer has CLS and SEP tokens and no chat template"
    else:
        raise ConfigError(
            "the input form of the reward model cannot be determined: its tokenizer has neither a chat template nor "
            "CLS and SEP tokens; set input to pair, chat or text (`meet evaluate`: --reward.input text, "
            "`meet reward`: --input text)"
        )
    if form == "chat" and tokenizer.chat_template is None:
        raise ConfigError("input is 'chat', but the reward model's tokenizer has no chat template; use pair or text")
    return form, reason


class RewardInput:
    """Converts prompts and completions to token ids.

    ``pair`` is two sequences: the question is the text of a prompt with one user message, else the dialogue as text
    (HH transcripts unchanged), stripped. ``chat`` is the chat template's text with the completion as the assistant's
    turn; HH transcripts are split into turns. ``text`` is prompt and completion as one text (:func:`join_text`);
    conversations are written as HH transcripts.

    Args:
        tokenizer: The tokenizer of the reward model.
        form: ``pair``, ``chat`` or ``text``.
        max_tokens: Maximum number of tokens per row, ``None`` for no limit. Longer prompts are truncated on
            the left, but a leading BOS or CLS stays; a completion that is too long by itself is truncated on the right.
        eos: Whether ``text`` ends with the EOS token.

    Raises:
        ConfigError: ``eos`` is true and the tokenizer has no EOS token.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, form: Form, max_tokens: int | None, *, eos: bool = False
    ) -> None:
        if eos and tokenizer.eos_token is None:
            raise ConfigError("eos is true, but the reward model's tokenizer has no EOS token; set eos to false")
        self.tokenizer, self.form, self.max_tokens = tokenizer, form, max_tokens
        self._end = str(tokenizer.eos_token) if eos and form == "text" else ""
        self._template = ChatTemplate(tokenizer, None)

    def encode(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[TokenizedRow | str]:
        """Return the token ids of each row; for a row that cannot be encoded, the reason as one line of text."""
        return [self._encode(*row) for row in zip(prompts, completions, strict=True)]

    def _encode(self, prompt: Prompt, completion: str) -> TokenizedRow | str:
        completion = completion.strip()
        if self.form == "pair":
            return self._encode_pair(prompt, completion)
        try:
            text = self._text(prompt, completion)
        except ConfigError as error:
            return str(error)
        return self._truncate(self.tokenizer(text, add_special_tokens=self.form != "chat", verbose=False)["input_ids"])

    def _text(self, prompt: Prompt, completion: str) -> str:
        if self.form == "chat":
            turns = _merge_prefilled_reply([*to_turns(prompt), as_reply(completion)])
            text = self._template.render(turns)
            self._template.check_complete(turns, text)
            return text
        prompt_text = prompt.content if isinstance(prompt.content, str) else f"\n\n{transcript(prompt)}"
        return join_text(prompt_text, completion) + self._end

    def _truncate(self, ids: list[int]) -> TokenizedRow | str:
        if not ids:
            return "it has no tokens"
        if self.max_tokens is None or len(ids) <= self.max_tokens:
            return TokenizedRow(tuple(ids))
        head = ids[:1] if ids[0] == self.tokenizer.bos_token_id else []
        tail = ids[len(ids) - (self.max_tokens - len(head)) :]
        return TokenizedRow((*head, *tail), num_removed=len(ids) - self.max_tokens)

    def _encode_pair(self, prompt: Prompt, answer: str) -> TokenizedRow | str:
        question = question_of(prompt)
        encoded = self.tokenizer(question, answer, verbose=False)
        length = len(encoded["input_ids"])
        if not length:
            return "it has no tokens"
        if self.max_tokens is not None and length > self.max_tokens:
            answer_ids = self.tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"]
            answer_fits = len(answer_ids) + self.tokenizer.num_special_tokens_to_add(pair=True) < self.max_tokens
            side = self.tokenizer.truncation_side
            self.tokenizer.truncation_side = "left" if answer_fits else "right"
            try:
                truncation = "only_first" if answer_fits else "longest_first"
                encoded = self.tokenizer(
                    question, answer, truncation=truncation, max_length=self.max_tokens, verbose=False
                )
            finally:
                self.tokenizer.truncation_side = side
        ids, type_ids = tuple(encoded["input_ids"]), encoded.get("token_type_ids")
        return TokenizedRow(ids, None if type_ids is None else tuple(type_ids), length - len(ids))


def join_text(prompt_text: str, completion: str) -> str:
    """Return a text followed by a stripped completion.

    They are joined by one space, as in HH transcripts, unless the text is empty or ends in white space.
    """
    separator = "" if not prompt_text or prompt_text[-1].isspace() else " "
    return f"{prompt_text}{separator}{completion}"


def question_of(prompt: Prompt) -> str:
    """Return a prompt as one text: the content of a single user message, else the dialogue."""
    if len(prompt.turns) == 1 and prompt.turns[0].role == "user":
        return prompt.text().strip()
    return transcript(prompt)


def transcript(prompt: Prompt) -> str:
    """Return a conversation as an HH transcript that ends with ``Assistant:``, without leading line breaks.

    Roles that HH does not have keep their names: ``System: …``.
    """
    return prompt.dialogue() + ASSISTANT


def _merge_prefilled_reply(turns: list[Turn]) -> list[Turn]:
    """Return the turns with the completion merged into a prefilled reply that ends the prompt."""
    *earlier, last = turns
    if earlier and earlier[-1].role == "assistant":
        return [*earlier[:-1], as_reply(join_text(earlier[-1].content, last.content))]
    return turns
