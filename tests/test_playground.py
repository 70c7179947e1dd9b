"""The playground in a real browser, and the routes that it uses."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

import meetlm
from meetlm.config.errors import ConfigError
from meetlm.data.settings import DataSettings
from meetlm.data.sources import read_examples
from meetlm.run.aligned import Aligned
from run_folders import config_for, finished
from server import serving
from tiny import CHATML

CHROMIUM = shutil.which("chromium")
FITS = "document.documentElement.scrollWidth <= innerWidth"


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Aligned:
    folder = tmp_path_factory.mktemp("chat")
    return meetlm.load(
        meetlm.train(config_for(folder, "qwen2", "lora", chat=True, template=CHATML), out=folder / "run")
    )


@pytest.fixture
def feedback(tmp_path: Path) -> Path:
    return tmp_path / "feedback.jsonl"


@pytest.fixture
def address(aligned: Aligned, feedback: Path) -> Iterator[str]:
    with serving(aligned, feedback, scorers=("words",)) as address:
        yield address


def test_scores_are_those_of_the_run(aligned: Aligned, address: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "completion": "It is good."}
    (score,) = httpx2.post(f"{address}/v1/score", json=body).json()["scores"]
    (expected,) = aligned.score(["Hi"], ["It is good."])
    assert (score["attribute"], score["worst"], score["best"]) == ("", "bad", "good")
    assert (score["total"], score["per_token"]) == pytest.approx((expected.total, expected.per_token), abs=1e-5)
    response = httpx2.post(f"{address}/v1/score", json={**body, "completion": "rice " * 2000})
    assert response.status_code == 400 and "positions" in response.json()["error"]["message"]


def test_scores_by_scorers(aligned: Aligned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that fails, or has no score, does not fail the request."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    functions = [
        'def number(prompt, completion):\n    """Number at the start."""\n    return int(completion.split()[0])\n',
        "def nothing(prompt, completion):\n    return None\nnothing.higher = False\n",
    ]
    (tmp_path / "scorers_of_a_user.py").write_text("\n".join(functions))
    names = ("words", "scorers_of_a_user:number", "scorers_of_a_user:nothing")
    with serving(aligned, scorers=names) as address:
        scorers = httpx2.get(f"{address}/v1/levels").json()["scorers"]
        assert [scorer["name"] for scorer in scorers] == list(names)
        assert [scorer["higher_is_better"] for scorer in scorers] == [True, True, False]
        assert scorers[1]["description"] == "Number at the start"
        body = {"messages": [{"role": "user", "content": "Hi"}], "completion": "7 is good."}
        response = httpx2.post(f"{address}/v1/score", json=body).json()
        assert len(response["scores"]) == 1
        assert [score["value"] for score in response["scorers"]] == [3, 7, None]
        assert [score["problem"] for score in response["scorers"]] == [None, None, "returned None"]
        response = httpx2.post(f"{address}/v1/score", json={**body, "completion": "Good."}).json()
        assert [score["value"] for score in response["scorers"]] == [1, None, None]
        assert "ValueError: invalid literal" in response["scorers"][1]["problem"]
    with pytest.raises(ConfigError, match="no function 'last'"), serving(aligned, scorers=("scorers_of_a_user:last",)):
        pass


def test_feedback_is_training_data(address: str, feedback: Path, tmp_path: Path) -> None:
    reply = "H\u2028o"  # with a line break that is no end of a line of the file
    body = {"messages": [{"role": "user", "content": "Hi"}], "completion": reply, "model": "tiny:good"}
    ids = [httpx2.post(f"{address}/v1/feedback", json={**body, "label": label}).json()["id"] for label in (True, False)]
    examples = read_examples(DataSettings(source="feedback", path=str(feedback)), "train").rows
    assert [(e.prompt.text(), e.replies[0].content) for e in examples] == [("Hi", reply)] * 2
    assert httpx2.delete(f"{address}/v1/feedback/{ids[0]}").status_code == 200
    assert httpx2.delete(f"{address}/v1/feedback/{ids[0]}").status_code == 404
    (row,) = map(json.loads, feedback.read_bytes().splitlines())
    assert (row["prompt"], row["label"]) == (body["messages"], False)


def test_levels_and_pages(address: str, tmp_path: Path) -> None:
    levels = httpx2.get(f"{address}/v1/levels").json()
    assert levels["attributes"] == [{"name": "", "levels": ["bad", "good"], "is_ordered": True}]
    assert (levels["default"], levels["takes_mixes"]) == ("good", True)
    page = httpx2.get(f"{address}/")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"] and "http" not in page.text
    for file in ("playground.js", "playground.css"):
        assert file in page.text and httpx2.get(f"{address}/{file}").status_code == 200
    with serving(meetlm.load(finished(tmp_path, "llama", "text"))) as url:
        assert httpx2.get(f"{url}/v1/levels").json()["takes_mixes"] is False


@pytest.mark.integration
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on the PATH (apt-get install chromium)")
@pytest.mark.parametrize("phone", [False, True])
def test_the_page(aligned: Aligned, address: str, feedback: Path, phone: bool) -> None:
    """Replies equal those of the run; thumbs are saved and undone; the code is that of the settings."""
    sync_api = pytest.importorskip("playwright.sync_api")
    errors: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 900}
        page = browser.new_page(viewport=size, is_mobile=phone, color_scheme="dark" if phone else "light")
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(address)
        columns = page.locator("article")
        sync_api.expect(columns).to_have_count(2)
        assert columns.locator("h2").all_inner_texts() == ["bad", "good"]
        page.click("#add")
        columns.nth(2).locator(".place").fill("1.3")
        page.fill("#prompt", "Hi <b>there</b>")
        page.locator("#options summary").click()
        page.fill("#max-tokens", "12")
        page.keyboard.press("Control+Enter")
        sync_api.expect(page.locator("#status")).to_have_text("All replies are finished")
        replies = [column.locator(".text").inner_text() for column in columns.all()]
        expected = [aligned.generate(["Hi <b>there</b>"], level, max_new_tokens=12)[0] for level in (0, 1, 1.3)]
        assert [" ".join(reply.split()) for reply in replies] == [" ".join(text.split()) for text in expected]
        scores = [text.split() for text in columns.locator(".scores").all_inner_texts()]
        assert [text[:3] for text in scores] == [["bad", "–", "good"]] * 3
        assert [text[-2:] for text in scores] == [["words", str(len(text.split()))] for text in expected]
        assert page.evaluate(FITS) and page.locator("article b").count() == 0

        rated = columns.nth(2)
        rated.locator(".up").click()
        sync_api.expect(rated.locator(".up")).to_have_attribute("aria-pressed", "true")
        (row,) = map(json.loads, feedback.read_text().splitlines())
        assert (row["completion"][0]["content"], row["label"]) == (expected[2], True)
        rated.locator(".down").click()
        sync_api.expect(rated.locator(".down")).to_have_attribute("aria-pressed", "true")
        assert [json.loads(line)["label"] for line in feedback.read_text().splitlines()] == [False]
        rated.locator(".undo").click()
        sync_api.expect(rated.locator(".undo")).to_be_hidden()
        assert feedback.read_text() == ""

        rated.locator(".code summary").click()
        body = json.loads(rated.locator(".curl").inner_text().split("-d '")[1].removesuffix("'"))
        assert body["level"] == {"bad": -0.3, "good": 1.3}
        response = httpx2.post(f"{address}/v1/chat/completions", json=body).json()
        assert response["choices"][0]["message"]["content"] == expected[2]
        assert 'extra_body={"level":{"bad":-0.3,"good":1.3}}' in rated.locator(".python").inner_text()
        columns.nth(0).locator(".remove").click()
        sync_api.expect(columns).to_have_count(2)
        unlabelled = "[...document.querySelectorAll('input, textarea')].filter((e) => !e.labels.length && !e.ariaLabel)"
        assert page.evaluate(f"{unlabelled}.length") == 0
        assert page.evaluate(FITS)
        browser.close()
    assert errors == []
