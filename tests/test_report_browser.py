"""The report in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from made_evaluation import BASELINE, made_evaluation
from meetlm.evaluation.record import Evaluation
from meetlm.report.write import write_report, write_temperature_report
from test_report_page import MARKUP

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on the PATH (apt-get install chromium)"),
]

BASELINE_NAME = "hh coh #1 é?, a baseline of 50% and of a long name"  # must be quoted in an address
CSS = (resources.files("meetlm.report") / "templates" / "report.css").read_text()
FITS = "document.documentElement.scrollWidth <= innerWidth && [...document.images].every((image) => image.naturalWidth)"
"""Whether the page is no wider than the window, and every chart is drawn."""


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """Errors of the page's script and refusals of its policy; a test fails if there are any."""
    messages: list[str] = []
    yield messages
    assert messages == []


def open_page(
    browser: sync_api.Browser, errors: list[str], address: str, *, phone: bool = False, dark: bool = False
) -> sync_api.Page:
    width, height = (390, 844) if phone else (1400, 900)
    context = browser.new_context(
        viewport={"width": width, "height": height}, is_mobile=phone, color_scheme="dark" if dark else "light"
    )
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(address)
    return page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Evaluation]:
    """The address of a report with markup in a completion and a system that the judge was not asked about."""
    evaluation = made_evaluation()
    completions = {name: list(texts) for name, texts in evaluation.completions.items()}
    completions["hh-dpo"][11] = f"needle {MARKUP} <script>document.title = 'broken'</script>"
    completions["hh-dpo"][12] = "long" * 200
    comparisons = [c for c in evaluation.comparisons if (c.system, c.evaluator) != ("hh-meet-lora", "judge")]
    changed = replace(evaluation, completions=completions, comparisons=comparisons)
    return write_report(changed, tmp_path_factory.mktemp("browser"))[0].as_uri(), changed


@pytest.mark.parametrize("phone", [False, True])
def test_filters_and_search(
    browser: sync_api.Browser, errors: list[str], report: tuple[str, Evaluation], phone: bool
) -> None:
    """The script runs under the policy, filters, searches and shows markup as text; the page fits the window."""
    address, evaluation = report
    judged = next(c for c in evaluation.comparisons if (c.system, c.evaluator) == ("hh-dpo", "judge"))
    page = open_page(browser, errors, address, phone=phone)
    status, cards = page.locator("#status"), page.locator("#cards article")
    assert page.evaluate(FITS)
    sync_api.expect(status).to_have_text("6 of 240 shown")
    page.click("#more")
    sync_api.expect(cards).to_have_count(12)
    page.select_option("#system", "hh-dpo")
    page.select_option("#evaluator", "judge")
    page.select_option("#outcome", "w")
    sync_api.expect(status).to_have_text(f"6 of {judged.outcomes.count('win')} shown")
    assert page.locator("#cards .w").count() >= 6
    page.select_option("#outcome", "o")
    sync_api.expect(status).to_have_text("6 of 48 shown")
    assert "judge: not asked" in page.locator("#cards .badges").first.inner_text()
    page.select_option("#outcome", "")
    page.fill("#search", "needle")
    sync_api.expect(status).to_have_text("1 of 1 shown")
    assert page.locator("#cards mark").first.inner_text() == "needle"
    assert "<img src=x onerror=alert(2)>" in page.locator("#cards").inner_text()
    assert page.locator("#cards img").count() == 0 and page.locator("script").count() == 2
    assert page.title().startswith("Evaluation on hh-rlhf")
    page.fill("#search", "l" + "ong" * 3)
    sync_api.expect(status).to_have_text("No matches.")
    page.fill("#search", "longlong")
    sync_api.expect(status).to_have_text("1 of 1 shown")
    assert page.evaluate(FITS)


def test_an_address_with_filters(browser: sync_api.Browser, errors: list[str], report: tuple[str, Evaluation]) -> None:
    page = open_page(browser, errors, f"{report[0]}#system=hh-dpo&search=needle")
    sync_api.expect(page.locator("#status")).to_have_text("1 of 1 shown")
    # Completions without an outcome can be read.
    page = open_page(browser, errors, f"{report[0]}#system=hh-meet-lora&evaluator=judge")
    sync_api.expect(page.locator("#status")).to_have_text("6 of 240 shown")


def test_printing(browser: sync_api.Browser, errors: list[str], report: tuple[str, Evaluation]) -> None:
    """Folded parts are printed open; examples of every system are printed unless the reader has chosen others."""
    page = open_page(browser, errors, report[0])
    folded = "document.querySelectorAll('details:not([open])').length"
    before = page.evaluate(folded)
    page.evaluate(f"addEventListener('beforeprint', () => {{ window.foldedOnPaper = {folded}; }})")
    assert before > 2 and page.pdf().startswith(b"%PDF")
    assert (page.evaluate("window.foldedOnPaper"), page.evaluate(folded)) == (0, before)
    page.emulate_media(media="print")
    visible = [page.locator(f"#{name}").is_visible() for name in ("highlights", "cards", "filters")]
    assert visible == [True, False, False]
    page.set_viewport_size({"width": 718, "height": 960})  # letter paper without its margins
    assert page.evaluate("[...document.querySelectorAll('table')].every((table) => table.offsetWidth <= innerWidth)")
    page.evaluate("more.click()")
    assert [page.locator(f"#{name}").is_visible() for name in ("highlights", "cards")] == [False, True]


def test_temperatures(browser: sync_api.Browser, errors: list[str], tmp_path: Path) -> None:
    """The page fits, on a phone and in the dark; its examples unfold and lead to the page of each evaluation."""
    points = []
    for temperature in (0.0, 0.5):
        made_evaluation(30, (0,), temperature=temperature).save(tmp_path / "evaluation.json")
        record = (tmp_path / "evaluation.json").read_text(encoding="utf-8")
        record = record.replace(json.dumps(BASELINE), json.dumps(BASELINE_NAME))
        (tmp_path / "evaluation.json").write_text(record, encoding="utf-8")
        points.append((temperature, Evaluation.read(tmp_path / "evaluation.json")))
    address = write_temperature_report(points, tmp_path / "sweep")[0].as_uri()
    for phone, dark in ((False, False), (True, True)):
        page = open_page(browser, errors, address, phone=phone, dark=dark)
        assert page.evaluate(FITS)
        paper = re.findall(r"--paper: #(\w+)", CSS)[dark]
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert colour == f"rgb({', '.join(str(int(paper[n : n + 2], 16)) for n in (0, 2, 4))})"
        assert page.locator("#examples article").first.is_hidden()
        for summary in page.locator("#examples summary").all():
            summary.click()
        assert [article.is_visible() for article in page.locator("#examples article").all()] == [True] * 2 * 9
        assert page.evaluate(FITS)
        links = page.evaluate("[...document.querySelectorAll('#examples a')].map((link) => link.href)")
        assert len(links) == 2
        for link in links:
            page = open_page(browser, errors, link, phone=phone, dark=dark)
            assert BASELINE_NAME in page.title()
            sync_api.expect(page.locator("#status")).to_have_text("6 of 30 shown")
            assert page.evaluate(FITS)
