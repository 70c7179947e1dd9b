"""The demo's preference: a reply in the first person ("I", "my") is better than one without it.

A reader can check the rule by counting. It was chosen by measurement (LOG.md): its score differs between replies to one
prompt, hardly depends on their length, and is more stable within a reply than tone.
"""

from __future__ import annotations

import re

FIRST_PERSON = frozenset({"i", "my", "me", "mine", "myself"})
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


def first_person(text: str) -> float:
    """Return the share of words that are I, my, me, mine, myself (``I'm`` counts as I); 0 for no words."""
    words = _WORD.findall(text.lower().replace("\u2019", "'"))
    return sum(word.split("'")[0] in FIRST_PERSON for word in words) / len(words) if words else 0.0
