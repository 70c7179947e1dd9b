"""The results of the doctor's checks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from meetlm.diagnostics.intervals import Interval

Status = Literal["ok", "warning", "problem"]

MIN_PROMPTS = 30
"""Minimum number of distinct prompts for any reliable statement about the data."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    Attributes:
        name: What was checked.
        status: ``ok``; ``warning``: a run works, but its result may be misleading; ``problem``: a run would be useless.
        finding: The result as a sentence, with its value.
        value: The value.
        low: Lower end of the 95% interval of the value; ``None`` if it has no interval.
        high: Upper end of the interval.
        advice: How to solve the problem; always empty when ok.
        rows: Number of rows that were checked; ``None`` for checks of the model.
        prompts: Number of distinct prompts in these rows.
    """

    name: str
    status: Status
    finding: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    advice: str = ""
    rows: int | None = None
    prompts: int | None = None

    def __post_init__(self) -> None:
        if self.status == "ok":
            object.__setattr__(self, "advice", "")

    @property
    def sample_size(self) -> str:
        """The numbers of rows and prompts as text; empty for checks of the model."""
        return "" if self.rows is None else f"({self.rows:,} rows, {self.prompts or 0:,} prompts)"

    def with_counts(self, row_prompts: Iterable[str]) -> Check:
        """Return the check with its numbers of rows and distinct prompts, given the prompt of each row."""
        prompts = list(row_prompts)
        return replace(self, rows=len(prompts), prompts=len(set(prompts)))


def share_check(
    name: str, status: Status, finding: str, share: Interval, advice: str, row_prompts: Iterable[str]
) -> Check:
    """Return a check of a share with an interval; too few prompts are a problem whatever the share is.

    Args:
        name: What was checked.
        status: The status if there are enough prompts.
        finding: The result as a sentence.
        share: The share.
        advice: How to solve the problem.
        row_prompts: The prompt of each row.
    """
    check = Check(name, status, finding, share.value, share.low, share.high, advice).with_counts(row_prompts)
    if (check.prompts or 0) < MIN_PROMPTS:
        too_few = f"Fewer than {MIN_PROMPTS} distinct prompts allow no conclusion: see the check 'training pairs'."
        return replace(check, status="problem", advice=too_few)
    return check


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks of data and model."""

    checks: tuple[Check, ...]

    def count(self, status: Status) -> int:
        """Return the number of checks with this status."""
        return sum(check.status == status for check in self.checks)

    @property
    def status(self) -> Status:
        """The worst status of any check."""
        return "problem" if self.count("problem") else "warning" if self.count("warning") else "ok"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types."""
        return {"status": self.status, "checks": [asdict(check) for check in self.checks]}


def worst_status(*, warning: bool, problem: bool = False) -> Status:
    """Return the worst status that applies."""
    return "problem" if problem else "warning" if warning else "ok"
