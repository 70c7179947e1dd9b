"""The record of an evaluation, ``evaluation.json``: every figure, and the rows from which it is computed.

The report is made from this record alone.

A *cell* is one prompt in one replicate (a training run and a sampling seed). Every list of completions, values and
outcomes has one entry per cell, in the order of ``cells``. Intervals are over prompts (paper sections 4.3-4.6).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from meetlm.config.errors import ConfigError
from meetlm.config.files import write_atomic
from meetlm.config.settings import problems
from meetlm.data.example import Message
from meetlm.diagnostics.intervals import Interval
from meetlm.evaluation.outcomes import Outcome


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One held-out prompt.

    Attributes:
        id: A hash of its text.
        prompt: Text, or messages with ``role`` and ``content``.
        chosen: The preferred reply in the data; ``None`` if the data have none.
    """

    id: str
    prompt: str | list[Message]
    chosen: str | None


@dataclass(frozen=True, slots=True)
class System:
    """Where the completions of a system come from.

    Attributes:
        name: Name in tables.
        files: Files of the completions, one or more per seed.
        run: The run that wrote them; ``None`` for other files.
        level: Level of the control; ``None`` if unknown.
        sampling: Temperature, top_p, max_new_tokens and stop; ``None`` if unknown.
    """

    name: str
    files: list[str]
    run: str | None
    level: str | dict[str, float] | None
    sampling: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Replicate:
    """The run and sampling seed of a replicate of a system.

    Attributes:
        system: Name of the system.
        number: Number of the replicate in ``cells``.
        run: Index of the training run that wrote it, among the runs of the system.
        source: The run named in its rows, else the file.
        sampling_seed: The seed in its rows, else 0.
    """

    system: str
    number: int
    run: int
    source: str
    sampling_seed: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A measure of a system minus the baseline's, cell by cell.

    Attributes:
        mean: Mean over prompts.
        sign_p: Two-sided p of a sign test over prompts; ties are left out.
        ratio: For lengths, the mean divided by the baseline's mean over the same cells; else ``None``.
    """

    mean: Interval
    sign_p: float
    ratio: Interval | None = None


@dataclass(frozen=True, slots=True)
class Measure:
    """A number for each completion.

    Attributes:
        name: ``rouge-l``, ``reward``, ``words``, …
        description: The measure and its unit, in one line.
        higher: Whether higher is better; ``None`` if neither is.
        values: For each system, one value per cell; ``None`` if it is not defined.
        means: For each system, the mean over prompts.
        differences: For each system except the baseline, over the cells in which both have a value.
    """

    name: str
    description: str
    higher: bool | None
    values: dict[str, list[float | None]]
    means: dict[str, Interval]
    differences: dict[str, Difference] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rates:
    """Win, lose and tie rates as in the paper's tables, shares in [0, 1].

    Each is a mean over prompts of the share of a prompt's cells.

    Attributes:
        win: Share won.
        lose: Share lost.
        tie: Share tied.
        delta: win - lose (Δ in the paper).
        sign_p: Two-sided p of a sign test over prompts, ties left out.
        num_prompts: Number of prompts counted.
        num_cells: Number of cells counted; cells without an outcome are left out, and the problems name each.
    """

    win: Interval
    lose: Interval
    tie: Interval
    delta: Interval
    sign_p: float
    num_prompts: int
    num_cells: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A system against the baseline by one evaluator.

    Attributes:
        system: Name of the system.
        baseline: Name of the baseline.
        evaluator: ``reward``, ``judge``, ``rouge-avg`` or the name of a scorer.
        outcomes: The outcome of each cell; ``None`` if there is none.
        margins: The margin of each outcome (a difference of rewards; for a judge, the mean of both orders in -1 … 1);
            ``None`` if there is none.
        rates: Rates over all cells.
        controlled_win: The length-controlled win rate; ``None`` if it cannot be estimated.
        by_replicate: Δ of each replicate, if there are several.
        asked: Whether the evaluator was asked about each cell; ``None`` if it was asked about all. A cell that it
            was asked about may still have no outcome.
    """

    system: str
    baseline: str
    evaluator: str
    outcomes: list[Outcome | None]
    margins: list[float | None]
    rates: Rates
    controlled_win: Interval | None
    by_replicate: dict[int, Interval] = field(default_factory=dict)
    asked: list[bool] | None = None

    def was_asked(self, cell: int) -> bool:
        """Return whether the evaluator was asked about a cell."""
        return self.asked is None or self.asked[cell]

    @property
    def num_left_out(self) -> int:
        """Number of cells without an outcome among those that the evaluator was asked about."""
        return (len(self.outcomes) if self.asked is None else sum(self.asked)) - self.rates.num_cells


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement of two evaluators on a system's outcomes.

    Attributes:
        system: Name of the system.
        evaluators: Names of both.
        kappa: Cohen's κ over win, tie and lose; ``None`` if it is not defined (both are constant).
        observed: Share of cells with the same outcome.
        num_cells: Number of cells with an outcome by both.
    """

    system: str
    evaluators: tuple[str, str]
    kappa: Interval | None
    observed: float
    num_cells: int


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of responses of a judge.

    Attributes:
        num_responses: Number of responses, including empty and repeated responses.
        prompt_tokens: Total, as the endpoint reports; ``None`` if a response has no count.
        completion_tokens: Likewise.
        cost: In the currency of the prices; ``None`` without prices or token counts.
    """

    num_responses: int
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: float | None


@dataclass(frozen=True, slots=True)
class Consistency:
    """The agreement between both orders of a judge, over all systems or for one.

    Attributes:
        num_calls: Number of judgements in both orders.
        num_without_verdict: Number of responses without a verdict, including empty responses.
        num_failed: Number of calls that failed after all retries.
        consistency: Share of the pairs with two verdicts that have the same verdict in both orders.
        chance: The consistency of a judge with the same verdicts that cannot see the replies.
    """

    num_calls: int
    num_without_verdict: int
    num_failed: int
    consistency: Interval | None
    chance: float | None

    @property
    def is_conclusive(self) -> bool:
        """Whether the interval of the consistency is above chance; if not, no conclusion can be drawn."""
        return self.consistency is not None and self.chance is not None and self.consistency.low > self.chance


@dataclass(frozen=True, slots=True)
class JudgeAccount:
    """What a judge was asked and how it responded.

    Attributes:
        model: Name of the model at the endpoint.
        base_url: The endpoint.
        prompt: Name or file of the judge prompt.
        prompt_text: The judge prompt: system message and template.
        overall: Agreement between both orders, over all systems.
        num_cached: Number of judgements whose response was stored before.
        this_run: Cost of the responses of this evaluation.
        stored: Cost of all stored responses to its calls, including responses of earlier evaluations.
        num_identical: Number of pairs with equal replies: a tie without a call, not included in other counts.
        prompt_reason: Why the judge has this prompt, in a clause.
        by_system: Agreement between both orders, for each system.
    """

    model: str
    base_url: str
    prompt: str
    prompt_text: str
    overall: Consistency
    num_cached: int
    this_run: Usage
    stored: Usage
    num_identical: int = 0
    prompt_reason: str = "set by --judge.prompt"
    by_system: dict[str, Consistency] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """Rows that were skipped or are unusual, and anything else that the report must mention.

    Attributes:
        description: The problem, with its system or measure, in one line.
        examples: All examples: file and line, prompt id, or whatever the description names.
    """

    description: str
    examples: list[str]

    def __str__(self) -> str:
        return f"{self.count} x {self.description}: {self.shown_examples}"

    @property
    def count(self) -> int:
        """Number of examples."""
        return len(self.examples)

    @property
    def shown_examples(self) -> str:
        """The first five examples, as text; ``…`` if there are more."""
        return ", ".join([*self.examples[:5], *(["…"] if len(self.examples) > 5 else [])])


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        settings: Every setting, resolved, with versions.
        baseline: Name of the system that the others are compared with.
        systems: All systems in the order of the tables, the baseline too.
        prompts: Held-out prompts.
        cells: [index into ``prompts``, number of the replicate].
        completions: For each system, one completion per cell.
        measures: Measures of completions.
        comparisons: By evaluator and system.
        agreements: Agreement between evaluators.
        judge: The judge's account; ``None`` without a judge.
        problems: Rows that were skipped or are unusual, and the like.
        replicates: The run and sampling seed of each replicate in ``cells``, for each system.
    """

    settings: dict[str, Any]
    baseline: str
    systems: list[System]
    prompts: list[PromptRow]
    cells: list[tuple[int, int]]
    completions: dict[str, list[str]]
    measures: list[Measure]
    comparisons: list[Comparison]
    agreements: list[Agreement] = field(default_factory=list)
    judge: JudgeAccount | None = None
    problems: list[Problem] = field(default_factory=list)
    replicates: list[Replicate] = field(default_factory=list)

    def save(self, file: Path) -> None:
        """Write the evaluation as JSON, atomically; the folder is created."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(asdict(self), ensure_ascii=False, indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, file: Path) -> Evaluation:
        """Return what :meth:`save` wrote.

        Raises:
            ConfigError: The file cannot be read, or another version wrote it in an incompatible form.
        """
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            return TypeAdapter(cls).validate_python(record)
        except (OSError, ValueError) as error:
            if isinstance(error, ValidationError):
                version = record.get("settings", {}).get("versions", {}).get("meetlm", "an unknown version")
                field, message = problems(error)[0]
                location = ".".join(map(str, field))
                reason = f"written by meetlm {version} in a form that this version cannot read ({location}: {message})"
            else:
                reason = f"not an evaluation: {error}"
            raise ConfigError(f"{file}: {reason}; run `meet evaluate` again") from error
