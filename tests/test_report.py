"""Reports: what they say, in words, tables and temperatures."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from html_page import Page
from made_evaluation import BASELINE, SYSTEMS, made_evaluation, with_delta
from meetlm.config.errors import DataError
from meetlm.diagnostics.intervals import Interval
from meetlm.evaluation.paper import ERRATA, MARK, ROWS, printed
from meetlm.evaluation.record import Evaluation
from meetlm.report.charts import binned
from meetlm.report.examples import highlights, ranked, viewing_order
from meetlm.report.sections import report_tables
from meetlm.report.summary import summarize
from meetlm.report.tables import agreement_table, evaluators_of, is_scale, measure_of, outcome_table
from meetlm.report.verdict import RULE, verdict
from meetlm.report.wording import decimals_of, in_percent, listed, number, p_value, points, with_interval
from meetlm.report.write import write_report, write_temperature_report


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return made_evaluation()


# Numbers


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (12.34, 1, "12.3"),
        (-3.97, 2, "−3.97"),
        (-0.04, 1, "0.0"),
        (0.0, 0, "0"),
        (12345.6, 0, "12,346"),
        (-1234.5, 1, "−1,234.5"),
    ],
)
def test_numbers(value: float, decimals: int, text: str) -> None:
    assert number(value, decimals) == text


def test_intervals_and_their_digits() -> None:
    assert with_interval(Interval(12.3, 4.1, 20.2), 1) == "12.3 [4.1, 20.2]"
    assert in_percent(Interval(0.454, 0.392, 0.517)) == "45.4% [39.2, 51.7]"
    assert points(Interval(0.154, 0.082, 0.225)) == "+15.4 [8.2, 22.5]"
    assert points(Interval(-0.0397, -0.08, 0.0001)) == "−4.0 [−8.0, 0.0]"
    widths = [(70, 25), (70, 3), (1.5, 0.12), (0.2, 0.001), (1, 0), (0, 0)]
    assert [decimals_of(Interval(v, v - h, v + h)) for v, h in widths] == [0, 1, 2, 4, 2, 1]
    assert [p_value(p) for p in (0.0002, 0.0321, 0.2, 1.0)] == ["< 0.001", "0.032", "0.20", "1.00"]
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


# Words


def test_the_summary_says_who_what_and_how_sure(evaluation: Evaluation) -> None:
    clear = with_delta(evaluation, "reward", "hh-meet-lora", Interval(0.154, 0.082, 0.225))
    clear = with_delta(clear, "rouge-avg", "hh-meet-lora", Interval(0.02, -0.05, 0.09))
    clear = with_delta(clear, "judge", "hh-meet-lora", Interval(-0.2, -0.3, -0.1))
    found = summarize(clear)
    for said in (
        "hh-meet-lora, hh-meet-soft-prompt and hh-dpo were",
        "with hh-coh on 120 held-out prompts under 2 seeds",
        "240 pairs",
        "by reward, judge (on 96 of them) and rouge-avg",
    ):
        assert said in found.opening
    lora = next(one for one in found.findings if one.system == "hh-meet-lora")
    assert lora.verdicts == {"reward": "better", "judge": "worse", "rouge-avg": "even"}
    assert "better than hh-coh by reward (Δ +15.4 [8.2, 22.5], p" in lora.text
    assert "not told apart from hh-coh by rouge-avg (Δ +2.0 [−5.0, 9.0]" in lora.text
    caveats = " ".join(found.caveats)
    assert re.search(r"contains 0, so [^.]*hh-meet-lora by rouge-avg", caveats)
    assert "contradict each other on hh-meet-lora: better by reward, worse by judge" in caveats


def test_one_prompt_is_no_finding(evaluation: Evaluation) -> None:
    """Its bootstrap interval has no width: [100, 100]. The sign test knows that it is one prompt."""
    one = with_delta(evaluation, "reward", "hh-dpo", Interval(1.0, 1.0, 1.0), p=1.0)
    comparison = next(each for each in one.comparisons if (each.evaluator, each.system) == ("reward", "hh-dpo"))
    assert verdict(one, comparison) == "even"
    assert not any(cell.strong for cell in outcome_table(one, "reward").rows[3])
    found = summarize(one)
    assert RULE in found.opening and "p < 0.05" in RULE
    text = next(each.text for each in found.findings if each.system == "hh-dpo")
    assert re.search(r"not told apart from hh-coh by [^;]*reward \(Δ \+100.0 \[100.0, 100.0\], p = 1.00\)", text)
    assert re.search(
        r"does not confirm it, so it is no finding: [^.]*hh-dpo by reward \(p = 1.00\)", str(found.caveats)
    )
    assert not re.search(r"contains 0[^.]*hh-dpo by [^;.]*reward", str(found.caveats))


def test_an_interval_that_touches_0_is_no_finding(evaluation: Evaluation) -> None:
    touching = with_delta(evaluation, "reward", "hh-dpo", Interval(0.1, 0.0, 0.2))
    comparison = next(one for one in touching.comparisons if (one.evaluator, one.system) == ("reward", "hh-dpo"))
    assert verdict(touching, comparison) == "even"


def test_caveats_of_sampling_rows_and_length(evaluation: Evaluation) -> None:
    caveats = " ".join(summarize(evaluation).caveats)
    assert "hh-dpo does not state how it was sampled (temperature, top_p, max_new_tokens, stop)" in caveats
    assert "2 outcomes of all comparisons together" in caveats
    assert "the reward model's score is NaN or infinite (1)" in caveats
    assert "1 had no verdict that could be read and 0 failed for good" in caveats
    assert "One training run only of hh-coh, hh-meet-lora, hh-meet-soft-prompt and hh-dpo: no interval holds" in caveats
    assert "one seed only" not in caveats
    assert "one seed only" in " ".join(summarize(made_evaluation(20, (0,))).caveats)
    assert "one seed only" not in " ".join(summarize(made_evaluation(20, (0,), temperature=0.0)).caveats)
    long = with_delta(evaluation, "reward", "hh-dpo", Interval(0.2, 0.1, 0.3))
    even = [
        replace(one, controlled_win=Interval(0.49, 0.42, 0.56)) if one.system == "hh-dpo" else one
        for one in long.comparisons
    ]
    many = [replace(evaluation.problems[0], what=f"kind {n}") for n in range(6)]
    assert "kind 3 (1); and 2 more kinds, all named" in summarize(replace(evaluation, problems=many)).caveats[-1]
    assert "taken as those of the others" not in caveats  # that counts no row
    assert summarize(evaluation).caveats[-1] == "1 note under Problems that is not about rows."
    caveats = " ".join(summarize(replace(long, comparisons=even)).caveats)
    assert (
        "At equal length hh-dpo is expected to win 49.0% [42.0, 56.0] by reward, not clear of 50%: that it is"
        in caveats
    )


# Tables


def test_the_papers_table(evaluation: Evaluation) -> None:
    found = outcome_table(evaluation, "reward")
    assert found.columns == [
        "System", "ROUGE-L", "ROUGE-Avg", "Win (%)", "Lose (%)", "Tie (%)", "Δ (%)", "Sign test p",
        "Length-controlled win (%)", "Prompts (cells)",
    ]  # fmt: skip
    assert [row[0].text for row in found.rows] == list(SYSTEMS)
    rates = {one.system: one.rates for one in evaluation.comparisons if one.evaluator == "reward"}
    for row in found.rows:
        assert len(row) == len(found.columns)
        if row[0].text == BASELINE:
            assert row[0].small == "baseline"
            continue
        rate = rates[row[0].text]
        shown = [float(cell.text.replace("−", "-")) for cell in row[3:7]]
        assert shown == pytest.approx([100 * r.value for r in (rate.win, rate.lose, rate.tie, rate.delta)], abs=0.051)
        assert row[6].strong == (not rate.delta.low <= 0 <= rate.delta.high and rate.sign_p < 0.05)
        assert not any(cell.strong for cell in row[:6] + row[7:])
    rouge_l = measure_of(evaluation, "rouge-l")
    assert rouge_l
    mean = rouge_l.means["hh-dpo"]
    assert float(found.rows[3][1].text) == pytest.approx(100 * mean.value, abs=0.0051)  # as the paper prints ROUGE
    assert "hh-dpo: 1" in found.notes[-1]
    assert outcome_table(evaluation, "rouge-avg").columns[1] == "Win (%)"  # once is enough
    none = [
        replace(one, values={name: [None, *values[1:]] for name, values in one.values.items()})
        if one.name[:5] == "rouge"
        else one
        for one in evaluation.measures
    ]
    note = report_tables(replace(evaluation, measures=none))["measures"][0].notes[-1]
    assert note == (
        "Cells without a value: rouge-1, rouge-2, rouge-l and rouge-avg, 1 of each system; reward, 1 of hh-dpo."
    )


def test_every_account_has_its_table(evaluation: Evaluation) -> None:
    found = report_tables(evaluation)
    assert list(found) == ["results", "measures", "agreement", "judge", "problems", "settings"]
    assert [one.caption for one in found["results"]] == [
        *(f"Win rates by {name}" for name in ("reward", "judge", "rouge-avg")),
        "Δ of each replicate",
        "Which run and seed each replicate is",
    ]
    kappa = evaluation.agreements[0]
    assert kappa.kappa and found["agreement"][0].rows[0][2].text == number(kappa.kappa.value, 2)
    undefined = agreement_table(replace(evaluation, agreements=[replace(kappa, kappa=None)]))
    assert undefined.rows[0][2].text == "not defined"
    judge = {row[0].text: row[1].text for row in found["judge"][0].rows}
    assert judge["Same verdict in both orders"] == "71.2% [68.0, 74.5]"
    assert (judge["By chance"], judge["Without a verdict"]) == ("41.0%", "1 (finish reason: 1 length)")
    assert [row[1].text for row in found["problems"][0].rows] == ["1", "1", "1"]
    (note,) = found["problems"][1].rows
    assert "not about rows" in found["problems"][1].caption and "does not state temperature" in note[0].text
    dpo = found["settings"][0].rows[-1]
    assert [cell.text for cell in dpo[1:4]] == ["a file from elsewhere", "not stated", "not stated"]
    assert "temperature 0.7, top_p 0.95, stop none" in found["settings"][0].rows[0][3].text
    assert found["measures"][0].notes[-1] == "Cells without a value: reward, 1 of hh-dpo."
    for table in (table for tables in found.values() for table in tables):
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_a_bare_record_has_a_report(evaluation: Evaluation, tmp_path: Path) -> None:
    """Without a judge, measures, agreement, problems or comparisons there are just fewer sections."""
    bare = replace(
        evaluation, measures=[], agreements=[], judge=None, problems=[], comparisons=evaluation.comparisons[:3]
    )
    assert list(report_tables(bare)) == ["results", "settings"]
    page = Page(write_report(bare, tmp_path)[0].read_text())
    anchors = {attributes["href"] for attributes in page.all("a")}
    assert anchors == {"#summary", "#results", "#lengths", "#examples", "#settings", "#paper", "#versions"}


def test_only_our_own_rouge_is_printed_times_100(evaluation: Evaluation) -> None:
    mine = replace(evaluation.measures[0], name="rouge_of_mine:score")
    assert not is_scale(mine) and is_scale(evaluation.measures[0])
    asked = [replace(one, evaluator=mine.name) for one in evaluation.comparisons[:3]]
    found = replace(evaluation, measures=[mine], comparisons=[evaluation.comparisons[0], *asked])
    assert evaluators_of(found) == [mine.name, "rouge-avg"]
    (row,) = report_tables(found)["measures"][0].rows
    assert "times 100" not in row[0].small
    assert float(row[1].text) == pytest.approx(mine.means[BASELINE].value, abs=0.01)


def test_the_papers_own_figures_stand_at_the_end_with_their_errata(evaluation: Evaluation, tmp_path: Path) -> None:
    html, markdown = (file.read_text(encoding="utf-8") for file in write_report(evaluation, tmp_path))
    text = markdown.partition("## The paper's own figures")[2].partition("## Settings")[0]
    assert text.lstrip().startswith("For orientation only: other models, data and evaluators than in this report.")
    for row in ROWS:
        figures = [printed(row)[name] for name in ("win", "lose", "tie", "delta")]
        assert re.search(rf"^\| {re.escape(row.method)} \|.*{re.escape(' | '.join(figures))}", text, re.MULTILINE), row
    for one in ERRATA:
        assert f"{MARK} {one.dataset}, {one.method}, by {one.evaluator}: {one.text}" in text
        assert one.text.replace("'", "&#39;") in html
    section = html.partition('<section id="paper">')[2].partition("</section>")[0]
    assert section.count("<details>") == 1 and section.index("<details>") < section.index("<table")
    assert section.rindex("</table>") < section.index("</details>")
    assert html.index('id="settings"') < html.index('id="paper"') < html.index('id="versions"')


# Examples


def test_the_order_to_look_at_examples_in(evaluation: Evaluation) -> None:
    comparison = evaluation.comparisons[0]
    six = replace(
        evaluation,
        cells=evaluation.cells[:7],
        completions={name: [f"{name} {n}" if n != 2 else "same" for n in range(7)] for name in SYSTEMS},
        comparisons=[
            replace(
                comparison,
                outcomes=["win", "lose", "tie", "win", None, "tie", "tie"],
                margins=[0.5, -2.0, 0.0, 3.0, None, -0.1, 0.05],
            )
        ],
    )
    found = ranked(six, six.comparisons[0])
    assert found == {"win": [3, 0], "lose": [1], "tie": [6, 5, 2], None: [4]}
    assert viewing_order(six, six.comparisons[0]) == [3, 1, 6, 0, 5, 2, 4]
    assert [(one.outcome, one.cell) for one in highlights(six)] == [("win", 3), ("lose", 1), ("tie", 6)]


def test_groups_by_length() -> None:
    """Ten x in five groups; a prompt with two cells in one group counts once in its mean and interval."""
    found = binned([(float(n), float(n % 2), n) for n in range(10)])
    assert [x for x, _, _ in found] == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert all(y == 0.5 and half == pytest.approx(1.96 * 0.5) for _, y, half in found)
    assert binned([(1.0, 0.0, 0), (1.0, 0.0, 0), (1.0, 3.0, 1)]) == [(1.0, 1.5, pytest.approx(1.96 * 1.5))]
    assert binned([]) == []


# Temperatures


def test_temperatures(tmp_path: Path) -> None:
    given = [(t, made_evaluation(30, (0,), temperature=t)) for t in (1.0, 0.0, 0.5)]
    other = given[1][1]
    swapped = replace(
        other,
        baseline="hh-dpo",
        comparisons=[replace(one, baseline="hh-dpo") for one in other.comparisons if one.system == "hh-meet-lora"],
    )
    html, markdown = write_temperature_report([*given, (0.0, swapped)], tmp_path)
    assert (html.name, markdown.name) == ("temperature.html", "temperature.md")
    page, text = Page(html.read_text(encoding="utf-8")), markdown.read_text(encoding="utf-8")
    figures = [svg["aria-label"] for svg in page.all("svg")]
    assert len(figures) == 6 + 6  # two baselines, three evaluators; two scores at three temperatures
    titles = [f"Distribution of {score} at {t}" for score in ("rouge-avg", "reward") for t in ("0", "0.5", "1")]
    assert [text for tag, text in page.texts if tag == "h3" and text.startswith("Dist")] == titles
    assert all("hh-coh: mean" in one and "hh-dpo: mean" in one for one in figures[6:])
    scales = [re.findall(r">([−.\d]+)</text>", svg) for svg in html.read_text(encoding="utf-8").split("<svg ")[7:10]]
    assert scales[0] == scales[1] == scales[2] and len(scales[0]) > 3
    # Examples of each evaluation, and the way to all of its completions.
    assert [one["href"] for one in page.all("a") if "report" in one["href"]] == [
        "t0/hh-coh/report.html", "t0/hh-dpo/report.html", "t0.5/hh-coh/report.html", "t1/hh-coh/report.html",
    ]  # fmt: skip
    assert all((tmp_path / one["href"]).is_file() for one in page.all("a") if "report" in one["href"])
    shown_titles = [text for tag, text in page.texts if tag == "h3" and " of hh-" in text]
    assert len(shown_titles) == 3 * 3 * 3 + 3 and "Largest win of hh-meet-lora by reward, seed 0" in shown_titles
    assert text.count("### Largest win of hh-meet-lora") == 4
    assert "At temperature 0.5, against hh-coh, as in t0.5/hh-coh/report.md:" in text
    assert re.search(r"hh-meet-lora: \S+ \[.*\] at 0, .* at 0.5, .* at 1;", figures[0])
    assert "| System | 0 | 0.5 | 1 |" in text
    assert "3 temperatures from 0 to 1, against hh-coh and hh-dpo, on 30 prompts" in text
    assert "hh-meet-lora against hh-dpo by reward has no figure at 0.5 and 1." in text
    assert "One seed only at 0.5 and 1" in text
    assert len(page.scripts()) == 1


def test_temperatures_refused(tmp_path: Path) -> None:
    one = made_evaluation(10, (0,))
    with pytest.raises(DataError, match="by reward is there twice at temperature 0.5"):
        write_temperature_report([(0.5, one), (0.5, one)], tmp_path)
    with pytest.raises(DataError, match="no evaluation to plot"):
        write_temperature_report([], tmp_path)
    assert list(tmp_path.iterdir()) == []


# Wrong records, large ones, a real browser


def test_columns_that_do_not_fit(evaluation: Evaluation, tmp_path: Path) -> None:
    first = evaluation.comparisons[3]
    short = {**evaluation.completions, "hh-dpo": evaluation.completions["hh-dpo"][:-1]}
    lacking = {name: texts for name, texts in evaluation.completions.items() if name != "hh-dpo"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"completions": short}, "completions.hh-dpo': has 239 entries; expected one for each of the 240 cells"),
        (
            {"completions": lacking},
            "completions': is of hh-coh, hh-meet-lora, hh-meet-soft-prompt; expected a column for each",
        ),
        ({"comparisons": [replace(first, outcomes=[])]}, "comparisons.hh-meet-lora.reward': has 0 entries"),
        ({"comparisons": [replace(first, margins=[0.0])]}, "reward margins': has 1 entries"),
        ({"comparisons": [replace(first, system="x")]}, "names 'x'; expected one of the systems: hh-coh"),
        ({"baseline": "y"}, "field 'baseline': names 'y'"),
        ({"baseline": "hh-dpo"}, "field 'comparisons.hh-meet-lora': has the baseline 'hh-coh'; expected 'hh-dpo'"),
        ({"cells": [(120, 0), *evaluation.cells[1:]]}, "names prompt 120; expected an index into 120 prompts"),
    ]
    for changes, said in cases:
        with pytest.raises(DataError, match=re.escape(said)):
            write_report(replace(evaluation, **changes), tmp_path)
    assert list(tmp_path.iterdir()) == []
