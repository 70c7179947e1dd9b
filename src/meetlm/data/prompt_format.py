"""Convert text to token ids, in the same way for every method.

Prompt and completion are tokenized separately, so that the tokens of a prompt never depend on its completion. EOS ends
a completion. The text of a special token inside the data is ordinary text: it never becomes that token.

Conversations go through the tokenizer's chat template. Many templates open with an automatic system message, some with
today's date in it. The date and the text before the first message are pinned when a run starts and saved with the run,
so that a model gets the same prompt in training and a year later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from meetlm.config.errors import ConfigError
from meetlm.data.chat_template import ChatTemplate
from meetlm.data.example import Prompt, Turn

_HIDDEN = re.compile("\uf8f0(\\d+)\uf8f1")
"""Placeholder for the text of a special token in the data during rendering."""


@dataclass(frozen=True, slots=True)
class FormatSpec:
    """The settings of a prompt format, which a run saves.

    Attributes:
        preamble: Text that the chat template writes before the first user message if there is no system message;
            ``None`` without a template. A system message in the data replaces the preamble.
        system: ``auto`` keeps the template's automatic system message, ``none`` leaves it out.
        stop: Strings at which a generated completion ends, besides EOS. They are removed from it.
        date: The date that the chat template reads, ``YYYY-MM-DD``; ``None`` for the real date.
        opening_in_prompt: Whether text that the template writes between its generation prompt and a reply belongs to
            the prompt rather than to the reply.
    """

    preamble: str | None
    system: str
    stop: tuple[str, ...]
    date: str | None = None
    opening_in_prompt: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "stop": list(self.stop)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> FormatSpec:
        """Return the spec that :meth:`to_dict` wrote; in runs of older versions a reply begins with its opening."""
        stop, date = tuple(fields["stop"]), fields.get("date")
        return cls(fields["preamble"], fields["system"], stop, date, fields.get("opening_in_prompt", False))


class PromptFormat:
    """Converts prompts and completions to ids.

    Args:
        tokenizer: A transformers tokenizer with an EOS token.
        spec: The pinned format; :func:`pin_format` makes it.

    Raises:
        ConfigError: The tokenizer has no EOS token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spec: FormatSpec) -> None:
        if tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no EOS token, which must end each completion; set its eos_token")
        self.tokenizer, self.spec = tokenizer, spec
        self._template = ChatTemplate(tokenizer, spec.date)
        self._template_preamble = self._template.replaceable_preamble(spec.system)
        self._opens_with_space = _opens_with_space(tokenizer)
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._special = sorted(special | set(tokenizer.all_special_tokens), key=lambda text: (-len(text), text))
        self._special_text = re.compile("|".join(map(re.escape, self._special)))
        self._opened = lru_cache(maxsize=16)(self._open_reply)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt, with the BOS token where the tokenizer adds one; never empty.

        Raises:
            ConfigError: The chat template refuses the conversation or leaves out a part of it.
        """
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if prompt.is_chat:
            ids = self._rendered_ids(self._opened(prompt.turns))
        else:
            text = prompt.text()
            ids = list(self.tokenizer(text)["input_ids"])
            if self._special_text.search(text):
                ids = [*([bos] if bos is not None and self._adds_bos() else []), *self._ordinary_ids(text)]
            while ids and ids[-1] == eos and eos != bos:
                ids.pop()  # some tokenizers append EOS to every text, but a completion follows the prompt
        return ids or [eos if bos is None else bos]

    def completion_ids(self, prompt: Prompt, completion: Turn) -> list[int]:
        """Return the ids of a completion of ``prompt``, with EOS at its end.

        Raises:
            ConfigError: The chat template leaves out a part of the completion, or renders the prompt differently once
                the completion follows it.
        """
        ids = (
            self._reply_ids(prompt.turns, completion) if prompt.is_chat else self._continuation_ids(completion.content)
        )
        return [*ids, self.tokenizer.eos_token_id]

    def _reply_ids(self, turns: tuple[Turn, ...], completion: Turn) -> list[int]:
        """Return the ids of a conversation's reply, without EOS."""
        opened = self._opened(turns)
        if turns and turns[-1].role == "assistant":
            completion = Turn("assistant", turns[-1].content + completion.content, completion.extra)
            turns = turns[:-1]
        turns = (*turns, completion)
        rendered = self._render(turns)
        self._template.check_complete(self._hide(turns), rendered)
        if not rendered.startswith(opened):
            raise ConfigError(
                "the chat template changes the prompt once this reply follows it: "
                f"{opened[-60:]!r} became {rendered[: len(opened)][-60:]!r}; if replies begin with reasoning, set "
                "--format.reasoning true"
            )
        text, eos = rendered[len(opened) :], str(self.tokenizer.eos_token)
        # templates write a line break after EOS, which is not part of the reply
        text = text.rsplit(eos, 1)[0] if eos in text else text.rstrip()
        return self._rendered_ids(text, continues=True)

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of plain text with no BOS and no EOS: for control slots."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        """Return the text of generated ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def special_text(self, turns: Iterable[Turn]) -> str | None:
        """Return the first special token whose text is in a message; ``None`` if there is none."""
        matches = (self._special_text.search(turn.content) for turn in turns)
        return next((match[0] for match in matches if match and match[0]), None)

    def exported_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer with a chat template that renders prompts and starts replies as in training."""
        if self._template.text is None:
            return self.tokenizer
        try:
            return self._template.exported(self.spec.preamble, opens_reply=self.spec.opening_in_prompt)
        except ConfigError:  # the template refuses a conversation of one message
            return self.tokenizer

    def _open_reply(self, turns: tuple[Turn, ...]) -> str:
        """Return the text of a conversation up to the beginning of the reply."""
        continues = bool(turns) and turns[-1].role == "assistant"
        hidden = self._hide(turns)
        if self.spec.opening_in_prompt or continues:
            text = self._pin(turns, self._template.opening(hidden))
        else:
            text = self._pin(turns, self._template.render(hidden, open_reply=True))
        self._template.check_complete(self._hide(turns), text)
        return text

    def _render(self, turns: tuple[Turn, ...]) -> str:
        return self._pin(turns, self._template.render(self._hide(turns)))

    def _pin(self, turns: tuple[Turn, ...], rendered: str) -> str:
        """Return the rendered text with the pinned preamble in place of the template's own."""
        if turns and turns[0].role != "system" and self._template_preamble and self.spec.preamble is not None:
            if not rendered.startswith(self._template_preamble):
                raise ConfigError("the chat template's automatic opening depends on the messages; it cannot be pinned")
            return self.spec.preamble + rendered[len(self._template_preamble) :]
        return rendered

    def _hide(self, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        """Return the turns with a placeholder for the text of each special token in them."""
        return tuple(Turn(*(self._placeholders(text) for text in (t.role, t.content, t.extra))) for t in turns)

    def _placeholders(self, text: str) -> str:
        return self._special_text.sub(lambda match: f"\uf8f0{self._special.index(match[0])}\uf8f1", text)

    def _rendered_ids(self, text: str, *, continues: bool = False) -> list[int]:
        """Return the ids of rendered text: special tokens of the template become tokens, those of the data do not."""
        ids: list[int] = []
        for index, part in enumerate(_HIDDEN.split(text)):
            if index % 2:
                ids += self._ordinary_ids(self._special[int(part)], continues=True)
            else:
                ids += self._continued(part, self.tokenize) if continues or index else self.tokenize(part)
        return ids

    def _continuation_ids(self, text: str) -> list[int]:
        """Return the ids of plain text that continues other text."""
        if self._special_text.search(text):
            return self._ordinary_ids(text, continues=True)
        return self._continued(text, self.tokenize)

    def _continued(self, text: str, tokenize: Any) -> list[int]:
        """Return the ids of text that continues other text.

        Older SentencePiece tokenizers add a space before any text, but not after a line break, which they never merge.
        """
        if not self._opens_with_space or not text:
            return list(tokenize(text))
        before, both = tokenize("\n"), tokenize("\n" + text)
        return list(both[len(before) :] if both[: len(before)] == before else tokenize(text))

    def _ordinary_ids(self, text: str, *, continues: bool = False) -> list[int]:
        """Return the ids of text that contains the text of special tokens; none becomes a special token.

        Raises:
            ConfigError: The tokenizer has no other ids for that text.
        """
        forbidden = {self.tokenizer.convert_tokens_to_ids(token) for token in self._special}

        def split_special(text: str) -> list[int]:
            encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
            return list(encoded["input_ids"])

        ids = self._continued(text, split_special) if continues else split_special(text)
        if forbidden.isdisjoint(ids):
            return ids
        # The token is an ordinary entry of the vocabulary too: its text is encoded in two parts.
        cut = self._special_text.sub(lambda match: f"{match[0][:1]}\uf8f0{match[0][1:]}", text)
        first, *others = cut.split("\uf8f0")
        ids = self._continued(first, split_special) if continues else split_special(first)
        ids += [token for part in others for token in self._continued(part, split_special)]
        unknown = self.tokenizer.unk_token_id
        if forbidden.isdisjoint(ids) or forbidden & set(ids) == {unknown} != {self.tokenizer.eos_token_id}:
            return ids
        token = self.special_text([Turn("", text)])
        raise ConfigError(
            f"the text contains {token!r}, which the tokenizer can only encode as a special token; remove it"
        )

    def _adds_bos(self) -> bool:
        ids = self.tokenizer("x")["input_ids"]
        return bool(ids) and ids[0] == self.tokenizer.bos_token_id


def pin_format(
    tokenizer: PreTrainedTokenizerBase,
    *,
    system: str = "auto",
    stop: tuple[str, ...] = (),
    today: str | None = None,
    reasoning: bool = False,
) -> PromptFormat:
    """Return the format of a new run, with its preamble and date pinned.

    Args:
        tokenizer: The run's tokenizer.
        system: ``auto`` keeps the template's automatic system message; ``none`` leaves it out (BOS stays).
        stop: Strings at which generated completions end, besides EOS; the data source defines them.
        today: The date to pin, ``YYYY-MM-DD``; by default the real date.
        reasoning: Whether replies begin with reasoning, which replaces the template's text before a reply.

    Raises:
        ConfigError: ``system`` is neither ``auto`` nor ``none``, or the template cannot be pinned.
    """
    day = today or date.today().isoformat()
    template = ChatTemplate(tokenizer, day)
    if system not in ("auto", "none"):
        raise ConfigError(f"system is {system!r}; expected 'auto' or 'none'")
    preamble = template.replaceable_preamble(system)
    if system == "none" and preamble:
        bos = tokenizer.bos_token  # stays, unless it starts every message, as in ChatML
        keeps_bos = bos is not None and preamble.startswith(bos) and bos not in template.user_opening()
        preamble = str(bos) if keeps_bos else ""
    spec = FormatSpec(preamble, system, stop, None if preamble is None else day, not reasoning)
    return PromptFormat(tokenizer, spec)


def _opens_with_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer adds a space before any text."""
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("x", add_special_tokens=False)["input_ids"])
    return bool(tokens) and str(tokens[0]).startswith("\u2581")
