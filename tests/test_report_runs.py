"""Reports of several seeds and training runs, and the figures that have to be the same in table and words."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from judge_server import JudgeServer, longer
from made_evaluation import BASELINE, SYSTEMS, made_evaluation, with_delta
from meetlm.diagnostics.intervals import Interval
from meetlm.evaluation.record import Evaluation
from meetlm.report.conditions import Condition
from meetlm.report.summary import Summary, summarize
from meetlm.report.tables import outcome_table, replicate_tables
from meetlm.report.wording import number, p_value, points
from reward_models import folder_of
from test_evaluate import evaluated, systems


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return made_evaluation()


def summary_of(evaluation: Evaluation) -> Summary:
    return summarize([Condition(evaluation)])


def shape(value: object, depth: int = 2) -> object:
    """Keys of keys, as deep as settings have names of their own."""
    return {name: shape(item, depth - 1) for name, item in value.items()} if isinstance(value, dict) and depth else ()


def test_the_made_evaluation_is_as_meet_evaluate_writes_one(evaluation: Evaluation, tmp_path: Path) -> None:
    """The generated records have the same structure as real ones."""
    args = [*systems(tmp_path, (0, 1)), "--baseline", "b", "--reward", folder_of("deberta", tmp_path / "rm")]
    with JudgeServer(longer) as server:
        args += ["--judge", "j", "--judge.base_url", server.url, "--judge.key_env", "null"]
        real = evaluated(tmp_path, *args)
    assert shape(evaluation.settings) == shape(real.settings)
    made_of, real_of = (
        (
            [measure.name for measure in item.measures],
            list(dict.fromkeys(each.evaluator for each in item.comparisons)),
            list(dict.fromkeys(each.evaluators for each in item.agreements)),
            [measure.higher for measure in item.measures],
            [measure.description for measure in item.measures[:-1]],
        )
        for item in (evaluation, real)
    )
    assert made_of == real_of
    assert real.measures[-1].description.startswith("reward of ") and real.replicates and evaluation.replicates


def of_two_runs(evaluation: Evaluation, *systems: str) -> Evaluation:
    """Return the evaluation with each replicate of some systems from its own training run."""
    replicates = [
        replace(each, run=each.number, source=f"runs/{each.system}-{each.number}") if each.system in systems else each
        for each in evaluation.replicates
    ]
    return replace(evaluation, replicates=replicates)


def test_every_replicate_has_its_delta_and_its_source(evaluation: Evaluation) -> None:
    deltas, sources = replicate_tables(of_two_runs(evaluation, "hh-meet-lora"))
    assert deltas.columns == ["System", "Replicate 0", "Replicate 1"]
    rows = {(row[0].text, row[0].small): row[1:] for row in deltas.rows}
    assert list(rows)[:3] == [("hh-meet-lora", f"by {name}") for name in ("reward", "judge", "rouge-avg")]
    for comparison in (each for each in evaluation.comparisons if each.evaluator == "reward"):
        for seed, cell in enumerate(rows[comparison.system, "by reward"]):
            outcomes = [o for o, (_, s) in zip(comparison.outcomes, evaluation.cells, strict=True) if s == seed]
            counted = sum(outcome is not None for outcome in outcomes)
            assert cell.text == number(100 * (outcomes.count("win") - outcomes.count("lose")) / counted, 1)
            assert re.fullmatch(r"\[−?[\d.]+, −?[\d.]+\]", cell.small)
    assert [cell.text for cell in sources.rows[1]] == ["hh-meet-lora", "runs/hh-meet-lora-0", "runs/hh-meet-lora-1"]
    assert sources.rows[1][2].small == "training run 1, sampling seed 1"
    assert sources.rows[0][2].small == "training run 0, sampling seed 1"
    # A replicate without any outcome has a dash; a single replicate has no table.
    first = evaluation.comparisons[3]
    lacking = replace(evaluation, comparisons=[replace(first, by_replicate={0: first.by_replicate[0]})])
    assert replicate_tables(lacking)[0].rows[0][2].text == "–"
    assert replicate_tables(made_evaluation(30, (0,))) == []


def test_a_single_training_run_is_a_caveat(evaluation: Evaluation) -> None:
    caveat = "Only one training run for {}: no interval includes the variation between training seeds."
    summary = summary_of(evaluation)
    assert caveat.format("hh-coh, hh-meet-lora, hh-meet-soft-prompt and hh-dpo") in summary.caveats
    assert "intervals over prompts. A system" in summary.opening
    some = summary_of(of_two_runs(evaluation, "hh-meet-lora", "hh-dpo"))
    assert caveat.format("hh-coh and hh-meet-soft-prompt") in some.caveats
    assert "intervals over prompts and training runs. A system" in some.opening
    for every in (of_two_runs(evaluation, *SYSTEMS), replace(evaluation, replicates=[])):
        assert not any("training run" in text for text in summary_of(every).caveats)


def test_p_is_the_one_of_the_sign_test(evaluation: Evaluation) -> None:
    """In the table and in the words; computed here again from the outcomes."""
    text = " ".join(finding.text for finding in summary_of(evaluation).findings)
    signs = {"win": 1, "lose": -1, "tie": 0, None: 0}
    printed_p = []
    for comparison in (each for each in evaluation.comparisons if each.evaluator == "reward"):
        sums = [0] * len(evaluation.prompts)
        for (prompt, _), outcome in zip(evaluation.cells, comparison.outcomes, strict=True):
            sums[prompt] += signs[outcome]
        won, lost = sum(total > 0 for total in sums), sum(total < 0 for total in sums)
        tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1)) / 2 ** (won + lost)
        p = p_value(min(1.0, 2 * tail))
        rows = {row[0].text: row for row in outcome_table([Condition(evaluation)], "reward").rows}
        assert rows[comparison.system][5].text == p
        assert f"{points(comparison.rates.delta)}, p {p if p[0] == '<' else '= ' + p})" in text
        printed_p.append(p)
    assert "< 0.001" in printed_p and len(set(printed_p)) > 1


def test_swapping_the_systems_mirrors_the_caveat_of_length(evaluation: Evaluation) -> None:
    """Better by longer replies is, from the other side, worse by shorter ones."""
    equal = Interval(0.49, 0.42, 0.56)
    longer = with_delta(evaluation, "reward", "hh-dpo", Interval(0.2, 0.1, 0.3))
    comparison = next(each for each in longer.comparisons if (each.evaluator, each.system) == ("reward", "hh-dpo"))
    rates = replace(
        comparison.rates, win=comparison.rates.lose, lose=comparison.rates.win, delta=Interval(-0.2, -0.3, -0.1)
    )
    swapped = replace(
        comparison, system=BASELINE, baseline="hh-dpo", rates=rates, controlled_win=Interval(0.51, 0.44, 0.58)
    )
    systems = [each for each in evaluation.systems if each.name in (BASELINE, "hh-dpo")]
    here = replace(longer, systems=systems, comparisons=[replace(comparison, controlled_win=equal)])
    there = replace(here, baseline="hh-dpo", comparisons=[swapped])
    end = "not significantly different from 50%: the difference may come from the length of its replies."
    assert f"At equal length hh-dpo is expected to win 49.0% [42.0, 56.0] by reward, {end}" in summary_of(here).caveats
    text = f"At equal length {BASELINE} is expected to win 51.0% [44.0, 58.0] by reward, {end}"
    assert text in summary_of(there).caveats
    # There is no such sentence if the rate at equal length leads to the same conclusion.
    clear = replace(here, comparisons=[replace(comparison, controlled_win=Interval(0.6, 0.51, 0.7))])
    other = replace(there, comparisons=[replace(swapped, controlled_win=Interval(0.4, 0.3, 0.49))])
    assert not any("At equal length" in caveat for each in (clear, other) for caveat in summary_of(each).caveats)
