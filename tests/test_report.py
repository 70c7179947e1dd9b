"""Reports: what they say in words, tables, examples, and over temperatures."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from html_page import Page
from made_evaluation import BASELINE, SYSTEMS, made_evaluation, with_delta
from meetlm.diagnostics.intervals import Interval
from meetlm.evaluation.record import Evaluation
from meetlm.report.conclusions import RULE, conclude
from meetlm.report.conditions import Condition, evaluators_of, measure_of
from meetlm.report.examples import examples_of, rank_pairs, viewing_order
from meetlm.report.sections import sections_of
from meetlm.report.summary import Summary, summarize
from meetlm.report.tables import Table, agreement_tables, measure_tables, outcome_table
from meetlm.report.wording import decimals_of, in_percent, listed, number, p_value, points
from meetlm.report.write import write_report, write_temperature_report


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return made_evaluation()


def summary_of(evaluation: Evaluation) -> Summary:
    return summarize([Condition(evaluation)])


def win_table(evaluation: Evaluation, evaluator: str = "reward") -> Table:
    return outcome_table([Condition(evaluation)], evaluator)


# Numbers


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(12.34, 1, "12.3"), (-3.97, 2, "−3.97"), (-0.04, 1, "0.0"), (0.0, 0, "0"), (-12345.6, 1, "−12,345.6")],
)
def test_numbers(value: float, decimals: int, text: str) -> None:
    assert number(value, decimals) == text


def test_intervals_and_their_digits() -> None:
    assert in_percent(Interval(0.454, 0.392, 0.517)) == "45.4% [39.2, 51.7]"
    assert points(Interval(0.154, 0.082, 0.225)) == "+15.4 [8.2, 22.5]"
    assert points(Interval(-0.0397, -0.08, 0.0001)) == "−4.0 [−8.0, 0.0]"
    widths = [(70, 25), (70, 3), (1.5, 0.12), (0.2, 0.001), (1, 0), (0, 0)]
    assert [decimals_of(Interval(v, v - h, v + h)) for v, h in widths] == [0, 1, 2, 4, 2, 1]
    assert [p_value(p) for p in (0.0002, 0.0321, 0.2, 1.0)] == ["< 0.001", "0.032", "0.20", "1.00"]
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


# Words


def test_the_summary_states_the_comparison_and_its_certainty(evaluation: Evaluation) -> None:
    clear = with_delta(evaluation, "reward", "hh-meet-lora", Interval(0.154, 0.082, 0.225))
    clear = with_delta(clear, "rouge-avg", "hh-meet-lora", Interval(0.02, -0.05, 0.09))
    clear = with_delta(clear, "judge", "hh-meet-lora", Interval(-0.2, -0.3, -0.1))
    summary = summary_of(clear)
    for text in (
        "hh-meet-lora, hh-meet-soft-prompt and hh-dpo were compared with hh-coh on 120 held-out prompts",
        "with 2 replicates (240 pairs of completions per system)",
        "240 pairs",
        "by reward, judge (on 96 of them) and rouge-avg",
        RULE,
    ):
        assert text in summary.opening
    lora = next(finding for finding in summary.findings if finding.system == "hh-meet-lora")
    assert lora.conclusions == {"reward": "better", "judge": "worse", "rouge-avg": "not significant"}
    assert "better than hh-coh by reward (Δ +15.4 [8.2, 22.5], p" in lora.text
    assert "not significantly different from hh-coh by rouge-avg (Δ +2.0 [−5.0, 9.0]" in lora.text
    caveats = " ".join(summary.caveats)
    assert re.search(r"The interval of Δ contains 0 in \d of 9 comparisons: the system may be better", caveats)
    assert "contradict each other on hh-meet-lora: better by reward, worse by judge" in caveats


def test_one_prompt_is_no_finding(evaluation: Evaluation) -> None:
    """A bootstrap interval over one prompt has no width: [100, 100]. The sign test accounts for their number."""
    single = with_delta(evaluation, "reward", "hh-dpo", Interval(1.0, 1.0, 1.0), p=1.0)
    comparison = next(c for c in single.comparisons if (c.evaluator, c.system) == ("reward", "hh-dpo"))
    assert conclude(single, comparison) == "not significant"
    assert not any(cell.strong for cell in win_table(single).rows[2])
    summary = summary_of(single)
    text = next(finding.text for finding in summary.findings if finding.system == "hh-dpo")
    assert re.search(r"not significantly different [^;]*reward \(Δ \+100.0 \[100.0, 100.0\], p = 1.00\)", text)
    assert "excludes 0 in 1 of 9 comparisons whose sign test is not significant" in str(summary.caveats)


def test_an_interval_that_touches_0_is_no_finding(evaluation: Evaluation) -> None:
    touching = with_delta(evaluation, "reward", "hh-dpo", Interval(0.1, 0.0, 0.2))
    comparison = next(c for c in touching.comparisons if (c.evaluator, c.system) == ("reward", "hh-dpo"))
    assert conclude(touching, comparison) == "not significant"


def test_caveats_of_sampling_rows_and_length(evaluation: Evaluation) -> None:
    caveats = " ".join(summary_of(evaluation).caveats)
    assert "hh-dpo: temperature, top_p, max_new_tokens, stop unknown" in caveats
    assert "2 pairs of all comparisons together had no outcome" in caveats
    assert "the reward model's score is NaN or infinite (1)" in caveats
    assert "judge: responses without a verdict" in caveats
    assert "Only one training run for hh-coh, hh-meet-lora, hh-meet-soft-prompt and hh-dpo" in caveats
    assert "One sampling seed" not in caveats
    assert "One sampling seed only: the" in " ".join(summary_of(made_evaluation(30, (0,))).caveats)
    assert "One sampling seed" not in " ".join(summary_of(made_evaluation(30, (0,), temperature=0.0)).caveats)
    long = with_delta(evaluation, "reward", "hh-dpo", Interval(0.2, 0.1, 0.3))
    even = [
        replace(each, controlled_win=Interval(0.49, 0.42, 0.56)) if each.system == "hh-dpo" else each
        for each in long.comparisons
    ]
    many = [replace(evaluation.problems[0], description=f"kind {n}") for n in range(10)]
    caveats_of_many = summary_of(replace(evaluation, problems=many)).caveats
    assert caveats_of_many[-2:] == ["kind 7 (1).", "2 more kinds of problems, listed under Problems."]
    caveats = " ".join(summary_of(replace(long, comparisons=even)).caveats)
    assert "At equal length hh-dpo is expected to win 49.0% [42.0, 56.0] by reward" in caveats


def test_text_of_users_does_not_double_full_stops(evaluation: Evaluation, tmp_path: Path) -> None:
    """The first line of a scorer's docstring ends in a full stop; no sentence of the report ends in two."""
    scorer = replace(evaluation.measures[-1], name="mine:brevity", description="Words of the completion.")
    asked = [replace(each, evaluator=scorer.name) for each in evaluation.comparisons if each.evaluator == "reward"]
    problems = [replace(evaluation.problems[0], description="a reply is cut off.")]
    mine = replace(evaluation, measures=[scorer], comparisons=asked, problems=problems)
    markdown = write_report(mine, tmp_path)[1].read_text(encoding="utf-8")
    assert "Words of the completion; higher is better" in markdown
    html = (tmp_path / "report.html").read_text(encoding="utf-8").partition('<script type="application/json"')[0]
    assert "Words of the completion. The height" in html
    for text in (markdown.partition("## Examples")[0], html):
        assert not re.search(r"\.[;.)](?!\d)", re.sub(r"\(\.\.\.|arXiv:\S+", "", text))


# Tables


def test_the_table_of_win_rates(evaluation: Evaluation) -> None:
    table = win_table(evaluation)
    assert table.columns == [
        "System", "Win (%)", "Lose (%)", "Tie (%)", "Δ (%)", "Sign test p", "Length-controlled win (%)",
        "Prompts (pairs)",
    ]  # fmt: skip
    assert [row[0].text for row in table.rows] == [name for name in SYSTEMS if name != BASELINE]
    rates = {each.system: each.rates for each in evaluation.comparisons if each.evaluator == "reward"}
    for row in table.rows:
        rate = rates[row[0].text]
        shown = [float(cell.text.replace("−", "-")) for cell in row[1:5]]
        assert shown == pytest.approx([100 * r.value for r in (rate.win, rate.lose, rate.tie, rate.delta)], abs=0.051)
        assert row[4].strong == (not rate.delta.low <= 0 <= rate.delta.high and rate.sign_p < 0.05)
        assert not any(cell.strong for cell in [*row[:4], *row[5:]])
    assert "1 of hh-dpo" in table.notes[-1]


def test_measures_are_printed_with_missing_values(evaluation: Evaluation) -> None:
    means, differences = measure_tables(evaluation)
    rows = {row[0].text: row for row in means.rows}
    rouge = measure_of(evaluation, "rouge-l")
    assert rouge and float(rows["rouge-l"][4].text) == pytest.approx(100 * rouge.means["hh-dpo"].value, abs=0.0051)
    assert rows["rouge-l"][0].small.endswith("printed × 100; higher is better")
    assert [row[0].text for row in differences.rows][4:8] == [
        "words",
        "words, ratio",
        "characters",
        "characters, ratio",
    ]
    mine = replace(evaluation.measures[0], name="rouge_of_mine:score")  # not our ROUGE, so not in [0, 1]
    (row,) = measure_tables(replace(evaluation, measures=[mine]))[0].rows
    assert "× 100" not in row[0].small and float(row[1].text) == pytest.approx(mine.means[BASELINE].value, abs=0.01)


def test_every_account_has_its_table(evaluation: Evaluation) -> None:
    sections = {section.name: section for section in sections_of([Condition(evaluation)])}
    assert list(sections) == [
        "results", "measures", "scores", "lengths", "agreement", "judge", "problems", "systems", "paper",
    ]  # fmt: skip
    assert [table.caption for table in sections["results"].tables] == [
        *(f"Win rates by {name}" for name in ("reward", "judge", "rouge-avg")),
        "Δ per replicate",
        "Run and seed of each replicate",
    ]
    kappa = evaluation.agreements[0]
    assert kappa.kappa and sections["agreement"].tables[0].rows[0][2].text == number(kappa.kappa.value, 2)
    undefined = agreement_tables(replace(evaluation, agreements=[replace(kappa, kappa=None)]))
    assert undefined[0].rows[0][2].text == "not defined"
    (problems,) = sections["problems"].tables
    assert [row[1].text for row in problems.rows] == ["1", "1", "1", "1"]
    assert "unknown" in problems.rows[1][0].text
    systems = sections["systems"].tables[0].rows
    assert [cell.text for cell in systems[-1][1:4]] == ["an external file", "unknown", "unknown"]
    assert "temperature 0.7, top_p 0.95, stop none" in systems[0][3].text
    for table in (table for section in sections.values() for table in section.tables):
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_a_bare_record_has_a_report(evaluation: Evaluation, tmp_path: Path) -> None:
    """Without a judge, measures, agreement, problems or comparisons there are fewer sections."""
    bare = replace(
        evaluation,
        measures=[],
        agreements=[],
        judge=None,
        problems=[],
        comparisons=evaluation.comparisons[:1],
        settings={},
    )
    page = Page(write_report(bare, tmp_path)[0].read_text(encoding="utf-8"))
    anchors = [attributes["href"] for attributes in page.all("a")]
    assert anchors == ["#summary", "#results", "#systems", "#examples", "#settings"]


def test_the_title_names_the_data_and_the_page_the_date(evaluation: Evaluation, tmp_path: Path) -> None:
    small = replace(evaluation, measures=[], comparisons=[])
    html, markdown = (file.read_text(encoding="utf-8") for file in write_report(small, tmp_path))
    title = "Evaluation on hh-rlhf (helpful-base) against hh-coh"
    assert f"<title>{title}, 27 November 2026, meetlm 1.0.0</title>" in html
    assert markdown.startswith(f"# {title}\n\n27 November 2026, meetlm 1.0.0\n")


@pytest.mark.parametrize(
    ("data", "tables"),
    [
        ({"source": "hh", "path": "Anthropic/hh-rlhf"}, [2, 3, 4, 5]),
        ({"source": "summarize", "path": "openai/summarize_from_feedback"}, [1, 3, 4, 5]),
        ({"source": "hh", "path": "my-transcripts.jsonl"}, []),
        ({"source": "pairs", "path": "data/pairs.jsonl"}, []),
    ],
)
def test_the_papers_figures_are_shown_with_the_papers_data_only(
    evaluation: Evaluation, data: dict[str, str], tables: list[int]
) -> None:
    settings = {**evaluation.settings, "data": data}
    small = replace(evaluation, settings=settings, measures=[], comparisons=[])
    papers = [section for section in sections_of([Condition(small)]) if section.name == "paper"]
    captions = [table.caption for section in papers for table in section.tables]
    assert captions == [caption for caption in captions if re.match(r"Table \d of the paper", caption)]
    assert [int(caption.split()[1]) for caption in captions] == tables
    assert all(section.lead.startswith("For orientation only") for section in papers)


# Examples


def test_the_order_of_examples(evaluation: Evaluation) -> None:
    small = replace(
        evaluation,
        cells=evaluation.cells[:7],
        completions={name: [f"{name} {n}" if n != 2 else "same" for n in range(7)] for name in SYSTEMS},
        comparisons=[
            replace(
                evaluation.comparisons[0],
                outcomes=["win", "lose", "tie", "win", None, "tie", "tie"],
                margins=[0.5, -2.0, 0.0, 3.0, None, -0.1, 0.05],
            )
        ],
    )
    comparison = small.comparisons[0]
    assert rank_pairs(small, comparison) == {"win": [3, 0], "lose": [1], "tie": [6, 5, 2], None: [4]}
    assert viewing_order(small, comparison) == [3, 1, 6, 0, 5, 2, 4]
    replies = [example.replies[0][1] for example in examples_of(small)]
    assert replies == [f"hh-meet-lora {pair}" for pair in (3, 1, 6)]


# Temperatures


def test_temperatures_are_conditions_of_the_same_tables(tmp_path: Path) -> None:
    points = []
    for t in (1.0, 0.0):
        full = made_evaluation(30, (0,), temperature=t)
        compared = [each for each in full.comparisons if each.evaluator == "reward"]
        points.append((t, replace(full, comparisons=compared, measures=full.measures[-1:])))
    first = points[1][1]
    other = replace(
        first,
        baseline="hh-dpo",
        comparisons=[replace(each, baseline="hh-dpo") for each in first.comparisons if each.system == "hh-meet-lora"],
        systems=[each for each in first.systems if each.name in ("hh-meet-lora", "hh-dpo")],
    )
    html, markdown = write_temperature_report([*points, (0.0, other)], tmp_path)
    assert (html.name, markdown.name) == ("temperature.html", "temperature.md")
    page, text = Page(html.read_text(encoding="utf-8")), markdown.read_text(encoding="utf-8")
    assert "# Δ over temperature on hh-rlhf (helpful-base)" in text
    charts = [image["alt"] for image in page.all("img")]
    assert len(charts) == 2 + 1  # two baselines, one score
    assert re.search(r"hh-meet-lora: \S+ at 0, \S+ at 1;", charts[0])
    assert "hh-coh at 0: mean" in charts[2] and "hh-dpo at 1: mean" in charts[2]
    # The full table of each evaluator, with the temperature and the baseline of each row.
    rows = [re.split(r" \| ", line)[:3] for line in text.splitlines() if line.startswith("| hh-meet-lora | ")]
    assert rows[:3] == [
        ["| hh-meet-lora", t, baseline] for t, baseline in (("0", BASELINE), ("1", BASELINE), ("0", "hh-dpo"))
    ]
    assert "**hh-meet-lora at temperature 0**: " in text
    assert "on 30 held-out prompts at 2 temperatures (0, 1)" in text
    assert "One sampling seed only at temperature 1" in text
    # Examples of each evaluation, and a link to all of its completions.
    links = [attributes["href"] for attributes in page.all("a") if "report" in attributes["href"]]
    assert links == ["t0/hh-coh/report.html", "t1/hh-coh/report.html", "t0/hh-dpo/report.html"]
    assert all((tmp_path / link).is_file() for link in links)
    assert len(page.all("article")) == 2 * 3 * 3 + 3
    assert "Temperature 0 against hh-dpo; all completions are in t0/hh-dpo/report.html." in text


def test_rouge_comes_after_other_evaluators(evaluation: Evaluation) -> None:
    assert evaluation.comparisons[0].evaluator == "rouge-avg"
    assert evaluators_of([Condition(evaluation)]) == ["reward", "judge", "rouge-avg"]
