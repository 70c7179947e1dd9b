"""The demo's preference: a reply that speaks for itself ("I", "my") is better than one that speaks from outside.

A rule that a reader can check by counting. It was chosen by measurement (LOG.md): it differs between replies to one
prompt, has little to do with their length, and lasts within a reply more than tone does.
"""

from __future__ import annotations

import re

FIRST_PERSON = frozenset({"i", "my", "me", "mine", "myself"})
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


def first_person(text: str) -> float:
    """Return the share of words that are I, my, me, mine, myself (``I'm`` counts as I); 0 for no words."""
    words = _WORD.findall(text.lower().replace("\u2019", "'"))
    return sum(word.split("'")[0] in FIRST_PERSON for word in words) / len(words) if words else 0.0
