"""Numbers and lists as readers see them: sensible digits, intervals as ``12.3 [4.1, 20.2]``, a real minus sign."""

from __future__ import annotations

import math
from collections.abc import Sequence

from meetlm.diagnostics.intervals import Interval

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
"""Stands where there is no number."""


def number(value: float, decimals: int) -> str:
    """Return ``value`` rounded, with a minus sign and no negative zero."""
    text = f"{value:,.{decimals}f}"
    return text.lstrip("-") if not text.strip("-0.,") else text.replace("-", MINUS)


def brackets(interval: Interval, decimals: int) -> str:
    """Return an interval's ends as ``[4.1, 20.2]``."""
    return f"[{number(interval.low, decimals)}, {number(interval.high, decimals)}]"


def with_interval(interval: Interval, decimals: int) -> str:
    """Return an estimate as ``12.3 [4.1, 20.2]``."""
    return f"{number(interval.value, decimals)} {brackets(interval, decimals)}"


def percents(share: Interval) -> Interval:
    """Return a share in [0, 1] as an interval in percent."""
    return Interval(100 * share.value, 100 * share.low, 100 * share.high)


def in_percent(share: Interval) -> str:
    """Return a share as ``45.4% [39.2, 51.7]``."""
    found = percents(share)
    return f"{number(found.value, 1)}% {brackets(found, 1)}"


def points(delta: Interval) -> str:
    """Return a difference of shares as ``+15.4 [8.2, 22.5]``, in percentage points."""
    found = percents(delta)
    return ("+" if round(found.value, 1) > 0 else "") + with_interval(found, 1)


def decimals_of(interval: Interval) -> int:
    """Return how many decimals an estimate deserves: two digits of half its interval's width, three of its own."""
    half = (interval.high - interval.low) / 2
    half = half if half > 0 else abs(interval.value) / 10
    return 1 if half == 0 else min(4, max(0, 1 - math.floor(math.log10(half))))


def p_value(p: float) -> str:
    """Return a p as ``0.032``, or ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def count(number_of: int, noun: str) -> str:
    """Return ``1 prompt`` or ``10,000 prompts``."""
    return f"{number_of:,} {noun}{'' if number_of == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Return ``a``, ``a and b`` or ``a, b and c``."""
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else "".join(names)
