"""The judge in a report: what is concluded from it, what is not, and what it costs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from made_evaluation import made_evaluation, with_delta, with_inconclusive_judge
from meetlm.diagnostics.intervals import Interval
from meetlm.evaluation.record import Consistency, Evaluation, Usage
from meetlm.report.charts import Chart
from meetlm.report.conclusions import INCONCLUSIVE, conclude
from meetlm.report.conditions import Condition
from meetlm.report.examples import outcomes_of, rank_pairs
from meetlm.report.judge import judge_tables
from meetlm.report.sections import Section, sections_of
from meetlm.report.summary import Summary, summarize
from meetlm.report.tables import Table, outcome_table
from meetlm.report.write import write_report, write_temperature_report
from test_report_charts import svg_of


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return made_evaluation()


def summary_of(evaluation: Evaluation) -> Summary:
    return summarize([Condition(evaluation)])


def win_table(evaluation: Evaluation, evaluator: str = "judge") -> Table:
    return outcome_table([Condition(evaluation)], evaluator)


def charts_of(sections: list[Section]) -> dict[str, Chart]:
    return {chart.title: chart for section in sections for chart in section.charts}


def count_filled(chart: Chart) -> int:
    """Return the number of shapes that are filled in a colour of an outcome or a system."""
    return len(re.findall(r"fill: #(?!fff|1b1f24|59636e)", svg_of(chart)))


def account_of(evaluation: Evaluation) -> dict[str, str]:
    return {row[0].text: row[1].text for row in judge_tables([Condition(evaluation)])[0].rows}


def test_nothing_is_concluded_from_an_inconclusive_judge(evaluation: Evaluation) -> None:
    summary = summary_of(with_inconclusive_judge(evaluation))
    assert all(finding.conclusions["judge"] == "inconclusive" for finding in summary.findings)
    assert all("cannot be distinguished reliably from hh-coh by judge" in each.text for each in summary.findings)
    assert "Nothing can be concluded from the judge (qwen2.5-7b-instruct)" in summary.caveats[0]
    assert "35.0% [30.0, 40.0] of the pairs; chance alone gives 34.0%" in summary.caveats[0]
    assert "6 comparisons" in " ".join(summary.caveats)  # the judge's three are no findings


def test_nothing_of_an_inconclusive_judge_is_bold_or_filled(evaluation: Evaluation) -> None:
    compared = [each for each in evaluation.comparisons if each.evaluator != "rouge-avg"]
    words = [measure for measure in evaluation.measures if measure.name == "words"]
    clear = replace(evaluation, comparisons=compared, measures=words)
    clear = with_delta(clear, "judge", "hh-meet-lora", Interval(0.3, 0.2, 0.4))
    poor = with_inconclusive_judge(clear)

    def strong(evaluation: Evaluation) -> list[bool]:
        return [cell.strong for row in win_table(evaluation).rows for cell in row]

    assert any(strong(clear)) and not any(strong(poor))
    charts, before = (charts_of(sections_of([Condition(each)])) for each in (poor, clear))
    noted = ["Win, tie, lose by judge", "Length against judge's outcome"]
    assert [title for title, chart in charts.items() if "hollow" in chart.caption] == noted
    assert all(count_filled(charts[title]) < count_filled(before[title]) for title in [*noted, "Δ by every evaluator"])


def test_a_judge_without_calls_is_not_in_doubt(evaluation: Evaluation) -> None:
    clear = with_delta(evaluation, "judge", "hh-meet-lora", Interval(0.3, 0.2, 0.4))
    poor = with_inconclusive_judge(clear)
    assert poor.judge
    overall = replace(poor.judge.overall, num_calls=0, num_without_verdict=0, consistency=None, chance=None)
    mute = replace(poor, judge=replace(poor.judge, overall=overall, num_identical=288, by_system={}))
    assert any(cell.strong for row in win_table(mute).rows for cell in row)
    assert "Nothing can be concluded" not in str(summary_of(mute).caveats)
    account = account_of(mute)
    assert account["Pairs with identical replies: a tie, not asked"] == "288"
    assert "288 pairs with identical replies: a tie" in " ".join(win_table(mute).notes)


def test_a_judge_without_a_verdict_has_a_report(evaluation: Evaluation, tmp_path: Path) -> None:
    """For one system, for all, and where there is no other evaluator either."""
    assert evaluation.judge
    none = Consistency(num_calls=64, num_without_verdict=64, num_failed=0, consistency=None, chance=None)
    mute = replace(
        evaluation.judge,
        overall=replace(none, num_calls=192, num_without_verdict=192),
        by_system=dict.fromkeys(evaluation.judge.by_system, none),
    )
    judged = {each.system: each for each in evaluation.comparisons if each.evaluator == "judge"}
    part = replace(evaluation, comparisons=[each for each in evaluation.comparisons if each != judged["hh-dpo"]])
    assert [row[0].text for row in win_table(part).rows] == ["hh-meet-lora", "hh-meet-soft-prompt"]
    others = replace(
        evaluation,
        comparisons=[each for each in evaluation.comparisons if each.evaluator != "judge"],
        judge=mute,
        agreements=[],
    )
    caveats = summary_of(others).caveats
    assert any("(qwen2.5-7b-instruct): no verdict could be read." in caveat for caveat in caveats)
    consistency = judge_tables([Condition(others)])[1].rows[-1]
    assert [cell.text for cell in consistency] == ["all systems", "–", "–", "192", "192", "0"]
    bare = replace(others, comparisons=[])
    assert summary_of(bare).findings == []
    text = write_temperature_report([(0.0, bare)], tmp_path)[1].read_text(encoding="utf-8")
    assert "No evaluator gave an outcome for any pair" in text and "## The judge" in text


def test_a_report_over_temperatures_marks_an_inconclusive_judge(tmp_path: Path) -> None:
    """At 0.5 no figure of the judge is bold or filled, and the reason is in the words."""
    good, also = (made_evaluation(60, (0,), temperature=t) for t in (0.0, 0.5))
    good, also = (with_delta(each, "judge", "hh-meet-lora", Interval(0.3, 0.2, 0.4)) for each in (good, also))
    poor = with_inconclusive_judge(also)
    charts, rows = {}, {}
    for name, other in (("good", also), ("poor", poor)):
        conditions = [Condition(good, 0.0), Condition(other, 0.5)]
        charts[name] = charts_of(sections_of(conditions))
        table = outcome_table(conditions, "judge")
        rows[name] = [row[6] for row in table.rows if row[0].text == "hh-meet-lora"]
        assert all(cell.text == "30.0" and cell.small == "[20.0, 40.0]" for cell in rows[name])
    assert [[cell.strong for cell in rows[name]] for name in rows] == [[True, True], [True, False]]
    title = "Δ against hh-coh by judge"
    assert count_filled(charts["poor"][title]) < count_filled(charts["good"][title])
    assert any(
        "(qwen2.5-7b-instruct) at temperature 0.5 against hh-coh: it gave the same verdict in both orders for 35.0%"
        in each
        for each in summarize(conditions).caveats
    )
    account, consistency = judge_tables(conditions)
    assert account.columns == ["", "Temperature 0 against hh-coh", "Temperature 0.5 against hh-coh"]
    assert [row[3].text for row in consistency.rows if row[0].text == "all systems"] == ["71.2", "35.0"]
    assert consistency.columns[:3] == ["System", "Temperature", "Baseline"]


def test_one_inconclusive_system_is_marked_and_named(evaluation: Evaluation) -> None:
    """The judge is consistent overall, but not about one system; conclusions about the others stay."""
    poor, other = "hh-dpo", "hh-meet-lora"
    clear = evaluation
    for system in (poor, other):
        clear = with_delta(clear, "judge", system, Interval(0.3, 0.2, 0.4))
    assert clear.judge
    part = replace(clear.judge.by_system[poor], consistency=Interval(0.42, 0.36, 0.48))
    marked = replace(clear, judge=replace(clear.judge, by_system={**clear.judge.by_system, poor: part}))
    by_system = {each.system: each for each in marked.comparisons if each.evaluator == "judge"}
    assert conclude(clear, by_system[poor]) == "better"
    assert [conclude(marked, by_system[name]) for name in (poor, other)] == ["inconclusive", "better"]
    rows = {row[0].text: row for row in win_table(marked).rows}
    assert (rows[poor][0].small, rows[other][0].small) == (INCONCLUSIVE, "")
    assert not any(cell.strong for cell in rows[poor]) and any(cell.strong for cell in rows[other])
    assert not any(row[0].small for row in win_table(marked, "reward").rows)
    caveats = summary_of(marked).caveats
    text = "Nothing can be concluded from the judge (qwen2.5-7b-instruct) about hh-dpo: it gave the same verdict in"
    assert [text in caveat for caveat in caveats].count(True) == 1 and "42.0% [36.0, 48.0] of the pairs" in caveats[0]
    assert not any("concluded from the judge" in caveat for caveat in summary_of(clear).caveats)
    rows = {row[0].text: row for row in judge_tables([Condition(marked)])[1].rows}
    assert [[cell.text for cell in rows[name][1:3]] for name in (poor, "all systems")] == [
        ["42.0", "41.0"],
        ["71.2", "41.0"],
    ]
    assert (rows[poor][0].small, rows["all systems"][0].small) == (INCONCLUSIVE, "")


def test_costs_of_this_run_and_of_all_cached_responses(evaluation: Evaluation) -> None:
    assert evaluation.judge
    account = account_of(evaluation)
    assert account["This run"] == "176 responses, 401,443 prompt and 20,037 completion tokens, cost 0.11"
    assert account["All stored responses"] == "576 responses, 1,204,331 prompt and 60,112 completion tokens, cost 0.34"
    unknown = replace(evaluation.judge, this_run=Usage(0, 0, 0, 0.0), stored=Usage(9, None, None, None))
    account = account_of(replace(evaluation, judge=unknown))
    assert account["This run"] == "0 responses, 0 prompt and 0 completion tokens, cost 0.00"
    assert account["All stored responses"] == "9 responses, tokens not reported by the endpoint"


def test_not_asked_differs_from_no_verdict(evaluation: Evaluation, tmp_path: Path) -> None:
    """The judge saw the first 96 prompts; for one of these it gave no verdict."""
    lora = next(each for each in evaluation.comparisons if (each.evaluator, each.system) == ("judge", "hh-meet-lora"))
    assert lora.outcomes[7] is lora.outcomes[200] is None
    assert "judge: no verdict; " in outcomes_of(evaluation, "hh-meet-lora", 7)
    assert "judge: not asked; " in outcomes_of(evaluation, "hh-meet-lora", 200)
    assert re.search(r"(^|; )reward: (win|loss|tie) \([+−]?\d\.\d\d\)", outcomes_of(evaluation, "hh-meet-lora", 0))
    assert "reward: no outcome; " in outcomes_of(evaluation, "hh-dpo", 3)
    assert rank_pairs(evaluation, lora)[None] == [7, *range(192, 240)]
    last = 239  # not asked about; now the largest win by the first evaluator, so that it is an example
    largest = [
        replace(each, outcomes=[*each.outcomes[:last], "win"], margins=[*each.margins[:last], 99.0])
        if (each.evaluator, each.system) == ("reward", "hh-meet-lora")
        else each
        for each in evaluation.comparisons
    ]
    for file in write_report(replace(evaluation, comparisons=largest), tmp_path):
        assert "reward: win (+99.00); judge: not asked; " in file.read_text(encoding="utf-8")
    evaluation.save(tmp_path / "evaluation.json")
    assert Evaluation.read(tmp_path / "evaluation.json").comparisons == evaluation.comparisons
