"""Splitting a length into parts of about equal size."""

from __future__ import annotations

from itertools import pairwise


def even_parts(length: int, count: int) -> list[slice]:
    """Return ``count`` neighbouring slices that cover ``length`` and whose sizes differ by at most 1."""
    borders = [length * number // count for number in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(borders)]
