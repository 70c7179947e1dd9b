"""What an evaluation found, and every row behind it: the one thing that the report reads, ``evaluation.json``.

Everything is by column. A *cell* is one prompt under one seed, and every list of completions, values and outcomes has
one entry a cell, in the order of ``cells``; prompts are what is drawn when intervals are made (paper sections 4.3-4.6).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from meetlm.config.files import write_atomic
from meetlm.data.example import Message
from meetlm.diagnostics.intervals import Interval

Outcome = Literal["win", "tie", "lose"]
"""Of a system against the baseline, in one cell."""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One held-out prompt.

    Attributes:
        id: Names it: a hash of its text.
        prompt: Text, or messages with ``role`` and ``content``.
        chosen: The preferred reply in the data; ``None`` where the data have none.
    """

    id: str
    prompt: str | list[Message]
    chosen: str | None


@dataclass(frozen=True, slots=True)
class System:
    """Where completions came from.

    Attributes:
        name: In tables.
        files: Their files, one or more a seed.
        run: The run that wrote them; ``None`` for a file from elsewhere.
        level: Of the control; ``None`` where it is not stated.
        sampling: Temperature, top_p, max_new_tokens, stop; ``None`` where they are not stated.
    """

    name: str
    files: list[str]
    run: str | None
    level: str | dict[str, float] | None
    sampling: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Replicate:
    """Which run and seed the number of a replicate stands for, in one system.

    Attributes:
        system: Its name.
        seed: The number in ``cells``.
        run: Which of the system's training runs wrote it, counted from 0.
        source: That run as its rows state it; where they state none, the file.
        sampling_seed: The seed that its rows state; 0 where they state none.
    """

    system: str
    seed: int
    run: int
    source: str
    sampling_seed: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A measure of a system minus the baseline's, cell by cell.

    Attributes:
        mean: Over prompts.
        sign_p: Two-sided p of a sign test over prompts, equal ones left out.
        ratio: For lengths, the mean divided by the baseline's over the same cells; else ``None``.
    """

    mean: Interval
    sign_p: float
    ratio: Interval | None = None


@dataclass(frozen=True, slots=True)
class Measure:
    """A number for each completion.

    Attributes:
        name: Such as ``rouge-l``, ``reward``, ``words``.
        description: One line for readers: what it is, in which unit.
        higher: Whether more is better; ``None`` where neither is.
        values: For each system, one a cell; ``None`` where it has none (an empty completion, a scorer's NaN).
        means: For each system, over prompts, with its bootstrap interval.
        differences: For each system but the baseline, where a cell has both values.
    """

    name: str
    description: str
    higher: bool | None
    values: dict[str, list[float | None]]
    means: dict[str, Interval]
    differences: dict[str, Difference] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rates:
    """Win, lose and tie rates as the paper's tables have them, shares in [0, 1].

    Each is a mean over prompts of the share of a prompt's cells.

    Attributes:
        win: Share won.
        lose: Share lost.
        tie: Share tied.
        delta: win - lose (Δ in the paper).
        sign_p: Two-sided p of a sign test over prompts, ties left out.
        num_prompts: Prompts counted.
        num_cells: Cells counted.
        num_left_out: Cells without an outcome, each named among the problems.
    """

    win: Interval
    lose: Interval
    tie: Interval
    delta: Interval
    sign_p: float
    num_prompts: int
    num_cells: int
    num_left_out: int


@dataclass(frozen=True, slots=True)
class SeedDelta:
    """Δ of one replicate.

    Attributes:
        seed: Its number in ``cells``; :class:`Replicate` says which run and seed that is.
        delta: Over its prompts alone.
        num_prompts: Prompts counted.
    """

    seed: int
    delta: Interval
    num_prompts: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A system against the baseline by one evaluator.

    Attributes:
        system: Its name.
        baseline: Name of the other.
        evaluator: Such as ``reward``, ``judge``, ``rouge-l``.
        outcomes: One a cell; ``None`` where there is none.
        margins: One a cell: how clear it was (a difference of rewards; for a judge, the mean of both orders in
            {-1, …, 1}), for sorting examples; ``None`` where there is none.
        rates: Over all cells.
        controlled_win: The length-controlled win rate; ``None`` where it cannot be estimated.
        by_seed: Each replicate's own Δ, where there are several.
        asked: One a cell: whether the evaluator was asked about it; ``None`` where it was about all. A cell that it was
            asked about may still have no outcome.
    """

    system: str
    baseline: str
    evaluator: str
    outcomes: list[Outcome | None]
    margins: list[float | None]
    rates: Rates
    controlled_win: Interval | None
    by_seed: list[SeedDelta] = field(default_factory=list)
    asked: list[bool] | None = None

    def was_asked(self, cell: int) -> bool:
        """Whether the evaluator was asked about a cell."""
        return self.asked is None or self.asked[cell]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two evaluators agree on a system's outcomes.

    Attributes:
        system: Its name.
        evaluators: Both.
        kappa: Cohen's κ over win, tie and lose; ``None`` where it is not defined (both are constant).
        observed: Share of cells with the same outcome.
        num_cells: Cells that both have an outcome for.
    """

    system: str
    evaluators: tuple[str, str]
    kappa: Interval | None
    observed: float
    num_cells: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What some answers of a judge cost.

    Attributes:
        num_answers: All that came, also those that were empty, or whose call was asked again.
        prompt_tokens: In all, as the endpoint told; ``None`` where it did not tell them of each answer.
        completion_tokens: As ``prompt_tokens``.
        cost: In the currency of the prices given; ``None`` without prices, or where tokens are not known.
    """

    num_answers: int
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: float | None


@dataclass(frozen=True, slots=True)
class Consistency:
    """How far both orders of a judge agree, over all systems or on one.

    Attributes:
        num_calls: Judgements needed, both orders.
        num_unparsable: Answers without a verdict, empty ones too.
        num_failed: Calls that failed after all retries.
        consistency: Share of pairs with the same verdict in both orders, of those with two verdicts.
        chance: What an order-blind coin with this judge's verdicts would reach.
        conclusive: Whether consistency is above chance beyond doubt; if not, no conclusion can be drawn.
    """

    num_calls: int
    num_unparsable: int
    num_failed: int
    consistency: Interval | None
    chance: float | None
    conclusive: bool


@dataclass(frozen=True, slots=True)
class JudgeAccount:
    """What a judge was asked and how it answered.

    Attributes:
        model: Its name at the endpoint.
        base_url: The endpoint.
        prompt: Name or file of the judge prompt.
        prompt_text: The prompt itself: system message and template.
        overall: How far both orders agree, over all systems.
        num_cached: Of the judgements needed, those found on disk.
        this_run: What the answers cost that came while this evaluation was made.
        kept: What all answers to its calls cost, those of earlier runs too.
        num_same: Pairs whose replies are the same: a tie without asking, in no other count.
        prompt_reason: Why this prompt was asked, in a clause.
        finish_reasons: Of answers without a verdict, as the endpoint told, and how many have each.
        by_system: How far both orders agree, for each system that it was asked about.
    """

    model: str
    base_url: str
    prompt: str
    prompt_text: str
    overall: Consistency
    num_cached: int
    this_run: Usage
    kept: Usage
    num_same: int = 0
    prompt_reason: str = "given"
    finish_reasons: dict[str, int] = field(default_factory=dict)
    by_system: dict[str, Consistency] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """Rows that are not as they should be, and what else has to be known: never dropped in silence.

    Attributes:
        what: One line: which problem, in which system or measure.
        count: How many rows, or what else ``what`` says.
        examples: All of them, where they have names: file and line, or prompt id.
        of_rows: Whether rows are counted: not where settings, estimates or a judge's answers are.
    """

    what: str
    count: int
    examples: list[str]
    of_rows: bool = True

    @property
    def shown(self) -> str:
        """The first five examples, for a line of text; ``…`` stands for more."""
        return ", ".join([*self.examples[:5], *(["…"] if len(self.examples) > 5 else [])])


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        settings: Every setting, resolved, with versions.
        baseline: Name of the system that the others are compared with.
        systems: In the order given, the baseline too.
        prompts: Held-out prompts.
        cells: [index into ``prompts``, seed].
        completions: For each system, one a cell.
        measures: Of completions.
        comparisons: By evaluator and system.
        agreements: Between evaluators.
        judge: Its account, where one was asked.
        problems: Named and counted.
        replicates: What each seed in ``cells`` stands for, for each system.
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
        """Write it as JSON, beside its place and then renamed; its folder is made."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(asdict(self), ensure_ascii=False, indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, file: Path) -> Evaluation:
        """Return what :meth:`save` wrote."""
        found = json.loads(file.read_text(encoding="utf-8"))
        return cls(
            settings=found["settings"],
            baseline=found["baseline"],
            systems=[System(**one) for one in found["systems"]],
            prompts=[PromptRow(**one) for one in found["prompts"]],
            cells=[(prompt, seed) for prompt, seed in found["cells"]],
            completions=found["completions"],
            measures=[_measure(one) for one in found["measures"]],
            comparisons=[_comparison(one) for one in found["comparisons"]],
            agreements=[
                Agreement(**{**one, "evaluators": tuple(one["evaluators"]), "kappa": _interval(one["kappa"])})
                for one in found["agreements"]
            ],
            judge=found["judge"] and _account(found["judge"]),
            problems=[Problem(**one) for one in found["problems"]],
            replicates=[Replicate(**one) for one in found.get("replicates", [])],
        )


def _measure(found: dict[str, Any]) -> Measure:
    means = {name: Interval(**mean) for name, mean in found["means"].items()}
    differences = {
        name: Difference(Interval(**one["mean"]), one["sign_p"], _interval(one["ratio"]))
        for name, one in found.get("differences", {}).items()
    }
    return Measure(**{**found, "means": means, "differences": differences})


def _comparison(found: dict[str, Any]) -> Comparison:
    rates: dict[str, Any] = {
        name: Interval(**one) if isinstance(one, dict) else one for name, one in found["rates"].items()
    }
    by_seed = [SeedDelta(one["seed"], Interval(**one["delta"]), one["num_prompts"]) for one in found.get("by_seed", [])]
    controlled = _interval(found["controlled_win"])
    return Comparison(**{**found, "rates": Rates(**rates), "controlled_win": controlled, "by_seed": by_seed})


def _account(found: dict[str, Any]) -> JudgeAccount:
    costs = {name: Usage(**found[name]) for name in ("this_run", "kept")}
    by_system = {name: _consistency(one) for name, one in found["by_system"].items()}
    return JudgeAccount(**{**found, **costs, "overall": _consistency(found["overall"]), "by_system": by_system})


def _consistency(found: dict[str, Any]) -> Consistency:
    return Consistency(**{**found, "consistency": _interval(found["consistency"])})


def _interval(found: dict[str, float] | None) -> Interval | None:
    return None if found is None else Interval(**found)
