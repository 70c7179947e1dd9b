"""The evaluations of a report: one, or the same comparison at several temperatures (paper section 4.6, Figure 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from meetlm.evaluation.measures import ROUGES
from meetlm.evaluation.record import Comparison, Evaluation, Measure


@dataclass(frozen=True, slots=True)
class Condition:
    """One evaluation of a report.

    Attributes:
        evaluation: Its record.
        temperature: Sampling temperature; ``None`` in a report about one evaluation.
    """

    evaluation: Evaluation
    temperature: float | None = None

    @property
    def label(self) -> str:
        """``temperature 0.5 against NAME``; empty in a report about one evaluation."""
        if self.temperature is None:
            return ""
        return f"temperature {self.temperature:g} against {self.evaluation.baseline}"

    @property
    def heading(self) -> str:
        """The label with a capital letter."""
        return self.label[:1].upper() + self.label[1:]

    @property
    def suffix(self) -> str:
        """The label as the end of a sentence."""
        return f" at {self.label}" if self.label else ""


Conditions = Sequence[Condition]


def over_temperatures(conditions: Conditions) -> bool:
    """Return whether a report is about several temperatures."""
    return conditions[0].temperature is not None


def systems_of(conditions: Conditions) -> list[str]:
    """Return the names of all systems that are compared with a baseline."""
    return list(dict.fromkeys(name for condition in conditions for name in compared_systems(condition.evaluation)))


def compared_systems(evaluation: Evaluation) -> list[str]:
    """Return the names of the systems that are compared with the baseline."""
    return [system.name for system in evaluation.systems if system.name != evaluation.baseline]


def evaluators_of(conditions: Conditions) -> list[str]:
    """Return the evaluators in the order of the report: ROUGE after the others."""
    names = dict.fromkeys(comparison.evaluator for _, comparison in comparisons_of(conditions))
    return sorted(names, key=lambda name: name in ROUGES)


def comparisons_of(conditions: Conditions, evaluator: str | None = None) -> Iterator[tuple[Condition, Comparison]]:
    """Yield the comparisons by system, then condition, then evaluator.

    Args:
        conditions: The evaluations.
        evaluator: Yield the comparisons by this evaluator only.
    """
    for system in systems_of(conditions):
        for condition in conditions:
            for comparison in sorted(condition.evaluation.comparisons, key=lambda c: c.evaluator in ROUGES):
                if comparison.system == system and evaluator in (None, comparison.evaluator):
                    yield condition, comparison


def measure_of(evaluation: Evaluation, name: str) -> Measure | None:
    """Return a measure by its name; ``None`` if the evaluation does not have it."""
    return next((measure for measure in evaluation.measures if measure.name == name), None)
