"""Charts of a report: intervals within their range, names and figures in the alternative text, matplotlib unchanged."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest

from html_page import Page
from made_evaluation import BASELINE, made_evaluation
from meetlm.evaluation.record import Evaluation
from meetlm.report.charts import Chart, Point, delta_chart, draw, group_by_length, length_charts, shortened
from meetlm.report.conditions import Condition, measure_of
from meetlm.report.sections import sections_of


def svg_of(chart: Chart) -> str:
    return base64.b64decode(chart.address.partition("base64,")[2]).decode()


def texts_of(chart: Chart) -> list[str]:
    return [text.strip() for tag, text in Page(svg_of(chart)).texts if tag == "text"]


def test_groups_by_length() -> None:
    """Ten x in five groups; a prompt with two pairs in one group counts once in its mean and interval."""
    points = group_by_length(range(10), [n % 2 for n in range(10)], range(10))
    assert [point.x for point in points] == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert all(point.y == 0.5 and point.high - point.y == pytest.approx(1.96 * 0.5) for point in points)
    (point,) = group_by_length([1, 1, 1, 2, None], [0, 0, 3, None, 9], [0, 0, 1, 2, 3])
    assert point == Point(1.0, 1.5, pytest.approx(1.5 - 1.96 * 1.5), pytest.approx(1.5 + 1.96 * 1.5))
    assert group_by_length([], [], []) == []


def test_no_axis_of_delta_goes_beyond_100_percent() -> None:
    """Two prompts per group, one won and one lost: the whiskers of Δ = 0 would end at ±196%."""
    evaluation = made_evaluation(30, (0,))
    first = next(each for each in evaluation.comparisons if each.evaluator == "reward")
    outcomes = replace(first, outcomes=[("win", "lose")[n % 2] if n < 10 else None for n in range(30)])
    lengths = {first.system: [float(n) for n in range(30)], BASELINE: [0.0] * 30}
    measured = measure_of(evaluation, "words")
    assert measured
    with_lengths = replace(measured, values={**measured.values, **lengths})
    (chart,) = length_charts(replace(evaluation, comparisons=[outcomes]), with_lengths, [])
    ticks = [float(text.replace("−", "-")) for text in texts_of(chart) if re.fullmatch(r"−?\d+", text)]
    assert min(ticks) == -100 and max(ticks) == 100


def test_a_long_name_is_whole_in_the_alternative_text(tmp_path: Path) -> None:
    names = {old: f"{old}-" + "-".join(["summarize-meet-lora-second-step-only"] * 3) for old in ("hh-dpo", BASELINE)}
    made_evaluation(30, (0,)).save(tmp_path / "evaluation.json")
    record = (tmp_path / "evaluation.json").read_text(encoding="utf-8")
    for old, new in names.items():
        record = record.replace(json.dumps(old), json.dumps(new))
    (tmp_path / "evaluation.json").write_text(record, encoding="utf-8")
    conditions = [Condition(Evaluation.read(tmp_path / "evaluation.json"))]
    charts = [chart for section in sections_of(conditions) for chart in section.charts]
    assert len(charts) == 12
    for chart in charts:
        for start in re.findall(r"(hh-[^…\n]*)…", "\n".join(texts_of(chart))):
            (name,) = (name for name in names.values() if name.startswith(start))
            assert name in chart.alt, chart.title
    assert all("…" in "".join(texts_of(chart)) for chart in charts)
    assert shortened("hh-meet-lora", 12) == "hh-meet-lora" and shortened("a" * 20 + "b" * 20, 12) == "aaaaaa…bbbbb"


def test_every_evaluator_is_below_its_system() -> None:
    rows = [
        text for text in texts_of(delta_chart(made_evaluation(30, (0,)))) if text.startswith(("hh-", "re", "ju", "ro"))
    ]
    evaluators = ["reward", "judge", "rouge-avg"]
    assert rows == ["hh-meet-lora", *evaluators, "hh-meet-soft-prompt", *evaluators, "hh-dpo", *evaluators]


def test_charts_leave_matplotlib_alone() -> None:
    before = dict(matplotlib.rcParams)
    chart = draw("A title", 1.0, "alt <text>", "caption", lambda axes: axes.set_xlabel("x < 1"))
    assert dict(matplotlib.rcParams) == before
    assert "x < 1" in texts_of(chart) and chart.alt == "alt <text>"
    assert "<dc:date>" not in svg_of(chart)
