"""Measures of text by hand, ROUGE against a second implementation, and what appendix B shows."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from meetlm.data.example import Prompt, Turn
from meetlm.evaluation import measures
from meetlm.evaluation.measures import (
    MEASURES,
    ROUGES,
    coverage_and_density,
    fragments,
    names_absent,
    num_words,
    numbers_absent,
    text_measures,
)

EXAMPLES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "appendix_b.json").read_text(encoding="utf-8"))
"""Summaries from the paper's appendix B.1; each names its figure."""
OUTPUTS = [(example, name) for example in EXAMPLES for name in example["outputs"]]


# ROUGE


def rouge(completions: list[str], chosen: list[str | None], *, stemmer: bool = False) -> dict[str, list[float | None]]:
    columns = text_measures([Prompt("p")] * len(completions), completions, chosen, stemmer=stemmer)
    return {name: columns[name] for name in ROUGES}


def f1(same: int, ours: int, theirs: int) -> float:
    return 2 * same / (ours + theirs) if same else 0.0  # of precision same / ours and recall same / theirs


def rouge_n(ours: list[str], theirs: list[str], n: int) -> float:
    def grams(tokens: list[str]) -> Counter[tuple[str, ...]]:
        return Counter(tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1))

    first, other = grams(ours), grams(theirs)
    return f1((first & other).total(), first.total(), other.total())


def rouge_l(ours: list[str], theirs: list[str]) -> float:
    """The longest common subsequence by its recursion, from the end."""

    @cache
    def common(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return 0
        if ours[i - 1] == theirs[j - 1]:
            return common(i - 1, j - 1) + 1
        return max(common(i - 1, j), common(i, j - 1))

    return f1(common(len(ours), len(theirs)), len(ours), len(theirs))


@pytest.mark.parametrize(
    ("example", "name"), OUTPUTS, ids=[f"{example['source'][-8:]} {name}" for example, name in OUTPUTS]
)
def test_rouge_of_appendix_b_by_a_second_implementation(example: dict[str, Any], name: str) -> None:
    output, chosen = example["outputs"][name], example["chosen"]
    scores = {kind: column[0] for kind, column in rouge([output], [chosen]).items()}
    ours, theirs = (re.findall("[a-z0-9]+", text.lower()) for text in (output, chosen))
    expected = [rouge_n(ours, theirs, 1), rouge_n(ours, theirs, 2), rouge_l(ours, theirs)]
    assert list(scores) == list(ROUGES)
    assert list(scores.values()) == pytest.approx([*expected, sum(expected) / 3])
    assert scores["rouge-1"]


def test_rouge_by_hand() -> None:
    """Chosen: the cat sat on the mat. Five of our six words match, one pair fewer; in order: the cat on the mat."""
    scores = rouge(["the cat lay on the mat"], ["The cat sat on the mat."])
    assert [column[0] for column in scores.values()] == pytest.approx(
        [5 / 6, 3 / 5, 5 / 6, (5 / 6 + 3 / 5 + 5 / 6) / 3]
    )


def test_rouge_distinguishes_the_papers_systems() -> None:
    """Table 1's order of ROUGE-L on Figure 6, where MEET (LoRA) is close to the reference: LoRA > CoH > DPO."""
    example = EXAMPLES[1]
    names = ["MEET (LoRA)", "CoH", "DPO with temperature 0"]
    lora, coh, dpo = rouge([example["outputs"][name] for name in names], [example["chosen"]] * 3)["rouge-l"]
    assert lora and coh and dpo and lora > coh > dpo


def test_the_stemmer_is_settable() -> None:
    assert rouge(["she keeps pillows"], ["keep pillow"])["rouge-1"] == [0.0]
    assert rouge(["she keeps pillows"], ["keep pillow"], stemmer=True)["rouge-1"] == pytest.approx([0.8])


def test_where_rouge_is_not_defined() -> None:
    scores = rouge(["", "words", "words", "words"], ["words", None, "", "…"])
    assert all(column == [0.0, None, None, None] for column in scores.values())


# Lengths


def test_lengths() -> None:
    scores = text_measures(
        [Prompt("p")] * 4, [" Two words. ", "", "one", " \n"], ["four words are here", "x", None, " "]
    )
    assert list(scores) == list(MEASURES)
    assert scores["words"] == [2, 0, 1, 0]
    assert scores["characters"] == [10, 0, 3, 0]
    assert scores["length-ratio"] == [0.5, 0.0, None, None]
    assert {len(column) for column in scores.values()} == {4}


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError):
        text_measures([Prompt("p")], ["a", "b"], ["c", "d"])


@pytest.mark.parametrize(
    ("chosen", "wrong", "right"),
    [
        ("我喜欢吃苹果。", "他明天去北京。", "我喜欢吃苹果。"),
        ("私はりんごが好きです。", "明日は雨が降ります。", "私はりんごが好きです。"),
        ("Ich möchte später Äpfel", "Ich könnte früher über", "Ich möchte später Äpfel"),
        ("मुझे सेब पसंद है", "वह कल जाएगा", "मुझे सेब पसंद है"),
        ("ฉันชอบกินแอปเปิล", "พรุ่งนี้ฝนจะตก", "ฉันชอบกินแอปเปิล"),
        ("cafe\u0301 cre\u0300me", "caf creme", "café crème"),
    ],
)
def test_rouge_in_other_scripts(chosen: str, wrong: str, right: str) -> None:
    """A right reply gets 1, a wrong one little: neither digits alone nor fragments around accents decide."""
    columns = rouge([right, wrong], [chosen] * 2)
    assert columns["rouge-avg"][0] == 1
    assert all(column[1] is not None and column[1] <= 0.5 for column in columns.values())


def test_a_wrong_chinese_reply_that_shares_a_number_gets_little() -> None:
    assert (rouge(["明天下雨 2024"], ["我喜欢吃苹果 2024"])["rouge-l"][0] or 0) < 0.3


def test_lengths_in_scripts_without_spaces() -> None:
    columns = text_measures(
        [Prompt("我喜欢苹果")] * 3, ["我喜欢苹果。", "I like 苹果 a lot.", "cafe\u0301"], ["我喜欢", None, None]
    )
    assert columns["words"] == [5, 6, 1]
    assert columns["characters"] == [6, 16, 4]
    assert columns["length-ratio"][0] == pytest.approx(5 / 3)
    assert columns["coverage"][0] == 1 and columns["density"][0] == 5
    assert columns["names-absent"] == [None, 0, 0]


@pytest.mark.parametrize("stemmer", [False, True])
def test_words_of_english_are_those_of_rouge_score(stemmer: bool) -> None:
    from rouge_score.tokenizers import DefaultTokenizer

    texts = [text for example in EXAMPLES for text in (example["chosen"], *example["outputs"].values())]
    texts += ["It's 40,000 “quoted” — snake_case, e.g. U.S.A.", "don’t stop…"]
    theirs, ours = DefaultTokenizer(stemmer), measures._Tokenizer(stemmer)
    assert [ours.tokenize(text) for text in texts] == [theirs.tokenize(text) for text in texts]


# Copying


def split(text: str) -> list[str]:
    return text.split()


def test_fragments_by_hand() -> None:
    article = split("the quick brown fox jumps over the lazy dog")
    assert fragments(article, split("the lazy fox jumps high")) == [2, 2]  # the lazy | fox jumps | -
    assert fragments(article, article) == [9]
    assert fragments(article, split("a cat")) == fragments([], ["a"]) == fragments(article, []) == []
    assert fragments(article, split("the the the")) == [1, 1, 1]
    # Of two places the longer match: "over the" would end after two.
    assert fragments(split("over the hill and over the lazy dog"), split("over the lazy cat")) == [3]
    # The published procedure continues after a match, so here it misses the longest one.
    assert fragments(split("a a a b"), split("a a b")) == [2, 1]


def test_coverage_and_density_by_hand() -> None:
    prompt = Prompt("The quick brown fox jumps over the lazy dog.")
    texts = ["The lazy fox jumps high", prompt.text().upper(), "", "Cats?"]
    coverage, density = zip(*(coverage_and_density(prompt, text) for text in texts), strict=True)
    assert coverage == (pytest.approx(4 / 5), 1.0, None, 0.0)
    assert density == (pytest.approx((4 + 4) / 5), 9.0, None, 0.0)


def test_messages_are_read() -> None:
    messages = Prompt((Turn("user", "Who is Ada?"), Turn("assistant", "A poet of 1815.")))
    assert coverage_and_density(messages, "a poet") == (1.0, 2.0)
    assert names_absent(messages, "it was Ada or Grace") == ["Grace"]
    assert numbers_absent(messages, "in 1815 or 1906") == ["1906"]


def test_dpo_copies_in_figure_5() -> None:
    """Section 4.7: most of the content is copied from the post."""
    example = EXAMPLES[0]
    names = ["DPO with temperature 0", "MEET (LoRA)"]
    coverage, density = zip(
        *(coverage_and_density(Prompt(example["post"]), example["outputs"][name]) for name in names), strict=True
    )
    assert coverage[0] and density[0] and density[1]
    assert coverage[0] > 0.8 and density[0] > 3 * density[1]


# Making up


def test_numbers_by_hand() -> None:
    def absent(completion: str) -> list[str]:
        return numbers_absent(Prompt("It cost $1,250.50, or 40k, on the 3rd at 10:30."), completion)

    assert absent("1250.5 and 40 and 3.0 and 10 and 030") == []
    assert absent("41, 1,250 and 41 again; 7.25%") == ["41", "1250", "7.25"]
    assert absent("1,2,3 or 5") == ["1", "2", "5"]
    assert absent("1. Boil 2 cups.\n2. Add salt.\n  3) Serve in 2019.\n4.5 is a number") == ["2", "2019", "4.5"]
    assert absent("seven") == []


def test_names_by_hand() -> None:
    def absent(completion: str) -> list[str]:
        return names_absent(Prompt("My boss bob told us about ALICE's trip to Peru."), completion)

    assert absent("Then Bob met Alice in Peru's capital.") == []
    assert absent("Then Carol met Dave, and Carol's friend Erin-Mae left.") == ["Carol", "Dave", "Erin", "Mae"]
    assert absent("Yes. No! Why? So: Now; Well…\nNew \"Quote. Here\" (Also) “Good. Fine” - he said 'Hello'") == ["Also"]
    assert absent("I think I'm fine and I’ve seen I'd") == []
    assert absent("1. Boil it\n* Stir\n- Serve with Tabasco") == ["Tabasco"]
    assert absent("in the USA, Émile and Жанна") == ["USA", "Émile", "Жанна"]
    assert absent("Carol came.") == []  # at a sentence's start: not seen


def test_invented_facts_in_appendix_b() -> None:
    """Figure 7, DPO with temperature 1: no Hyundai Azera of 2012 stands in the post."""
    post, outputs = Prompt(EXAMPLES[2]["post"]), EXAMPLES[2]["outputs"]
    made_up = outputs["DPO with temperature 1"]
    assert names_absent(post, made_up) == ["Hyundai", "Azera"]
    assert numbers_absent(post, made_up) == ["40000", "2012"]  # the post has 40k
    assert names_absent(post, outputs["DPO with temperature 0"]) == []
    scores = text_measures([post] * 2, [made_up, outputs["MEET (LoRA)"]], [EXAMPLES[2]["chosen"]] * 2)
    assert scores["names-absent"] == [2.0, 0.0]
    assert scores["numbers-absent"] == [2.0, 0.0]


def test_a_long_text_takes_no_time() -> None:
    text = "Lorem Ipsum, 12 " * 20_000
    start = time.perf_counter()
    assert names_absent(Prompt(""), text) == ["Ipsum", "Lorem"]
    assert num_words(text) == 60_000
    assert time.perf_counter() - start < 5
