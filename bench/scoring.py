"""Scoring with a reward model: ours beside transformers' pipeline at batch 8 in file order, on the same 800 rows.

400 HH pairs, both replies, as one text each; the model is SmolLM2 with a head of random weights, the same for both.
``python bench/scoring.py`` times both in turns without the driver, and refuses a busy machine as the driver does.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from gate import Gate, own_memory
from quiet import others_now, refuse
from rows import Rows, Scale
from transformers import AutoModelForSequenceClassification, PreTrainedModel, pipeline

from meetlm.evaluation.reward import RewardModel, RewardSettings

PAIRS = 400
BATCH = 8
"""Rows that the pipeline scores at once."""
TOLERANCE = 1e-4
"""Largest difference of two scores of one row that still counts as the same work."""

Scores = list[float]
Program = Callable[[], Scores]


def texts(rows: Rows, pairs: int) -> tuple[list[str], list[str]]:
    """Return prompts and completions of the first pairs, chosen and rejected side by side, in the order of the file."""
    taken = rows.examples[:pairs]
    both = [(example.prompt, reply) for example in taken for reply in (example.chosen, example.rejected)]
    return [str(prompt) for prompt, _ in both], [str(reply) for _, reply in both]


def classifier(rows: Rows) -> PreTrainedModel:
    """Return the reward model, f32; its head is the same at every call."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(rows.folder, num_labels=1, dtype=torch.float32)
    own_memory([model])
    return model.eval()


def ours(rows: Rows, pairs: int) -> Program:
    """Return what scores all rows with meetlm."""
    settings = RewardSettings(model=rows.folder, input="text", device="cpu")
    scorer = RewardModel(classifier(rows), rows.tokenizer, settings)
    prompts, completions = texts(rows, pairs)

    def score() -> Scores:
        found = scorer.score(prompts, completions)
        return [one for one in found if one is not None]

    return score


def peer(rows: Rows, pairs: int) -> Program:
    """Return what scores all rows with transformers' pipeline."""
    judge = pipeline(
        "text-classification",
        model=classifier(rows),
        tokenizer=rows.tokenizer,
        function_to_apply="none",
        batch_size=BATCH,
        device="cpu",
    )
    prompts, completions = texts(rows, pairs)
    joined = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    return lambda: [one["score"] for one in judge(joined)]


PROGRAMS = {"ours": ours, "transformers": peer}


def serve(program: str, rows: Rows, gate: Gate, pairs: int = PAIRS) -> None:
    """Score all rows, again and again, when the driver says so."""
    score, tokens = PROGRAMS[program](rows, pairs), num_tokens(rows, pairs)
    gate.ready("step", settings={"batch_size": BATCH, "rows": 2 * pairs})
    while True:
        scores = score()
        gate.done(tokens=tokens, scores=scores)


def num_tokens(rows: Rows, pairs: int) -> int:
    """Return the tokens of all rows, no padding."""
    prompts, completions = texts(rows, pairs)
    joined = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    return sum(map(len, rows.tokenizer(joined)["input_ids"]))


def main() -> None:
    """Time both in turns, the first round as warm-up, and print medians, ratio and the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--rounds", type=int, default=3, choices=range(2, 20), help="the first is warm-up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--force", action="store_true", help="time on a busy machine")
    chosen = parser.parse_args()
    if not chosen.force:
        refuse(*others_now())
    torch.set_num_threads(chosen.threads)
    rows = Rows(Scale(steps=1))
    programs = {name: make(rows, chosen.pairs) for name, make in PROGRAMS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    scores: dict[str, Scores] = {}
    for number in range(chosen.rounds):
        for name in programs if number % 2 == 0 else reversed(programs):
            started = perf_counter()
            scores[name] = programs[name]()
            seconds[name].append(perf_counter() - started)
            print(f"{number} {name}: {seconds[name][-1]:.1f} s", flush=True)
    print(json.dumps(summary(seconds, scores, num_tokens(rows, chosen.pairs))))


def summary(seconds: dict[str, list[float]], scores: dict[str, Scores], tokens: int) -> dict[str, Any]:
    """Return medians without the warm-up, the ratio, and the largest difference of a score."""
    medians = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
    gap = max(abs(one - other) for one, other in zip(scores["ours"], scores["transformers"], strict=True))
    rates = {name: tokens / taken for name, taken in medians.items()}
    return {
        "seconds": medians,
        "tokens_per_second": rates,
        "ratio": medians["transformers"] / medians["ours"],
        "largest_difference": gap,
        "same_work": gap <= TOLERANCE,
    }


if __name__ == "__main__":
    main()
