"""An evaluation in words: who was compared with whom, what came out, and what cannot be concluded from it."""

from __future__ import annotations

from dataclasses import dataclass

from meetlm.diagnostics.intervals import Interval
from meetlm.evaluation.cells import SETTINGS
from meetlm.evaluation.record import Comparison, Evaluation, Measure
from meetlm.report.tables import evaluators_of, measure_of, ordered, others_of
from meetlm.report.verdict import (
    JUDGE,
    RULE,
    Verdict,
    doubted,
    is_clear,
    is_doubtful,
    leaves_out_0,
    verdict,
    why_doubtful,
)
from meetlm.report.wording import count, in_percent, listed, number, p_value, points

SHOWN = 4
"""Problems named in the summary; the table has all."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What came out for one system.

    Attributes:
        system: Its name.
        text: The rest of the sentence.
        verdicts: By evaluator; none where there are several a evaluator.
    """

    system: str
    text: str
    verdicts: dict[str, Verdict]


@dataclass(frozen=True, slots=True)
class Summary:
    """An evaluation in words.

    Attributes:
        opening: Who was compared with whom, on what.
        findings: One a system.
        caveats: What cannot be concluded, and why.
    """

    opening: str
    findings: list[Finding]
    caveats: list[str]


def summarize(evaluation: Evaluation) -> Summary:
    """Return an evaluation in words."""
    return Summary(_opening(evaluation), _findings(evaluation), _caveats(evaluation))


def _opening(evaluation: Evaluation) -> str:
    others = others_of(evaluation)
    seeds = len({seed for _, seed in evaluation.cells})
    compared = f"{listed(others)} {'was' if len(others) == 1 else 'were'} compared with {evaluation.baseline}"
    on = f"on {count(len(evaluation.prompts), 'held-out prompt')}"
    if seeds > 1:
        on += f" under {seeds} seeds ({count(len(evaluation.cells), 'pair')} of completions a system)"
    by = listed([_evaluator(evaluation, name) for name in evaluators_of(evaluation)])
    if not by:
        return f"{compared} {on}. No evaluator told the outcome of any pair, so there is no finding."
    return (
        f"{compared} {on}, by {by}. Δ is the share of prompts won minus the share lost, in percentage points; "
        f"brackets are 95% bootstrap intervals over prompts{_and_runs(evaluation)}. Better and "
        f"worse are said only where {RULE}."
    )


def trained(evaluation: Evaluation) -> dict[str, int]:
    """Return the number of training runs of each system; nothing where the record does not say."""
    runs: dict[str, set[int]] = {}
    for one in evaluation.replicates:
        runs.setdefault(one.system, set()).add(one.run)
    return {name: len(found) for name, found in runs.items()}


def _and_runs(evaluation: Evaluation) -> str:
    return " and training runs" if max(trained(evaluation).values(), default=1) > 1 else ""


def _evaluator(evaluation: Evaluation, name: str) -> str:
    """Return an evaluator's name, with the prompts that it saw where it did not see all."""
    seen = max(one.rates.num_prompts for one in evaluation.comparisons if one.evaluator == name)
    return name if seen == len(evaluation.prompts) else f"{name} (on {seen:,} of them)"


_PHRASES: dict[Verdict, str] = {
    "better": "better than {baseline} by {found}",
    "worse": "worse than {baseline} by {found}",
    "even": "not told apart from {baseline} by {found}",
    "inconclusive": "no conclusion by {found}",
}


def _findings(evaluation: Evaluation) -> list[Finding]:
    findings = []
    for system in (one.name for one in evaluation.systems):
        ours = [one for one in ordered(evaluation) if one.system == system]
        if not ours:
            continue
        verdicts = {one.evaluator: verdict(evaluation, one) for one in ours}
        parts = []
        for kind, phrase in _PHRASES.items():
            of_kind = [_figures(one) for one in ours if verdicts[one.evaluator] == kind]
            if of_kind:
                parts.append(phrase.format(baseline=evaluation.baseline, found=listed(of_kind)))
        findings.append(Finding(system, "; ".join(parts) + ".", verdicts))
    return findings


def _figures(comparison: Comparison) -> str:
    p = p_value(comparison.rates.sign_p)
    return f"{comparison.evaluator} (Δ {points(comparison.rates.delta)}, p {p if p[0] == '<' else '= ' + p})"


def _caveats(evaluation: Evaluation) -> list[str]:
    return [
        *_of_the_judge(evaluation),
        *_of_the_missing(evaluation),
        *_of_intervals(evaluation),
        *_of_disagreement(evaluation),
        *_of_length(evaluation),
        *_of_training(evaluation),
        *_of_sampling(evaluation),
        *_of_rows(evaluation),
    ]


def _of_the_judge(evaluation: Evaluation) -> list[str]:
    judge, said = evaluation.judge, []
    if judge is None:
        return []
    if is_doubtful(evaluation, JUDGE):
        said.append(
            f"Nothing can be concluded from the judge ({judge.model}): {why_doubtful(judge.overall)}. Its figures are "
            "printed, not findings."
        )
    else:
        said += [
            f"Nothing can be concluded from the judge ({judge.model}) about {name}: {why_doubtful(one)}. Those figures "
            "are printed, not findings."
            for name, one in doubted(evaluation).items()
        ]
    whole = judge.overall
    lost = whole.num_unparsable + whole.num_failed
    if lost:
        said.append(
            f"Of {count(whole.num_calls, 'judgement')}, {whole.num_unparsable:,} had no verdict that could be read and "
            f"{whole.num_failed:,} failed for good: {number(100 * lost / max(1, whole.num_calls), 1)}% in all."
        )
    return said


def _of_the_missing(evaluation: Evaluation) -> list[str]:
    evaluators = evaluators_of(evaluation)
    if evaluation.judge is not None and JUDGE not in evaluators:
        evaluators.append(JUDGE)
    by = {name: [one.system for one in evaluation.comparisons if one.evaluator == name] for name in evaluators}
    missing = {name: [one for one in others_of(evaluation) if one not in found] for name, found in by.items()}
    return [
        f"There is no figure for {listed(systems)} by {name}: no pair has an outcome."
        for name, systems in missing.items()
        if systems
    ]


def _of_intervals(evaluation: Evaluation) -> list[str]:
    said = []
    told = [one for one in ordered(evaluation) if verdict(evaluation, one) != "inconclusive"]
    even: dict[str, list[str]] = {}
    for one in told:
        if not leaves_out_0(one.rates):
            even.setdefault(one.system, []).append(one.evaluator)
    if even:
        where = "; ".join(f"{system} by {listed(evaluators)}" for system, evaluators in even.items())
        said.append(f"The interval of Δ contains 0, so it could be better, worse or the same: {where}.")
    weak = [
        f"{one.system} by {one.evaluator} (p = {p_value(one.rates.sign_p)})"
        for one in told
        if leaves_out_0(one.rates) and not is_clear(evaluation, one)
    ]
    if weak:
        said.append(
            "The interval of Δ leaves out 0, but the sign test over prompts does not confirm it, so it is no finding: "
            f"{listed(weak)}."
        )
    if len(told) > 1:
        said.append(
            f"There are {len(told)} comparisons, each with its own 95% interval, not corrected for their number: of "
            "twenty without any difference, one would seem clear by chance."
        )
    return said


def _of_disagreement(evaluation: Evaluation) -> list[str]:
    said = []
    for finding in _findings(evaluation):
        by = {kind: [name for name, found in finding.verdicts.items() if found == kind] for kind in ("better", "worse")}
        if by["better"] and by["worse"]:
            said.append(
                f"The evaluators contradict each other on {finding.system}: better by {listed(by['better'])}, worse by "
                f"{listed(by['worse'])}."
            )
    return said


def _of_length(evaluation: Evaluation) -> list[str]:
    said = []
    for one in ordered(evaluation):
        equal = one.controlled_win
        found = verdict(evaluation, one)
        if equal is None or not (found == "better" and equal.low <= 0.5 or found == "worse" and equal.high >= 0.5):
            continue
        said.append(
            f"At equal length {one.system} is expected to win {in_percent(equal)} by {one.evaluator}, not clear of "
            f"50%{_if_longer(evaluation, one.system, better=found == 'better')}."
        )
    return said


def _if_longer(evaluation: Evaluation, system: str, *, better: bool) -> str:
    words: Measure | None = measure_of(evaluation, "words")
    if words is None or system not in words.means or not words.means.get(evaluation.baseline, Interval(0, 0, 0)).value:
        return ""
    ours, theirs = words.means[system].value, words.means[evaluation.baseline].value
    if ours == theirs or (ours > theirs) != better:
        return ""
    words_each = f"{number(ours, 1)} words against {number(theirs, 1)}"
    said = "better may be a matter of its longer" if better else "worse may be a matter of its shorter"
    return f": that it is {said} replies ({words_each})"


def _of_training(evaluation: Evaluation) -> list[str]:
    once = [name for name, number_of in trained(evaluation).items() if number_of == 1]
    if not once:
        return []
    return [f"One training run only of {listed(once)}: no interval holds the chance of training it under another seed."]


def _of_sampling(evaluation: Evaluation) -> list[str]:
    unstated = {one.name: [name for name in SETTINGS if name not in (one.sampling or {})] for one in evaluation.systems}
    said = [
        f"{name} does not state how it was sampled ({', '.join(missing)}): taken to be as the others were."
        for name, missing in unstated.items()
        if missing
    ]
    seeds = {seed for _, seed in evaluation.cells}
    drawn = [one.name for one in evaluation.systems if (one.sampling or {}).get("temperature")]
    if drawn and len(seeds) == 1:
        said.append(
            f"{listed(drawn)} sampled with one seed only: the intervals hold the chance of prompts, not of draws."
        )
    return said


def _of_rows(evaluation: Evaluation) -> list[str]:
    said = []
    left_out = sum(one.rates.num_left_out for one in evaluation.comparisons)
    if left_out:
        said.append(
            f"{count(left_out, 'outcome')} of all comparisons together could not be told and are left out of the rates."
        )
    rows = [one for one in evaluation.problems if one.of_rows]
    if rows:
        what = [f"{one.what} ({one.count:,})" for one in rows[:SHOWN]]
        more = len(rows) - len(what)
        rest = f"; and {count(more, 'more kind')}, all named under Problems" if more else ""
        said.append(f"Rows with problems: {'; '.join(what)}{rest}.")
    notes = len(evaluation.problems) - len(rows)
    if notes:
        said.append(f"{count(notes, 'note')} under Problems that {'is' if notes == 1 else 'are'} not about rows.")
    return said
