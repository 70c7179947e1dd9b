"""Text to token ids, the same way for every method. Knows the tokenizer; knows no level and no model.

Prompt and completion are tokenised apart and joined, so that the border between them never moves with what follows,
and EOS closes a completion. Conversations go through the tokenizer's chat template. Many templates open with an
automatic system message, some with today's date in it: what stands before the first message is pinned when a run
starts and saved with it, so that a model is asked next year in the words in which it was trained.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from meetlm.config.errors import ConfigError
from meetlm.data.example import Text, Turn

_MARK = "meetlm-marks-the-first-message"


@dataclass(frozen=True, slots=True)
class FormatSpec:
    """What a run saves of its format.

    Attributes:
        preamble: What the chat template puts before a first user message when no system message is given; ``None``
            where the tokenizer has no template. ``system`` replaces it.
        system: ``auto`` keeps the template's automatic system message, ``none`` leaves it out.
        stop: Strings at which a generated completion ends (cut off, not kept), besides EOS.
    """

    preamble: str | None
    system: str
    stop: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "stop": list(self.stop)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> FormatSpec:
        """Return the spec that :meth:`to_dict` wrote."""
        return cls(fields["preamble"], fields["system"], tuple(fields["stop"]))


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
        self._template_preamble = _preamble(tokenizer)

    def prompt_ids(self, prompt: Text) -> list[int]:
        """Return the ids of a prompt, with the BOS token where the tokenizer adds one; never empty."""
        if isinstance(prompt, str):
            ids = list(self.tokenizer(prompt)["input_ids"])
            while ids and ids[-1] == self.tokenizer.eos_token_id and ids[-1] != self.tokenizer.bos_token_id:
                ids.pop()  # some tokenizers close every text; the prompt goes on
        else:
            ids = self._ids(self._render(prompt, open_reply=True))
        if not ids:
            start = self.tokenizer.bos_token_id
            ids = [self.tokenizer.eos_token_id if start is None else start]
        return ids

    def completion_ids(self, prompt: Text, completion: Text) -> list[int]:
        """Return the ids of a completion of ``prompt``, closed by EOS.

        Raises:
            ConfigError: One side is a conversation and the other is not, or the chat template does not continue the
                prompt that it rendered before.
        """
        if isinstance(prompt, str) != isinstance(completion, str):
            raise ConfigError("a prompt and its completion must both be text or both be conversations")
        if isinstance(completion, str):
            text = completion
        else:
            assert not isinstance(prompt, str)
            opened = self._render(prompt, open_reply=True)
            whole = self._render((*prompt, *completion), open_reply=False)
            if not whole.startswith(opened):
                raise ConfigError(
                    "the chat template changes the prompt once a completion follows it, "
                    f"so the completion cannot be told from it: {opened[-60:]!r} became {whole[: len(opened)][-60:]!r}"
                )
            text = whole[len(opened) :]
            text = text.split(str(self.tokenizer.eos_token))[0] if self.tokenizer.eos_token in text else text.rstrip()
        return [*self._ids(text), self.tokenizer.eos_token_id]

    def words(self, text: str) -> list[int]:
        """Return the ids of plain words with no BOS and no EOS: for control slots."""
        return self._ids(text)

    def text(self, ids: list[int]) -> str:
        """Return the text of generated ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _render(self, turns: tuple[Turn, ...], *, open_reply: bool) -> str:
        if self.tokenizer.chat_template is None or self.spec.preamble is None:
            raise ConfigError("the data are conversations and the tokenizer has no chat template")
        rendered = _template(self.tokenizer, turns, open_reply=open_reply)
        if turns and turns[0].role != "system" and self._template_preamble:
            if not rendered.startswith(self._template_preamble):
                raise ConfigError("the chat template's automatic opening depends on the messages; it cannot be pinned")
            return self.spec.preamble + rendered[len(self._template_preamble) :]
        return rendered


def pin_format(tokenizer: PreTrainedTokenizerBase, *, system: str = "auto", stop: tuple[str, ...] = ()) -> PromptFormat:
    """Return the format of a new run, its automatic opening pinned.

    Args:
        tokenizer: The run's tokenizer.
        system: ``auto`` keeps the template's automatic system message; ``none`` leaves it out (BOS stays).
        stop: Where generated completions end besides EOS; comes from the data source.

    Raises:
        ConfigError: ``system`` is neither.
    """
    preamble = _preamble(tokenizer)
    if system not in ("auto", "none"):
        raise ConfigError(f"system is {system!r}; expected 'auto' or 'none'")
    if system == "none" and preamble:
        bos = tokenizer.bos_token  # kept, unless it is what opens every message (ChatML)
        keeps = bos is not None and preamble.startswith(bos) and bos not in _user_opening(tokenizer)
        preamble = str(bos) if keeps else ""
    return PromptFormat(tokenizer, FormatSpec(preamble, system, stop))


def _preamble(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What the template puts before the first user message's own opening; ``None`` without a template."""
    if tokenizer.chat_template is None:
        return None
    opening = _template(tokenizer, (Turn("user", _MARK),), open_reply=False).split(_MARK)[0]
    own = _user_opening(tokenizer)
    if not opening.endswith(own):
        raise ConfigError(f"the chat template opens a first message in {opening!r} and later ones in {own!r}")
    return opening[: len(opening) - len(own)]


def _user_opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """What opens every user message, read off the second one of a conversation."""
    turns = (Turn("user", "a"), Turn("assistant", _MARK))
    closed = _template(tokenizer, turns, open_reply=False).split(_MARK)[1]
    after = _template(tokenizer, (*turns, Turn("user", _MARK)), open_reply=False).split(_MARK)[1]
    if not after.startswith(closed):
        raise ConfigError("the chat template changes a reply once a message follows it; it cannot be pinned")
    return after[len(closed) :]


def _template(tokenizer: PreTrainedTokenizerBase, turns: tuple[Turn, ...], *, open_reply: bool) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_reply))
