"""Reports of a judge that says little: nothing is concluded from it, and nothing breaks."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from made_evaluation import doubted, made_evaluation, with_delta
from meetlm.config.errors import DataError
from meetlm.diagnostics.intervals import Interval
from meetlm.evaluation.record import Consistency, Evaluation, Problem, Usage
from meetlm.report.charts import evaluation_charts
from meetlm.report.examples import outcomes_of, ranked
from meetlm.report.judge import judge_lines
from meetlm.report.plots import Plot
from meetlm.report.sections import report_tables
from meetlm.report.summary import summarize
from meetlm.report.tables import outcome_table
from meetlm.report.temperature import temperature_sections
from meetlm.report.verdict import verdict
from meetlm.report.write import write_report, write_temperature_report


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return made_evaluation()


def test_nothing_is_concluded_from_an_inconclusive_judge(evaluation: Evaluation) -> None:
    assert evaluation.judge
    found = summarize(doubted(evaluation))
    assert all(one.verdicts["judge"] == "inconclusive" for one in found.findings)
    assert all("no conclusion by judge" in one.text for one in found.findings)
    assert "Nothing can be concluded from the judge (qwen2.5-7b-instruct)" in found.caveats[0]
    assert "35.0% [30.0, 40.0] of the pairs; chance alone gives 34.0%" in found.caveats[0]
    assert "6 comparisons" in " ".join(found.caveats)  # the judge's three are no findings


def test_nothing_of_an_inconclusive_judge_is_bold_or_filled(evaluation: Evaluation) -> None:
    """And a note stands beside each table and figure that it is in, and beside no other."""
    system = "hh-meet-lora"
    clear = with_delta(evaluation, "judge", system, Interval(0.3, 0.2, 0.4))
    poor = doubted(clear)

    def strong(one: Evaluation) -> list[bool]:
        return [cell.strong for row in outcome_table(one, "judge").rows for cell in row]

    assert any(strong(clear)) and not any(strong(poor))
    tables = [table for found in report_tables(poor).values() for table in found]
    plots = [plot for found in evaluation_charts(poor).values() for plot in found]
    noted = [one.caption for one in tables if "No conclusion" in " ".join(one.notes)]
    assert noted == ["Win rates by judge", "Agreement between evaluators"]
    noted = [one.title for one in plots if "o conclusion" in one.caption]
    assert noted == ["Δ by every evaluator", "Win, tie, lose by judge", "Length against judge's outcome"]
    before = {plot.title: plot for found in evaluation_charts(clear).values() for plot in found}
    filled = {title: count_filled(before[title]) for title in noted}
    assert all(count_filled(plot) < filled[plot.title] for plot in plots if plot.title in filled)
    assert not any("o conclusion" in plot.caption for plot in before.values())
    # A judge that had nothing to be asked is in no doubt.
    assert poor.judge
    overall = replace(poor.judge.overall, num_calls=0, consistency=None, chance=None)
    unasked = replace(poor.judge, overall=overall, num_same=288, by_system={})
    mute = replace(poor, judge=unasked)
    assert strong(mute) == strong(clear) and "Nothing can be concluded" not in str(summarize(mute).caveats)
    rows = {row[0].text: row[1].text for row in report_tables(mute)["judge"][0].rows}
    assert (
        rows["Conclusive"] == "nothing was asked" and rows["Pairs with the same reply, a tie without asking"] == "288"
    )
    assert "288 pairs with the same reply: a tie without asking" in " ".join(outcome_table(mute, "judge").notes)


def count_filled(plot: Plot) -> int:
    """Shapes in a colour of an outcome or a system."""
    return len(re.findall(r"fill: var\(--(?:win|tie|lose|series-\d)\)", plot.svg))


def test_a_judge_without_a_verdict_has_a_report(evaluation: Evaluation, tmp_path: Path) -> None:
    """Of one system, of all, and where nobody else decides either."""
    assert evaluation.judge
    none = Consistency(num_calls=64, num_unparsable=64, num_failed=0, consistency=None, chance=None, conclusive=False)
    by_system = dict.fromkeys(evaluation.judge.by_system, none)
    mute = replace(
        evaluation.judge,
        overall=replace(none, num_calls=192, num_unparsable=192),
        finish_reasons={"content_filter": 180, "length": 12},
        by_system=by_system,
    )
    judged = {one.system: one for one in evaluation.comparisons if one.evaluator == "judge"}
    part = replace(evaluation, comparisons=[one for one in evaluation.comparisons if one != judged["hh-dpo"]])
    assert "There is no figure for hh-dpo by judge: no pair has an outcome." in summarize(part).caveats
    table = outcome_table(part, "judge")
    assert [cell.text for cell in table.rows[-1]] == ["hh-dpo"] + ["–"] * (len(table.columns) - 1)
    assert "Without any outcome, so without figures: hh-dpo." in table.notes
    others = [one for one in evaluation.comparisons if one.evaluator != "judge"]
    for comparisons in (others, []):
        found = replace(evaluation, comparisons=comparisons, judge=mute, agreements=[])
        html, markdown = (file.read_text(encoding="utf-8") for file in write_report(found, tmp_path))
        for text in (html, markdown):
            assert "no verdict could be read" in text
            assert "Nothing can be concluded from the judge (qwen2.5-7b-instruct): no verdict could be read." in text
            assert "by judge: no pair has an outcome" in text
        assert "| Same verdict in both orders | – |" in markdown and "| By chance | – |" in markdown
        assert "192 (finish reason: 180 content_filter, 12 length)" in markdown
        assert "judge: hh-dpo: no conclusion can be drawn: no verdict could be read" in judge_lines(found)
        assert ("No evaluator told the outcome of any pair" in html) == (not comparisons)
        assert bool(comparisons) == ("### Largest win" in markdown)
    assert summarize(replace(evaluation, comparisons=[])).findings == []
    one = write_temperature_report([(0.0, found), (0.5, evaluation)], tmp_path)[1].read_text(encoding="utf-8")
    assert "at 0 against hh-coh: no verdict could be read" in one
    none = write_temperature_report([(0.0, found)], tmp_path)[1].read_text(encoding="utf-8")
    assert "No evaluator told the outcome of any pair" in none and "## The judge" in none


def test_temperatures_say_what_the_judge_is_worth(tmp_path: Path) -> None:
    """Its account at every temperature; at 0.5 nothing of it is bold or filled, and why stands in the words."""
    good, also = (made_evaluation(60, (0,), temperature=t) for t in (0.0, 0.5))
    lora = {"evaluator": "judge", "system": "hh-meet-lora", "delta": Interval(0.3, 0.2, 0.4)}
    good, also = with_delta(good, **lora), with_delta(also, **lora)
    poor = doubted(also)
    rows = [Problem("empty", 2, []), Problem("note", 40, [], of_rows=False)]
    texts, plots = {}, {}
    for name, other in (("good", also), ("poor", poor)):
        given = [(0.5, replace(other, problems=rows)), (0.0, replace(good, problems=[]))]
        files = write_temperature_report(given, tmp_path)
        texts[name] = files[1].read_text(encoding="utf-8")
        plots[name] = {plot.title: plot for plot in temperature_sections(given)[0].plots}
        table = next(line for line in texts[name].splitlines() if line.startswith("| hh-meet-lora | **30.0** [20.0"))
        assert ("**" in table.split("|")[3]) == (name == "good")
    figure = "Δ against hh-coh by judge"
    assert count_filled(plots["poor"][figure]) < count_filled(plots["good"][figure])
    assert "At 0.5: no conclusion can be drawn from this judge" in plots["poor"][figure].caption
    assert "no conclusion" not in plots["good"][figure].caption + plots["poor"]["Δ against hh-coh by reward"].caption
    text = texts["poor"]
    assert "at 0.5 against hh-coh: it gave the same verdict in both orders for 35.0% [30.0, 40.0] of the pairs" in text
    assert text.count("At 0.5: no conclusion can be drawn from this judge") == 1  # beside the table
    account = text.partition("## The judge")[2].partition("\n## ")[0]
    assert "| 0, hh-coh | 288 |" in account and "| 71.2 [68.0, 74.5] | 41.0 | yes | 0.11 | 0.34 |" in account
    assert "| 35.0 [30.0, 40.0] | 34.0 | no | 0.11 | 0.34 |" in account
    assert "qwen2.5-7b-instruct at http://127.0.0.1:8000/v1, prompt dialogue" in account
    assert "In all 0.23 in this run, in the currency" in account and "0.68" not in account  # they may share calls
    assert poor.judge
    untold = replace(poor, judge=replace(poor.judge, this_run=Usage(3, None, None, None)))
    write_temperature_report([(0.0, good), (0.5, untold)], tmp_path)
    partly = (tmp_path / "temperature.md").read_text(encoding="utf-8")
    assert "| 41.0 | yes | 0.11 | 0.34 |" in partly and "In all" not in partly  # no sum of some
    assert "| 0, hh-coh | hh-dpo | 66.6 [60.6, 72.6] | 41.0 |" in account
    assert "Compare two replies to {question}." in account
    assert "Rows with problems in 1 of 2 evaluations" in text
    assert "Nothing can be concluded" not in texts["good"]


def near_chance(evaluation: Evaluation, system: str) -> Evaluation:
    """The same with a judge that is worth something as a whole, but not about one system."""
    assert evaluation.judge
    own = replace(evaluation.judge.by_system[system], consistency=Interval(0.42, 0.36, 0.48), conclusive=False)
    return replace(evaluation, judge=replace(evaluation.judge, by_system={**evaluation.judge.by_system, system: own}))


def test_one_comparison_near_chance_is_marked_and_named(evaluation: Evaluation, tmp_path: Path) -> None:
    """Its row, figures and words; the others stay what they were."""
    poor, other = "hh-dpo", "hh-meet-lora"
    clear = evaluation
    for system in (poor, other):
        clear = with_delta(clear, "judge", system, Interval(0.3, 0.2, 0.4))
    found = near_chance(clear, poor)
    by = {one.system: one for one in found.comparisons if one.evaluator == "judge"}
    assert verdict(clear, by[poor]) == "better"
    assert (verdict(found, by[poor]), verdict(found, by[other])) == ("inconclusive", "better")
    rows = {row[0].text: row for row in outcome_table(found, "judge").rows}
    assert (rows[poor][0].small, rows[other][0].small) == ("(consistency near chance)", "")
    assert not any(cell.strong for cell in rows[poor]) and any(cell.strong for cell in rows[other])
    assert not any(row[0].small == "(consistency near chance)" for row in outcome_table(found, "reward").rows)
    caveats = summarize(found).caveats
    said = "Nothing can be concluded from the judge (qwen2.5-7b-instruct) about hh-dpo: it gave the same verdict in"
    assert [said in one for one in caveats].count(True) == 1 and "42.0% [36.0, 48.0] of the pairs; chance" in caveats[0]
    assert not any("concluded from the judge" in one for one in summarize(clear).caveats)
    html, markdown = (file.read_text(encoding="utf-8") for file in write_report(found, tmp_path))
    for text in (html, markdown):
        assert said in text and text.count("No conclusion can be drawn from the judge about hh-dpo") >= 2
    assert "| hh-dpo (consistency near chance) | 42.0 [36.0, 48.0] | 41.0 | no |" in markdown
    assert "| hh-meet-lora | 78.0 [72.0, 84.0] | 41.0 | yes |" in markdown
    assert "| all systems | 71.2 [68.0, 74.5] | 41.0 | yes |" in markdown
    lines = "\n".join(judge_lines(found))
    assert "judge: hh-dpo: same verdict in both orders 42.0% [36.0, 48.0], by chance 41.0%: consistency near" in lines
    assert "judge: hh-meet-lora: same verdict in both orders 78.0% [72.0, 84.0], by chance 41.0%\n" in lines
    before, after = (
        {plot.title: count_filled(plot) for plots in evaluation_charts(one).values() for plot in plots}
        for one in (clear, found)
    )
    changed = {title for title in before if after[title] < before[title]}
    assert changed == {"Δ by every evaluator", "Win, tie, lose by judge", "Length against judge's outcome"}
    at = write_temperature_report([(0.0, clear), (0.5, found)], tmp_path)[1].read_text(encoding="utf-8")
    assert "about hh-dpo at 0.5 against hh-coh: it gave the same verdict in both orders for 42.0%" in at
    assert "At 0.5: no conclusion can be drawn from the judge about hh-dpo" in at
    assert "| 0.5, hh-coh | hh-dpo (consistency near chance) | 42.0 [36.0, 48.0] | 41.0 |" in at


def test_costs_of_this_run_stand_beside_those_of_all_kept(evaluation: Evaluation, tmp_path: Path) -> None:
    assert evaluation.judge
    markdown = write_report(evaluation, tmp_path)[1].read_text(encoding="utf-8")
    assert "| What | This run | All kept |" in markdown and "| Answers | 176 | 576 |" in markdown
    assert "| Prompt tokens | 401,443 | 1,204,331 |" in markdown and "given | 0.11 | 0.34 |" in markdown
    lines = judge_lines(evaluation)
    assert "judge: this run: 176 answers, 401,443 prompt and 20,037 completion tokens, cost 0.11" in lines
    assert "judge: all kept: 576 answers, 1,204,331 prompt and 60,112 completion tokens, cost 0.34" in lines
    untold = replace(evaluation.judge, this_run=Usage(0, 0, 0, 0.0), kept=Usage(9, None, None, None))
    rows = report_tables(replace(evaluation, judge=untold))["judge"][-1].rows
    assert [cell.text for cell in rows[1]] == ["Prompt tokens", "0", "the endpoint did not tell"]
    assert [cell.text for cell in rows[3]][1:] == ["0.00", "the endpoint did not tell"]
    assert "judge: all kept: 9 answers, tokens not told by the endpoint" in judge_lines(
        replace(evaluation, judge=untold)
    )


def test_not_asked_is_no_verdict_that_is_missing(evaluation: Evaluation, tmp_path: Path) -> None:
    """The judge saw the first 96 prompts; of one of these it says nothing."""
    lora = next(one for one in evaluation.comparisons if (one.evaluator, one.system) == ("judge", "hh-meet-lora"))
    assert lora.outcomes[7] is lora.outcomes[200] is None
    assert "judge: no verdict; " in outcomes_of(evaluation, "hh-meet-lora", 7)
    assert "judge: not asked; " in outcomes_of(evaluation, "hh-meet-lora", 200)
    assert re.match(r"reward: (win|loss|tie) \([+−]?\d\.\d\d\); judge: ", outcomes_of(evaluation, "hh-meet-lora", 0))
    assert "reward: no outcome; " in outcomes_of(evaluation, "hh-dpo", 3)
    assert ranked(evaluation, lora)[None] == [7, *range(192, 240)]
    last = 239  # not asked about; now the largest win by reward, so that it is an example
    first = next(one for one in evaluation.comparisons if (one.evaluator, one.system) == ("reward", "hh-meet-lora"))
    largest = replace(first, outcomes=[*first.outcomes[:last], "win"], margins=[*first.margins[:last], 99.0])
    shown = [largest if one == first else one for one in evaluation.comparisons]
    html, markdown = (
        file.read_text(encoding="utf-8")
        for file in write_report(replace(evaluation, comparisons=shown), tmp_path / "shown")
    )
    for text in (html, markdown):
        assert "reward: win (+99.00); judge: not asked; rouge-avg: " in text
    evaluation.save(tmp_path / "evaluation.json")
    assert Evaluation.read(tmp_path / "evaluation.json").comparisons == evaluation.comparisons
    assert lora.asked
    short = [replace(lora, asked=lora.asked[:-1]) if one == lora else one for one in evaluation.comparisons]
    with pytest.raises(DataError, match=r"comparisons\.hh-meet-lora\.judge asked': has 239 entries"):
        write_report(replace(evaluation, comparisons=short), tmp_path)
