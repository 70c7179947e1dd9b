"""The demo's replies: they agree with the data card, and the scorers distinguish them."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import resources
from itertools import combinations
from typing import Any

import pytest

from meetlm.demo.scorers import ATTRIBUTES, BRIEF_WORDS, count_markers, formality, score_length, score_tone

SPLITS = {"train": 145, "validation": 20, "test": 40}
WORDS = {"brief": range(8, 19), "detailed": range(35, 61)}
ORDER = [{"tone": tone, "length": length} for tone in ATTRIBUTES["tone"] for length in ATTRIBUTES["length"]]


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, Any]]]:
    folder = resources.files("meetlm.demo") / "data"
    lines = {split: (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines() for split in SPLITS}
    return {split: [json.loads(line) for line in lines[split]] for split in SPLITS}


@pytest.fixture(scope="module")
def prompts(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    return [row["prompt"][0]["content"] for split in SPLITS for row in rows[split]]


@pytest.fixture(scope="module")
def replies(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    return [reply for split in SPLITS for row in rows[split] for reply in row["completions"]]


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def similarity(texts: list[str], n: int) -> list[tuple[float, str, str]]:
    """The shared word n-grams of the most similar texts, as a share of the shorter text's n-grams."""
    grams = [{tuple(ws[i : i + n]) for i in range(len(ws) - n + 1)} for ws in map(words, texts)]
    pairs = combinations(range(len(texts)), 2)
    shares = ((len(grams[i] & grams[j]) / min(len(grams[i]), len(grams[j])), texts[i], texts[j]) for i, j in pairs)
    return sorted(shares, reverse=True)[:5]


def test_rows(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert {split: len(rows[split]) for split in SPLITS} == SPLITS
    for row in (row for split in SPLITS for row in rows[split]):
        assert row.keys() == {"topic", "prompt", "completions", "attributes"}
        (message,) = row["prompt"]
        assert message.keys() == {"role", "content"} and message["role"] == "user"
        assert row["attributes"] == ORDER
        for reply, attributes in zip(row["completions"], row["attributes"], strict=True):
            assert len(reply.split()) in WORDS[attributes["length"]], reply
        for text in (message["content"], *row["completions"]):
            assert text == " ".join(text.split())
            assert text[0].isupper() or text[0] in "\"'", text
            assert text.endswith((".", "!", "?", '."', '!"', '?"', "!)", "?)")), text


def test_splits_have_other_topics(rows: dict[str, list[dict[str, Any]]]) -> None:
    topics = [{row["topic"] for row in rows[split]} for split in SPLITS]
    assert [len(names) for names in topics] == [29, 4, 8]
    assert len(set().union(*topics)) == 41
    assert {count for split in SPLITS for count in Counter(row["topic"] for row in rows[split]).values()} == {5}


def test_no_near_duplicates(prompts: list[str], replies: list[str]) -> None:
    assert similarity(replies, 3)[0][0] < 0.5
    assert similarity(prompts, 3)[0][0] < 0.5


def test_openings_vary(replies: list[str]) -> None:
    openings = Counter(" ".join(words(reply)[:2]) for reply in replies)
    assert openings.most_common(1)[0][1] <= 0.02 * len(replies)
    assert len(openings) >= 0.75 * len(replies)


def test_phrases_do_not_repeat(replies: list[str]) -> None:
    """No four words in a row are in more than 0.5 percent of the replies."""
    phrases = Counter(
        gram for reply in replies for gram in set(zip(*(words(reply)[i:] for i in range(4)), strict=False))
    )
    assert phrases.most_common(1)[0][1] <= 0.005 * len(replies)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_scorers_agree_with_the_authors(rows: dict[str, list[dict[str, Any]]], split: str) -> None:
    written = [pair for row in rows[split] for pair in zip(row["completions"], row["attributes"], strict=True)]
    assert all(score_length(reply) == attributes["length"] for reply, attributes in written)
    assert sum(score_tone(reply) == attributes["tone"] for reply, attributes in written) >= 0.97 * len(written)


@pytest.mark.parametrize(
    ("reply", "tone"),
    [
        ("I would be delighted to attend.", "formal"),
        ("Wouldn't miss it!", "casual"),
        ("I\u2019m in.", "casual"),
        ("The door is made of oak.", "formal"),
        ("The cat's bowl stands there.", "formal"),  # a genitive is no contraction
        ("It's at nine o'clock.", "casual"),
        ("Come at nine o'clock.", "formal"),
        ("", "formal"),
        ("Yeah, please do not ask.", "formal"),  # one marker against two
    ],
)
def test_tone(reply: str, tone: str) -> None:
    assert score_tone(reply) == tone


def test_length() -> None:
    assert score_length("so " * BRIEF_WORDS) == "brief"
    assert score_length("so " * (BRIEF_WORDS + 1)) == "detailed"
    assert score_length("") == "brief"


def test_formality() -> None:
    text = "I would be delighted to attend."
    counts = count_markers(text)
    assert counts["formal"] > 0 and counts["casual"] == 0
    assert formality(None, text) == pytest.approx(10 * counts["formal"] / 6)
    assert formality(None, "Wouldn't miss it!") == pytest.approx(-10 * 2 / 3)
    assert formality(None, "") is None
