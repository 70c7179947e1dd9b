"""The report's page: it needs nothing from outside, completions stay text in it, and a browser runs it."""

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

from browser import FOUND, NAMES, Browser
from html_page import Page
from made_evaluation import BASELINE, made_evaluation
from meetlm.evaluation.record import Evaluation
from meetlm.report.examples import shown
from meetlm.report.tables import ordered
from meetlm.report.write import write_report, write_temperature_report

EVIL = (
    "</script><script>alert(1)</script> <img src=x onerror=alert(2)> <!--<script> ]]> &lt;b&gt; ``` | **x** $y$ \u2028"
)
ODD = "hh coh #1 é?, a baseline of 50% and of a long name"  # as a folder's name it has to be quoted in an address
OUTSIDE = """
    [...document.querySelectorAll('svg')].flatMap((svg) => {
        const box = svg.getBoundingClientRect();
        const ends = [...svg.querySelectorAll('text')].map((one) => [one.textContent, one.getBoundingClientRect()]);
        return ends.filter(([_, end]) => end.left < box.left - 2 || end.right > box.right + 2).map(([text, _]) => text);
    })
"""
"""The texts of figures that stand out of them."""
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


def test_every_cell_is_in_the_page(evaluation: Evaluation, page: Page) -> None:
    data = json.loads(page.scripts()[0])
    assert data["completions"] == evaluation.completions
    assert data["prompts"] == [one.prompt for one in evaluation.prompts]
    for one, found in zip(ordered(evaluation), data["comparisons"], strict=True):
        assert sorted(found["order"]) == list(range(240))
        assert found["outcomes"].count("w") == one.outcomes.count("win")
        asked = one.asked or [True] * 240
        assert [code == "o" for code in found["outcomes"]] == [not each for each in asked]
        assert found["outcomes"].count("-") == one.outcomes.count(None) - asked.count(False)
        assert found["none"] == ("no verdict" if one.evaluator == "judge" else "no outcome")


def test_nothing_comes_from_outside(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in {
            "link",
            "iframe",
            "object",
            "embed",
            "base",
            "img",
            "image",
            "video",
            "audio",
            "source",
            "foreignobject",
        }
        for name, value in attributes.items():
            if name in {
                "src",
                "href",
                "xlink:href",
                "srcset",
                "action",
                "formaction",
                "poster",
                "data",
                "background",
                "ping",
            }:
                assert value.startswith("#"), (tag, name, value)
            assert not name.startswith("on"), (tag, name)
            assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)\)", value))
    styles = [text for tag, text in page.texts if tag == "style"]
    assert len(styles) == 1
    assert not re.search(r"@import|url\(|@font-face", styles[0])
    assert not re.search(
        r"fetch\(|XMLHttpRequest|import\(|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", page.scripts()[1]
    )


def test_the_pages_policy_allows_its_own_script_only(page: Page) -> None:
    policy = next(one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    script = base64.b64encode(hashlib.sha256(page.scripts()[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{script}'" in policy
    assert "http" not in policy.replace("http-equiv", "")


def test_paper_has_examples_of_every_system(evaluation: Evaluation, page: Page) -> None:
    titles = [text for tag, text in page.texts if tag == "h3" and " by reward, seed " in text]
    assert len(titles) == len(page.all("article")) == 3 * 3
    assert [title.split(" by ")[0] for title in titles[:3]] == [
        "Largest win of hh-meet-lora",
        "Largest loss of hh-meet-lora",
        "Closest tie of hh-meet-lora",
    ]


def _evil(prompt: str | list[dict[str, str]]) -> str | list[dict[str, str]]:
    """Return a prompt of as many turns, and nothing else in them."""
    return EVIL if isinstance(prompt, str) else [{**turn, "content": EVIL} for turn in prompt]


def test_completions_stay_text(evaluation: Evaluation, page: Page, tmp_path: Path) -> None:
    completions = {name: [EVIL] * len(texts) for name, texts in evaluation.completions.items()}
    assert evaluation.judge
    evil = replace(
        evaluation,
        completions=completions,
        prompts=[replace(one, prompt=_evil(one.prompt), chosen=EVIL) for one in evaluation.prompts],
        problems=[replace(one, what=EVIL, examples=[EVIL]) for one in evaluation.problems],
        settings={"note": EVIL},
        judge=replace(evaluation.judge, model=EVIL, prompt_text=EVIL),
    )
    html, markdown = write_report(evil, tmp_path)
    found = Page(html.read_text(encoding="utf-8"))
    assert len(found.scripts()) == 2
    assert found.scripts()[1] == page.scripts()[1]
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in page.elements]
    assert "<" not in found.scripts()[0]
    assert json.loads(found.scripts()[0])["completions"] == completions
    assert any(tag == "pre" and EVIL in text for tag, text in found.texts)

    rendered = MarkdownIt("commonmark").enable("table").render(markdown.read_text(encoding="utf-8"))
    tags = {tag for tag, _ in Page(rendered).elements}
    assert tags == {
        "h1",
        "h2",
        "h3",
        "p",
        "ul",
        "li",
        "strong",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "pre",
        "code",
    }
    blocks = [text for tag, text in Page(rendered).texts if tag == "code"]
    examples = shown(evil)
    assert len(examples) == 3 * 3
    texts = sum(len(one.prompt) + len(one.replies) for one in examples)
    assert sum(EVIL in block for block in blocks) == 1 + texts  # the judge's prompt, and theirs


def test_names_stay_names(evaluation: Evaluation, tmp_path: Path) -> None:
    """A name of markup, of mathematics and of letters that matplotlib's font lacks."""
    odd = '<b>&"|$x^2$_猫🐱'
    evaluation.save(tmp_path / "evaluation.json")
    record = (
        (tmp_path / "evaluation.json")
        .read_text(encoding="utf-8")
        .replace('"hh-dpo"', json.dumps(odd, ensure_ascii=False))
    )
    (tmp_path / "evaluation.json").write_text(record, encoding="utf-8")
    html, markdown = write_report(Evaluation.read(tmp_path / "evaluation.json"), tmp_path)
    page = Page(html.read_text(encoding="utf-8"))
    assert not page.all("b")
    assert sum(odd in text for tag, text in page.texts if tag == "text") >= 5  # in figures
    assert any(odd == text.strip() for tag, text in page.texts if tag == "span")  # in tables
    shown = Page(MarkdownIt("commonmark").enable("table").render(markdown.read_text(encoding="utf-8")))
    assert any(odd in text for tag, text in shown.texts if tag == "td") or odd in "".join(
        text for _, text in shown.texts
    )


def test_no_line_ends_inside_a_figure(written: tuple[Path, Path]) -> None:
    html = written[0].read_text(encoding="utf-8").partition('<script type="application/json"')[0]
    assert "&lt;\xa00.001" in html and not re.search(r"&lt; 0\.\d", re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL))


def test_the_page_can_be_used_by_all(page: Page) -> None:
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(headings, headings[1:], strict=False))
    assert len(page.all("caption")) == len(page.all("table")) == 14 + 5  # the paper's are the last
    assert len(page.all("svg")) == len(page.all("figure")) == len(page.all("figcaption")) == 12
    for svg in page.all("svg"):
        assert svg["role"] == "img" and re.search(r"hh-dpo.*\d", svg["aria-label"])
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in page.all("a") + page.all("use"):
        assert attributes["href"].removeprefix("#") in ids
    assert len(page.all("label")) == len(page.all("select")) + len(page.all("input")) == 4
    assert page.all("html")[0]["lang"] == "en"
    assert "width=device-width" in next(one["content"] for one in page.all("meta") if one.get("name") == "viewport")


def luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark", "print"])
def test_contrast(theme: int) -> None:
    """WCAG 2.1: 4.5 for text, 3 for marks."""
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", CSS.split(":root {")[theme + 1].split("}")[0]))

    def contrast(one: str, other: str) -> float:
        light, dark = sorted((luminance(colours[one]), luminance(colours[other])), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    texts = [(name, ground) for name in ("ink", "muted") for ground in ("paper", "card", "warn")]
    assert {pair: contrast(*pair) for pair in texts if contrast(*pair) < 4.5} == {}
    marks = [name for name in colours if name.startswith("series") or name in ("win", "lose")]
    assert len(marks) == 10
    assert {name: contrast(name, "paper") for name in marks if contrast(name, "paper") < 3} == {}


def test_the_same_record_gives_the_same_bytes(
    evaluation: Evaluation, written: tuple[Path, Path], tmp_path: Path
) -> None:
    again = write_report(evaluation, tmp_path)
    assert [file.name for file in again] == ["report.html", "report.md"]
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in written]


@pytest.mark.slow
def test_ten_thousand_cells(tmp_path: Path) -> None:
    large = made_evaluation(5000, (0, 1))
    began = time.perf_counter()
    html, markdown = write_report(large, tmp_path)
    assert time.perf_counter() - began < 60
    texts = sum(len(text.encode()) for column in large.completions.values() for text in column)
    assert html.stat().st_size < texts + 12e6
    assert markdown.stat().st_size < 100e3


@pytest.mark.slow
@pytest.mark.skipif(FOUND is None, reason=f"no Chromium: none of {', '.join(NAMES)} on the PATH")
def test_in_a_browser(evaluation: Evaluation, tmp_path: Path) -> None:
    """The script runs under the policy, filters, searches and shows markup as text; the page fits, and prints."""
    completions = {name: list(texts) for name, texts in evaluation.completions.items()}
    completions["hh-dpo"][11] = f"needle {EVIL} <script>document.title = 'broken'</script>"
    completions["hh-dpo"][12] = "long" * 200
    told = [one for one in evaluation.comparisons if (one.system, one.evaluator) != ("hh-meet-lora", "judge")]
    html, _ = write_report(replace(evaluation, completions=completions, comparisons=told), tmp_path)
    judged = next(one for one in told if (one.system, one.evaluator) == ("hh-dpo", "judge"))

    with Browser(tmp_path / "profile") as browser:

        def status() -> str:
            return str(browser.run("document.getElementById('status').textContent"))

        def cards() -> int:
            return int(browser.run("document.querySelectorAll('#cells article').length"))

        def choose(name: str, value: str, expected: str) -> None:
            browser.run(
                f"{name}.value = {json.dumps(value)}, {name}.dispatchEvent(new Event('input', {{bubbles: true}}))"
            )
            browser.until(f"document.getElementById('status').textContent === {json.dumps(expected)}")

        for width, phone in ((1400, False), (390, True)):
            browser.open(html.as_uri(), width, phone=phone)
            assert browser.run("document.documentElement.scrollWidth <= innerWidth && innerWidth") == width
            assert (status(), cards()) == ("6 of 240 shown", 6)
            browser.run("more.click()")
            assert (status(), cards()) == ("12 of 240 shown", 12)
            choose("system", "hh-dpo", "6 of 240 shown")
            choose("evaluator", "judge", "6 of 240 shown")
            choose("outcome", "w", f"6 of {judged.outcomes.count('win')} shown")
            assert browser.run("[...document.querySelectorAll('#cells .w')].length") >= 6
            choose("outcome", "o", "6 of 48 shown")
            assert "judge: not asked" in browser.run("document.querySelector('#cells .badges').textContent")
            choose("outcome", "", "6 of 240 shown")
            choose("search", "needle", "1 of 1 shown")
            assert browser.run("document.querySelector('#cells mark').textContent") == "needle"
            assert "<img src=x onerror=alert(2)>" in browser.run("document.getElementById('cells').textContent")
            assert browser.run("[document.title, document.images.length, document.scripts.length]") == [
                f"Evaluation against {BASELINE}",
                0,
                2,
            ]
            choose("search", "l" + "ong" * 3, "Nothing found.")
            choose("search", "longlong", "1 of 1 shown")
            assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        browser.open(f"{html.as_uri()}#system=hh-dpo&search=needle", 1400)  # an address that somebody was sent
        assert (status(), cards()) == ("1 of 1 shown", 1)
        # Completions without an outcome can be read.
        browser.open(f"{html.as_uri()}#system=hh-meet-lora&evaluator=judge", 1400)
        assert (status(), cards()) == ("6 of 240 shown", 6)

        browser.open(html.as_uri(), 1400)
        folded = "document.querySelectorAll('details:not([open])').length"
        before = browser.run(folded)
        browser.run("addEventListener('beforeprint', () => { window.foldedOnPaper = " + folded + "; })")
        assert before > 2 and browser.pdf().startswith(b"%PDF")
        assert (browser.run("window.foldedOnPaper"), browser.run(folded)) == (0, before)
        browser.call("Emulation.setEmulatedMedia", media="print")
        named = "['highlights', 'cells', 'filters'].map((id) => document.getElementById(id).checkVisibility())"
        assert browser.run(named) == [True, False, False]
        browser.call("Emulation.setDeviceMetricsOverride", width=718, height=960, deviceScaleFactor=1, mobile=False)
        wide = "[...document.querySelectorAll('table')].filter((one) => one.offsetWidth > innerWidth).length"
        assert browser.run(wide) == 0  # a page of letter paper, less its margins
        browser.run("more.click()")  # now somebody has chosen what to print
        assert browser.run(named) == [False, True, False]
        assert browser.errors == []


@pytest.mark.slow
@pytest.mark.skipif(FOUND is None, reason=f"no Chromium: none of {', '.join(NAMES)} on the PATH")
def test_temperatures_in_a_browser(tmp_path: Path) -> None:
    """The page fits, wide, on a phone and in the dark; its examples unfold, and each leads to its evaluation's page."""
    given = []
    for temperature in (0.0, 0.5):
        made_evaluation(30, (0,), temperature=temperature).save(tmp_path / "evaluation.json")
        record = (tmp_path / "evaluation.json").read_text(encoding="utf-8").replace(f'"{BASELINE}"', f'"{ODD}"')
        (tmp_path / "evaluation.json").write_text(record, encoding="utf-8")
        given.append((temperature, Evaluation.read(tmp_path / "evaluation.json")))
    html, _ = write_temperature_report(given, tmp_path / "sweep")

    with Browser(tmp_path / "profile") as browser:
        for width, phone, dark in ((1400, False, False), (390, True, False), (1400, False, True), (390, True, True)):
            theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            browser.call("Emulation.setEmulatedMedia", features=[theme])
            browser.open(html.as_uri(), width, phone=phone)
            assert browser.run("document.documentElement.scrollWidth <= innerWidth && innerWidth") == width
            assert browser.run(OUTSIDE) == []
            colours = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
            expected = [re.findall(rf"--{name}: #(\w+)", CSS)[dark] for name in ("paper", "ink")]
            assert browser.run(colours) == [
                f"rgb({', '.join(str(int(one[n : n + 2], 16)) for n in (0, 2, 4))})" for one in expected
            ]

            cards = "[...document.querySelectorAll('#examples article')].filter((one) => one.checkVisibility()).length"
            for unfolded in range(2):
                assert browser.run(cards) == 9 * unfolded
                browser.run(f"document.querySelectorAll('#examples summary')[{unfolded}].click()")
            assert browser.run(cards) == 2 * 9  # three systems' win, loss and tie at each of the temperatures
            assert browser.run("document.documentElement.scrollWidth <= innerWidth")

            ways = browser.run("[...document.querySelectorAll('#examples a')].map((one) => one.href)")
            assert len(ways) == 2
            for way in ways:
                browser.open(way, width, phone=phone)
                assert browser.run("document.title") == f"Evaluation against {ODD}"
                assert browser.run("document.getElementById('status').textContent") == "6 of 30 shown"
                assert browser.run("document.documentElement.scrollWidth <= innerWidth")
                assert browser.run(OUTSIDE) == []
        assert browser.errors == []
