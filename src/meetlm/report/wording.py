"""Numbers and lists as readers see them: sensible digits, intervals as ``12.3 [4.1, 20.2]``, a real minus sign."""

from __future__ import annotations

import math
from collections.abc import Sequence

from meetlm.diagnostics.intervals import Interval

MINUS = "\N{MINUS SIGN}"
NO_VALUE = "\N{EN DASH}"
"""Printed where there is no number."""


def number(value: float, decimals: int) -> str:
    """Return ``value`` rounded, with a minus sign and without a negative zero."""
    text = f"{value:,.{decimals}f}"
    return text.lstrip("-") if not text.strip("-0.,") else text.replace("-", MINUS)


def signed(value: float, decimals: int) -> str:
    """Return ``value`` rounded, with a plus sign where it is positive."""
    return ("+" if round(value, decimals) > 0 else "") + number(value, decimals)


def brackets(interval: Interval, decimals: int) -> str:
    """Return the ends of an interval as ``[4.1, 20.2]``."""
    return f"[{number(interval.low, decimals)}, {number(interval.high, decimals)}]"


def scaled(interval: Interval, factor: float) -> Interval:
    """Return an estimate and its interval, multiplied."""
    return Interval(factor * interval.value, factor * interval.low, factor * interval.high)


def in_percent(share: Interval) -> str:
    """Return a share as ``45.4% [39.2, 51.7]``."""
    return f"{number(100 * share.value, 1)}% {brackets(scaled(share, 100), 1)}"


def points(delta: Interval) -> str:
    """Return a difference of shares as ``+15.4 [8.2, 22.5]``, in percentage points."""
    return f"{signed(100 * delta.value, 1)} {brackets(scaled(delta, 100), 1)}"


def decimals_of(interval: Interval) -> int:
    """Return how many decimals to print: two digits of half the interval's width, three of a value without width."""
    half = (interval.high - interval.low) / 2
    half = half if half > 0 else abs(interval.value) / 10
    return 1 if half == 0 else min(4, max(0, 1 - math.floor(math.log10(half))))


def p_value(p: float) -> str:
    """Return a p as ``0.032``, or ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def count(num: int, noun: str) -> str:
    """Return ``1 prompt`` or ``10,000 prompts``."""
    return f"{num:,} {noun}{'' if num == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Return ``a``, ``a and b`` or ``a, b and c``."""
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else "".join(names)


def clause(text: str) -> str:
    """Return a user's text, such as the first line of a docstring, without the full stop at its end."""
    return text.strip().rstrip(".")
