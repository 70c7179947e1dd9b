"""The demo's scorers: length by words and tone by a lexicon, fixed before any training.

They read a reply alone, without its prompt or the requested level. How often the tone agrees with people is in
``data/README.md``.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

import yaml

ATTRIBUTES = {"tone": ("formal", "casual"), "length": ("brief", "detailed")}
"""The demo's attributes and their levels."""

BRIEF_WORDS = 25
"""A reply with more words is detailed. The replies in the data have 8 to 18 words or 35 to 60."""


@cache
def _markers() -> dict[str, re.Pattern[str]]:
    """Return a pattern of the casual and one of the formal markers."""
    lexicon = yaml.safe_load((resources.files("meetlm.demo") / "tone.yaml").read_text(encoding="utf-8"))
    patterns = {tone: "|".join([*entry["patterns"], *entry["words"].split()]) for tone, entry in lexicon.items()}
    return {tone: re.compile(rf"(?<![\w'])(?:{pattern})(?![\w'])", re.IGNORECASE) for tone, pattern in patterns.items()}


def score_length(reply: str) -> str:
    """Return ``brief`` or ``detailed``, by the number of words."""
    return "brief" if len(reply.split()) <= BRIEF_WORDS else "detailed"


def count_markers(reply: str) -> dict[str, int]:
    """Return the number of casual and of formal markers.

    Casual markers: contractions, exclamation marks, interjections and colloquial words. Formal markers: verb forms
    written in full ("it is", "do not"), courtesies and words of the written language.
    """
    text = reply.replace("\u2019", "'")
    counts = {tone: len(pattern.findall(text)) for tone, pattern in _markers().items()}
    return {**counts, "casual": counts["casual"] + text.count("!")}


def score_tone(reply: str) -> str:
    """Return ``casual`` where casual markers outnumber formal ones, otherwise ``formal``."""
    counts = count_markers(reply)
    return "casual" if counts["casual"] > counts["formal"] else "formal"


def formality(prompt: object, reply: str) -> float | None:
    """Formal minus casual markers per ten words; `meet dial` uses it as the score of tone."""
    del prompt
    counts, words = count_markers(reply), len(reply.split())
    return 10 * (counts["formal"] - counts["casual"]) / words if words else None
