"""How cost grows: one thing is varied at a time. Plain data: the driver and the report read it without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ROUNDS = 4
"""Rounds over a curve; the first is warm-up and not counted."""


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of a curve: what a step of it trains on.

    Attributes:
        name: Unique within its curve.
        control: Settings of the control, without its levels.
        levels: Number of levels K; row n of a batch has level n mod K.
        length: Tokens per row, the control's slot not counted.
        rows: Rows per batch.
    """

    name: str
    control: dict[str, Any]
    levels: int
    length: int
    rows: int


@dataclass(frozen=True, slots=True)
class Curve:
    """Settings that differ in one thing; all are compared with the first one.

    Attributes:
        name: Unique within the benchmark.
        title: What is varied, and what is fixed.
        points: In the order of the report.
        varies_levels: Whether K is varied: the last point then has a goal.
    """

    name: str
    title: str
    points: tuple[Point, ...]
    varies_levels: bool = False


def lora(rank: int) -> dict[str, Any]:
    """Return settings of a LoRA control."""
    return {"kind": "lora", "rank": rank, "alpha": 16}


def prompt(length: int) -> dict[str, Any]:
    """Return settings of a soft prompt."""
    return {"kind": "soft-prompt", "length": length}


def _levels(name: str, title: str, control: dict[str, Any], length: int) -> Curve:
    """Return the curve of K: rows enough that every level has one, about as long as those of HH with LoRA."""
    points = tuple(Point(f"{k} levels", control, k, length, rows=16) for k in (2, 5, 16))
    return Curve(name, f"levels: {title}, 16 rows of {length} tokens", points, varies_levels=True)


CURVES = (
    Curve(
        "length",
        "sequence length: LoRA of rank 4, two levels, 2,048 tokens per batch",
        tuple(Point(f"{t:,} tokens", lora(4), 2, length=t, rows=2048 // t) for t in (128, 256, 512, 1024, 2048)),
    ),
    _levels("levels-lora-4", "LoRA of rank 4", lora(4), 128),
    _levels("levels-lora-64", "LoRA of rank 64, so that K·r is 128 and more", lora(64), 128),
    _levels("levels-prompt", "soft prompt of 50", prompt(50), 16),
    Curve(
        "rank",
        "rank: LoRA, two levels, 4 rows of 64 tokens",
        tuple(Point(f"rank {r}", lora(r), 2, length=64, rows=4) for r in (1, 4, 16, 64)),
    ),
    Curve(
        "prompt",
        "soft prompt's length: two levels, 4 rows of 64 tokens and their slots",
        tuple(Point(f"{n} virtual", prompt(n), 2, length=64, rows=4) for n in (1, 10, 50, 100)),
    ),
    Curve(
        "rows",
        "rows per batch: LoRA of rank 4, two levels, rows of 64 tokens",
        tuple(Point(f"{n} row{'s' * (n > 1)}", lora(4), 2, length=64, rows=n) for n in (1, 4, 16)),
    ),
)
