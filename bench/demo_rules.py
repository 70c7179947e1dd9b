"""Which rule could score the demo's replies? Samples SmolLM2 on some of the demo's prompts and compares candidates.

    .venv/bin/python bench/demo_rules.py [PROMPTS]     (VADER's rows need: pip install vaderSentiment)

Columns, all within a prompt: `gap`, mean of the two best minus mean of the two worst of six replies, in standard
deviations of the score; `zero`, share of replies that score 0; `length`, correlation with the number of words;
`lasts`, correlation of the score of a reply's first half with that of its second half: what does not last cannot
be steered by what came before.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from importlib import resources

import numpy as np

from meetlm.demo.build import REPLIES, SAMPLING, sample, untouched_engine
from meetlm.demo.rule import first_person

Rule = Callable[[str], float]


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return re.findall(r"[a-z']+", text.lower())


def share(*wanted: str) -> Rule:
    """Return the rule that counts the share of the given words."""
    return lambda text: sum(word in wanted for word in words(text)) / max(1, len(words(text)))


def rules() -> dict[str, Rule]:
    """Return the candidates."""
    found: dict[str, Rule] = {
        "first person (I, my, me)": first_person,
        "second person (you, your)": share("you", "your", "yours"),
        "short words": lambda text: -float(np.mean([len(word) for word in words(text)] or [0])),
        "exclamation marks": lambda text: text.count("!") / max(1, len(words(text))),
    }
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        return found
    vader = SentimentIntensityAnalyzer()

    def tone(text: str) -> float:
        parts = [part for part in re.split(r"(?<=[.!?])\s+|\n+", text) if words(part)]
        return float(np.mean([vader.polarity_scores(part)["compound"] for part in parts])) if parts else 0.0

    return {**found, "VADER, mean over sentences": tone}


def main() -> None:
    """Sample, score, print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    lines = (resources.files("meetlm.demo") / "prompts.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in random.Random(1).sample(lines, count)]
    replies = sample(untouched_engine(), prompts, SAMPLING, replies=REPLIES, seed=1)
    print(f"{count} prompts, {REPLIES} replies of at most {SAMPLING.max_new_tokens} tokens")
    print(f"{'rule':30s} {'gap':>6s} {'zero':>6s} {'length':>7s} {'lasts':>6s}")
    for name, rule in rules().items():
        scores = np.array([[rule(text) for text in row] for row in replies])
        ranked = np.sort(scores, axis=1)
        gap = (ranked[:, -2:].mean() - ranked[:, :2].mean()) / scores.std()
        halves = [[halve(text) for text in row] for row in replies]
        first, second = (np.array([[rule(pair[side]) for pair in row] for row in halves]) for side in (0, 1))
        lengths = np.array([[len(words(text)) for text in row] for row in replies], dtype=float)
        long, lasts = within(scores, lengths), within(first, second)
        print(f"{name:30s} {gap:6.2f} {np.mean(scores == 0):6.2f} {long:7.2f} {lasts:6.2f}")


def halve(text: str) -> tuple[str, str]:
    """Return the two halves of a text, cut between words."""
    parts = text.split(" ")
    return " ".join(parts[: len(parts) // 2]), " ".join(parts[len(parts) // 2 :])


def within(left: np.ndarray, right: np.ndarray) -> float:
    """Return the correlation of two tables [prompts, replies] after each row's mean is taken out."""
    a, b = (table - table.mean(axis=1, keepdims=True) for table in (left, right))
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


if __name__ == "__main__":
    main()
