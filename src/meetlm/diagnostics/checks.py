"""What a check of the doctor says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from meetlm.diagnostics.intervals import Interval

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at.

    Attributes:
        name: What was looked at.
        status: ``ok``; ``warning``: a run works, its result may mislead; ``problem``: it would be wasted.
        finding: What was found, in words, with its number.
        value: That number.
        low: Lower end of its 95% interval, where it has one.
        high: Upper end.
        advice: What to do about it; empty when ok.
    """

    name: str
    status: Status
    finding: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    advice: str = ""

    @classmethod
    def of_rate(cls, name: str, status: Status, finding: str, rate: Interval, advice: str) -> Check:
        """Return a check whose number is a share with an interval; the advice is dropped when ok."""
        kept = "" if status == "ok" else advice
        return cls(name, status, finding, rate.value, rate.low, rate.high, kept)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Every check of one pair of data and model."""

    checks: tuple[Check, ...]

    def count(self, status: Status) -> int:
        """Return how many checks ended so."""
        return sum(check.status == status for check in self.checks)

    @property
    def status(self) -> Status:
        """The worst status of any check."""
        return "problem" if self.count("problem") else "warning" if self.count("warning") else "ok"

    def __getitem__(self, name: str) -> Check:
        (found,) = (check for check in self.checks if check.name == name)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types."""
        return {"status": self.status, "checks": [asdict(check) for check in self.checks]}


def status_of(warning: bool, problem: bool = False) -> Status:
    """Return the worse of what applies."""
    return "problem" if problem else "warning" if warning else "ok"


def diagnosis(checks: Iterable[Check]) -> Diagnosis:
    """Return the checks as one result."""
    return Diagnosis(tuple(checks))
