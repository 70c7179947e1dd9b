"""Text of token ids as they come: incremental decoding and stop strings."""

from __future__ import annotations

import re
from collections.abc import Sequence

from meetlm.data.prompt_format import PromptFormat

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
"""Token of SentencePiece that is a byte of a character outside its vocabulary."""


class IncrementalDecoder:
    """Decodes tokens as they come: each token is decoded a few times, however long the text is.

    A window of the last tokens is decoded, and again without the tokens that are new: the difference is the new text.
    The window moves on when the text so far ends with a whole character. A character may have several tokens: its
    bytes, or tokens ``<0xE6>`` of SentencePiece, whose text depends on all such tokens in a row.

    Args:
        prompt_format: Decodes ids.
    """

    def __init__(self, prompt_format: PromptFormat) -> None:
        self._format = prompt_format
        self._text = ""
        self._ids: list[int] = []
        self._start = self._end = 0  # of the tokens of the window whose text is in `_text`

    def add(self, token: int) -> str:
        """Return the text of all tokens so far, without an unfinished character at its end."""
        self._ids.append(token)
        before = self._format.decode(self._ids[self._start : self._end])
        window = self._format.decode(self._ids[self._start :])
        is_open = window.endswith("\ufffd") or self._is_byte(token)
        if is_open or not self._format.decode([token]):  # special tokens end no character
            return self._text
        if window.startswith(before):
            self._text += window[len(before) :]
        else:  # the tokenizer removes white space before a punctuation mark
            self._text = self._format.decode(self._ids)
        self._start, self._end = self._end, len(self._ids)
        return self._text

    def _is_byte(self, token: int) -> bool:
        name = self._format.tokenizer.convert_ids_to_tokens(token)
        return isinstance(name, str) and BYTE_TOKEN.fullmatch(name) is not None


def num_matching(text: str, stop: str) -> int:
    """Return the length of the longest start of ``stop`` that ``text`` ends with."""
    return next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def stop_strings(prompt_format: PromptFormat, stop: tuple[str, ...]) -> tuple[str, ...]:
    """Return the stop strings of a format and of a request."""
    return (*prompt_format.spec.stop, *stop)


def ends_in_stop(prompt_format: PromptFormat, ids: Sequence[int], stops: Sequence[str]) -> bool:
    """Whether a stop string has just appeared; a token is at least one byte, so the tail is enough."""
    num_bytes = max((len(stop.encode()) for stop in stops), default=0)
    tail = prompt_format.decode(list(ids[-num_bytes - 4 :])) if stops else ""
    return any(stop in tail for stop in stops)
