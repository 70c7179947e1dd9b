"""The report's page needs nothing from outside, completions stay text in it, and it can be used by everybody."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from html_page import Page
from made_evaluation import made_evaluation
from meetlm.evaluation.record import Evaluation, PromptRow
from meetlm.report.charts import SERIES
from meetlm.report.conditions import Condition, comparisons_of
from meetlm.report.examples import examples_of, turns
from meetlm.report.write import write_report

MARKUP = (
    "</script><script>alert(1)</script> <img src=x onerror=alert(2)> <!--<script> ]]> &lt;b&gt; ``` | **x** $y$ \u2028"
)
CSS = (resources.files("meetlm.report") / "templates" / "report.css").read_text()


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return made_evaluation()


@pytest.fixture(scope="module")
def written(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_report(evaluation, tmp_path_factory.mktemp("report") / "new")


@pytest.fixture(scope="module")
def page(written: tuple[Path, Path]) -> Page:
    return Page(written[0].read_text(encoding="utf-8"))


def test_every_pair_is_in_the_page(evaluation: Evaluation, page: Page) -> None:
    data = json.loads(page.scripts()[0])
    assert data["completions"] == evaluation.completions
    assert data["prompts"][0] == [[turn["role"], turn["content"]] for turn in evaluation.prompts[0].prompt]
    assert data["prompts"][1] == [["prompt", str(evaluation.prompts[1].prompt).strip()]]
    for (_, comparison), shown in zip(comparisons_of([Condition(evaluation)]), data["comparisons"], strict=True):
        assert sorted(shown["order"]) == list(range(240))
        assert shown["outcomes"].count("w") == comparison.outcomes.count("win")
        asked = comparison.asked or [True] * 240
        assert [code == "o" for code in shown["outcomes"]] == [not each for each in asked]
        assert shown["outcomes"].count("-") == comparison.outcomes.count(None) - asked.count(False)
        assert shown["none"] == ("no verdict" if comparison.evaluator == "judge" else "no outcome")


def test_nothing_comes_from_outside(page: Page) -> None:
    forbidden = {"link", "iframe", "object", "embed", "base", "image", "video", "audio", "source", "foreignobject"}
    addresses = {"src", "href", "srcset", "action", "formaction", "poster", "data", "background", "ping"}
    for tag, attributes in page.elements:
        assert tag not in forbidden
        for name, value in attributes.items():
            if name in addresses:
                assert value.startswith("data:image/svg+xml;base64," if tag == "img" else "#"), (tag, name, value)
            assert not name.startswith("on"), (tag, name)
    (style,) = (text for tag, text in page.texts if tag == "style")
    assert not re.search(r"@import|url\(|@font-face", style)
    assert not re.search(
        r"fetch\(|XMLHttpRequest|import\(|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", page.scripts()[1]
    )


def test_the_content_security_policy_allows_only_the_script_of_the_page(page: Page) -> None:
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    script = base64.b64encode(hashlib.sha256(page.scripts()[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert f"script-src 'sha256-{script}'" in policy and "http" not in policy


def test_there_are_examples_of_every_system_without_the_script(page: Page) -> None:
    titles = [text for tag, text in page.texts if tag == "h3" and " by reward, replicate " in text]
    assert len(titles) == len(page.all("article")) == 3 * 3
    assert [title.split(" by ")[0] for title in titles[:3]] == [
        f"{kind} of hh-meet-lora" for kind in ("Largest win", "Largest loss", "Closest tie")
    ]


def test_completions_and_names_stay_text(evaluation: Evaluation, page: Page, tmp_path: Path) -> None:
    completions = {name: [MARKUP] * len(texts) for name, texts in evaluation.completions.items()}
    assert evaluation.judge
    prompts = [
        replace(
            row,
            chosen=MARKUP,
            prompt=MARKUP if isinstance(row.prompt, str) else [{**turn, "content": MARKUP} for turn in row.prompt],
        )
        for row in evaluation.prompts
    ]
    marked = replace(
        evaluation,
        completions=completions,
        prompts=prompts,
        problems=[
            replace(problem, description=f"{number} {MARKUP}", examples=[MARKUP])
            for number, problem in enumerate(evaluation.problems)
        ],
        settings={**evaluation.settings, "note": MARKUP},
        judge=replace(evaluation.judge, model=MARKUP, prompt_text=MARKUP),
    )
    html, markdown = write_report(marked, tmp_path)
    result = Page(html.read_text(encoding="utf-8"))
    assert result.scripts()[1] == page.scripts()[1] and len(result.scripts()) == 2
    assert [tag for tag, _ in result.elements] == [tag for tag, _ in page.elements]
    assert "<" not in result.scripts()[0]
    assert json.loads(result.scripts()[0])["completions"] == completions
    assert any(tag == "pre" and MARKUP in text for tag, text in result.texts)

    rendered = Page(MarkdownIt("commonmark").enable("table").render(markdown.read_text(encoding="utf-8")))
    assert {tag for tag, _ in rendered.elements} == {
        "h1", "h2", "h3", "p", "ul", "li", "strong", "table", "thead", "tbody", "tr", "th", "td", "pre", "code",
    }  # fmt: skip
    blocks = [text for tag, text in rendered.texts if tag == "code"]
    texts = sum(len(example.prompt) + len(example.replies) for example in examples_of(marked))
    assert sum(MARKUP.strip() in block for block in blocks) == 1 + texts  # the judge's prompt, and theirs


def test_tool_calls_of_a_prompt_are_shown() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "weather"}]}
    assert turns(PromptRow("id", [call], None)) == [("assistant", '{"tool_calls": [{"name": "weather"}]}')]


def test_a_system_may_have_any_name(tmp_path: Path) -> None:
    """A name with markup, mathematics and letters that matplotlib's font lacks."""
    name = '<b>&"|$x^2$_猫🐱'
    file = tmp_path / "evaluation.json"
    made_evaluation(30, (0,)).save(file)
    text = file.read_text(encoding="utf-8").replace('"hh-dpo"', json.dumps(name, ensure_ascii=False))
    file.write_text(text, encoding="utf-8")
    html, markdown = write_report(Evaluation.read(file), tmp_path)
    page = Page(html.read_text(encoding="utf-8"))
    assert not page.all("b") and any(name in image["alt"] for image in page.all("img"))
    assert any(name == text.strip() for tag, text in page.texts if tag == "span")  # in tables
    rendered = Page(MarkdownIt("commonmark").enable("table").render(markdown.read_text(encoding="utf-8")))
    assert name in "".join(text for tag, text in rendered.texts if tag == "td")


def test_no_line_ends_inside_a_figure(written: tuple[Path, Path]) -> None:
    html = written[0].read_text(encoding="utf-8").partition('<script type="application/json"')[0]
    html = re.sub(r'alt="[^"]*"', "", html)
    assert "&lt;\xa00.001" in html and not re.search(r"&lt; 0\.\d", html)


def test_the_page_is_accessible(page: Page) -> None:
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(headings, headings[1:], strict=False))
    assert len(page.all("caption")) == len(page.all("table")) == 12 + 4  # the paper's are the last four
    assert len(page.all("img")) == len(page.all("figure")) == len(page.all("figcaption")) == 12
    for image in page.all("img"):
        assert re.search(r"hh-dpo.*\d", image["alt"])
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"].removeprefix("#") for attributes in page.all("a")} <= set(ids)
    assert len(page.all("label")) == len(page.all("select")) + len(page.all("input")) == 4
    assert page.all("html")[0]["lang"] == "en"
    assert "width=device-width" in next(meta["content"] for meta in page.all("meta") if meta.get("name") == "viewport")


@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark", "print"])
def test_contrast(theme: int) -> None:
    """WCAG 2.1: 4.5 for text, 3 for marks."""
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", CSS.split(":root {")[theme + 1].split("}")[0]))

    def luminance(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(name: str, ground: str) -> float:
        light, dark = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    texts = [(name, ground) for name in ("ink", "muted") for ground in ("paper", "card", "warn")]
    assert {pair: contrast(*pair) for pair in texts if contrast(*pair) < 4.5} == {}
    assert {name: contrast(name, "paper") for name in ("win", "lose") if contrast(name, "paper") < 3} == {}
    colours |= {"white": "#ffffff"}  # the ground that charts are drawn for; a dark page inverts both
    colours |= {colour: colour for colour in SERIES}
    assert {colour: contrast(colour, "white") for colour in SERIES if contrast(colour, "white") < 3} == {}


def test_the_same_record_gives_the_same_bytes(
    evaluation: Evaluation, written: tuple[Path, Path], tmp_path: Path
) -> None:
    again = write_report(evaluation, tmp_path)
    assert [file.name for file in again] == ["report.html", "report.md"]
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in written]


@pytest.mark.slow
def test_ten_thousand_pairs(tmp_path: Path) -> None:
    large = made_evaluation(5000, (0, 1))
    start = time.perf_counter()
    html, markdown = write_report(large, tmp_path)
    assert time.perf_counter() - start < 60
    texts = sum(len(text.encode()) for column in large.completions.values() for text in column)
    assert html.stat().st_size < texts + 12e6
    assert markdown.stat().st_size < 100e3
