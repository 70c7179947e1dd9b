"""What click lets pass in numbers: NaN is in each of its ranges, infinity in most."""

from __future__ import annotations

import math

import click


def finite(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """Refuse NaN and infinity; a callback of options whose type is a range of numbers."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value
