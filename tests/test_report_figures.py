"""Figures of a report: names stand whole in them as far as there is room, and matplotlib is left as it was."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

from html_page import Page
from made_evaluation import BASELINE, made_evaluation
from meetlm.evaluation.record import Evaluation
from meetlm.report.charts import delta_chart, evaluation_charts
from meetlm.report.plots import Plot, draw, wrapped
from meetlm.report.temperature import temperature_sections

LONG = "summarize-meet-lora-second-step-only-rank-64"


def renamed(folder: Path, old: str, new: str) -> Evaluation:
    made_evaluation(30, (0,)).save(folder / "evaluation.json")
    record = (folder / "evaluation.json").read_text(encoding="utf-8")
    (folder / "evaluation.json").write_text(record.replace(json.dumps(old), json.dumps(new)), encoding="utf-8")
    return Evaluation.read(folder / "evaluation.json")


def figures(evaluation: Evaluation) -> list[Plot]:
    found = [plot for plots in evaluation_charts(evaluation).values() for plot in plots]
    return found + [plot for section in temperature_sections([(0.7, evaluation)]) for plot in section.plots]


def texts(plot: Plot) -> list[str]:
    return [text.strip() for tag, text in Page(plot.svg).texts if tag == "text"]


def test_a_name_in_one_line_or_two() -> None:
    assert wrapped("hh-meet-lora", 12) == "hh-meet-lora"
    assert wrapped("hh-meet-soft-prompt", 12) == "hh-meet-\nsoft-prompt"
    assert wrapped("a name of words", 12) == "a name of\nwords"
    assert wrapped("x" * 20, 12) == "x" * 12 + "\n" + "x" * 8
    assert wrapped("abc-" + "x" * 14, 12) == "abc-xxxxxxxx\nxxxxxx", "a break at the sign leaves too much behind it"
    cut = wrapped("a" * 20 + "b" * 20, 12)
    assert cut == "a" * 11 + "…\n" + "b" * 11


@pytest.mark.parametrize("old", ["hh-dpo", BASELINE])
def test_a_long_name_is_whole_in_every_figure_that_has_it(old: str, tmp_path: Path) -> None:
    before, after = figures(made_evaluation(30, (0,))), figures(renamed(tmp_path, old, LONG))
    have = [place for place, plot in enumerate(before) if old in " ".join(texts(plot))]
    assert len(have) >= 9
    for place in have:
        assert LONG in "".join(texts(after[place])), after[place].title


def test_every_evaluator_stands_below_its_system(tmp_path: Path) -> None:
    drawn = texts(delta_chart(renamed(tmp_path, "hh-dpo", LONG)))
    rows = [text for text in drawn if text.startswith(("hh-", "summ", "re", "ju", "ro"))]
    each = ["reward", "judge", "rouge-avg"]
    assert rows == ["hh-meet-lora", *each, "hh-meet-soft-prompt", *each, LONG, *each]


@pytest.mark.parametrize("old", ["hh-dpo", BASELINE])
def test_a_name_that_is_cut_is_whole_in_the_alternative(old: str, tmp_path: Path) -> None:
    name = "-".join([LONG] * 3)
    cut = [plot for plot in figures(renamed(tmp_path, old, name)) if "…" in "".join(texts(plot))]
    assert len(cut) >= 9
    assert [plot.title for plot in cut if name not in plot.alt] == []


def test_figures_leave_matplotlib_alone() -> None:
    before = dict(matplotlib.rcParams)
    plot = draw("A title", 1.0, "alt <text>", "caption", lambda axes: axes.set_xlabel("x < 1"))
    assert dict(matplotlib.rcParams) == before
    svg = Page(plot.svg)
    assert svg.all("svg") == [{"viewbox": svg.all("svg")[0]["viewbox"], "role": "img", "aria-label": "alt <text>"}]
    assert any(text == "x < 1" for tag, text in svg.texts if tag == "text")
    assert not re.search(r"#0000\d\d|http|DejaVu|<metadata|<style", plot.svg)
    assert all(attributes["id"].startswith("a-title-") for _, attributes in svg.elements if "id" in attributes)
    code = (
        "import sys, meetlm.report.write; assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
