"""An evaluation as one on dialogues would be, made up from a seed: data for the tests of reports, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from meetlm.evaluation.record import (
    Agreement,
    Comparison,
    Consistency,
    Evaluation,
    Interval,
    JudgeAccount,
    Measure,
    Outcome,
    Problem,
    PromptRow,
    Rates,
    System,
    Usage,
)

BASELINE = "hh-coh"
# Mean quality, mean words.
SYSTEMS = {BASELINE: (0.0, 42), "hh-meet-lora": (0.55, 44), "hh-meet-soft-prompt": (0.1, 41), "hh-dpo": (0.1, 74)}
TOPICS = {
    "make clam chowder": "onion clams potato cream butter bacon stock simmer salt pepper bowl thyme",
    "fix a bicycle chain": "chain link wheel gear grease tool pedal brake frame bolt loosen rear",
    "sleep better at night": "bed evening light screen coffee habit early quiet room tired hour calm",
    "ask for a raise at work": "boss salary work year prepare meeting goal number calm reason company talk",
    "teach a dog to sit": "dog treat hand slowly repeat reward patient floor short word leash praise",
}
SMALL = [
    "the",
    "a",
    "to",
    "and",
    "you",
    "your",
    "it",
    "is",
    "can",
    "then",
    "with",
    "for",
    "until",
    "make",
    "sure",
    "that",
    "of",
    "in",
    "them",
    "some",
    "if",
    "well",
]
Array = NDArray[np.float64]


def made_evaluation(num_prompts: int = 120, seeds: tuple[int, ...] = (0, 1), *, temperature: float = 0.7) -> Evaluation:
    rng = np.random.default_rng([5, round(100 * temperature)])
    topics = list(TOPICS)
    about = [topics[int(n)] for n in rng.integers(len(topics), size=num_prompts)]
    prompts = [_prompt(rng, number, topic) for number, topic in enumerate(about)]
    cells = [(prompt, seed) for prompt in range(num_prompts) for seed in seeds]
    owner = np.array([prompt for prompt, _ in cells])
    hard = rng.normal(size=num_prompts)[owner]
    completions, words, reward, rouge = {}, {}, {}, {}
    for name, (quality, length) in SYSTEMS.items():
        counts = np.maximum(3, rng.normal(length, 16, size=len(cells))).astype(int)
        completions[name] = [_text(rng, about[prompt], int(n)) for (prompt, _), n in zip(cells, counts, strict=True)]
        words[name] = np.array([len(text.split()) for text in completions[name]], dtype=float)
        reward[name] = quality + hard + 0.014 * (words[name] - 42) + rng.normal(0, 1.1, size=len(cells))
        rouge[name] = np.clip(
            0.2 + 0.02 * quality - 0.0012 * np.abs(words[name] - 40) + rng.normal(0, 0.06, len(cells)), 0, 1
        )
    reward["hh-dpo"][3] = np.nan
    completions["hh-meet-lora"][5] = ""

    def measure(name: str, description: str, higher: bool | None, values: dict[str, Array]) -> Measure:
        means = {system: _interval(_share_of(column), column, owner) for system, column in values.items()}
        lists = {s: [None if np.isnan(v) else float(v) for v in column] for s, column in values.items()}
        return Measure(name, description, higher, lists, means)

    verdicts = {
        name: np.round(2 * np.tanh(0.5 * (reward[name] - reward[BASELINE]) + rng.normal(0, 1.0, len(cells)))) / 2
        for name in SYSTEMS
    }
    verdicts["hh-meet-lora"][7] = np.nan
    judged = owner < 0.8 * num_prompts  # the judge sees some of the prompts
    margins: dict[str, Callable[[str], Array]] = {
        "reward": lambda name: reward[name] - reward[BASELINE],
        "judge": lambda name: verdicts[name],
        "rouge-l": lambda name: rouge[name] - rouge[BASELINE],
    }
    bands = {"reward": 0.2007, "judge": 0.25, "rouge-l": 0.0}
    comparisons = [
        compare(
            name,
            evaluator,
            of(name),
            bands[evaluator],
            owner,
            words[name] - words[BASELINE],
            judged if evaluator == "judge" else judged | True,
        )
        for evaluator, of in margins.items()
        for name in SYSTEMS
        if name != BASELINE
    ]
    stated: dict[str, Any] = {"max_new_tokens": 128, "temperature": temperature, "top_p": 0.95, "stop": []}
    return Evaluation(
        settings={
            "data": "hh-rlhf/helpful-base",
            "preset": "paper",
            "limit_judge": 128,
            "tie_band": [0.45, 0.55],
            "reward": {"name": "OpenAssistant/reward-model-deberta-v3-large-v2", "batch_size": 16},
            "bootstrap": {"resamples": 2000, "seed": 0},
            "versions": {"meetlm": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        },
        baseline=BASELINE,
        systems=[
            System(
                name,
                [f"runs/{name}/completions/good-t{temperature:g}-p0.95-n128-seed{seed}.jsonl" for seed in seeds],
                None if name == "hh-dpo" else f"runs/{name}",
                None if name == "hh-dpo" else "good",
                None if name == "hh-dpo" else stated,
            )
            for name in SYSTEMS
        ],
        prompts=prompts,
        cells=cells,
        completions=completions,
        measures=[
            measure("reward", "the reward model's score of prompt and completion, a logit", True, reward),
            measure("rouge-l", "ROUGE-L F1 against the preferred reply", True, rouge),
            measure("rouge-avg", "mean of ROUGE-1, 2 and L F1", True, {n: 0.93 * v for n, v in rouge.items()}),
            measure("words", "words of a completion", None, words),
            measure("new-numbers", "numbers the prompt has not", False, {n: v // 40 for n, v in words.items()}),
        ],
        comparisons=comparisons,
        agreements=[
            Agreement(name, ("reward", "judge"), Interval(0.31, 0.22, 0.4), 0.563, len(cells) - 1)
            for name in SYSTEMS
            if name != BASELINE
        ]
        + [Agreement("hh-dpo", ("reward", "rouge-l"), None, 1.0, 12)],
        judge=JudgeAccount(
            model="qwen2.5-7b-instruct",
            base_url="http://127.0.0.1:8000/v1",
            prompt="dialogue",
            prompt_text="[system]\nCompare two replies to {question}.\n\n<reply A>\n{a}\n</reply A>",
            num_calls=2 * 3 * int(judged.sum()),
            num_cached=400,
            num_unparsable=1,
            num_failed=0,
            consistency=Interval(0.712, 0.68, 0.745),
            chance=0.41,
            conclusive=True,
            this_run=Usage(176, 401_443, 20_037, 0.1137),
            kept=Usage(576, 1_204_331, 60_112, 0.3412),
            finish_reasons={"length": 1},
            by_system={
                name: Consistency(
                    num_calls=2 * int(judged.sum()),
                    num_unparsable=int(name == "hh-meet-lora"),
                    num_failed=0,
                    consistency=Interval(share, share - 0.06, share + 0.06),
                    chance=0.41,
                    conclusive=True,
                )
                for name, share in (("hh-meet-lora", 0.78), ("hh-meet-soft-prompt", 0.69), ("hh-dpo", 0.666))
            },
        ),
        problems=[
            Problem("hh-meet-lora: empty completions, compared like any other", 1, ["runs/hh-meet-lora/good.jsonl:6"]),
            Problem("reward is NaN for hh-dpo; left out of its rates", 1, [prompts[1].id]),
            Problem("judge: no verdict in one order", 1, [prompts[3].id]),
            Problem("hh-dpo: does not state stop, taken as those of the others", 1, ["hh-dpo.jsonl"], of_rows=False),
        ],
    )  # fmt: skip


def with_delta(evaluation: Evaluation, evaluator: str, system: str, delta: Interval, p: float = 0.001) -> Evaluation:
    changed = [
        replace(one, rates=replace(one.rates, delta=delta, sign_p=p))
        if (one.evaluator, one.system) == (evaluator, system)
        else one
        for one in evaluation.comparisons
    ]
    return replace(evaluation, comparisons=changed)


def doubted(evaluation: Evaluation) -> Evaluation:
    """The same with a judge from which nothing can be concluded."""
    assert evaluation.judge
    poor = replace(evaluation.judge, conclusive=False, consistency=Interval(0.35, 0.3, 0.4), chance=0.34)
    return replace(evaluation, judge=poor)


def compare(
    system: str,
    evaluator: str,
    margin: Array,
    band: float,
    owner: NDArray[np.int_],
    longer: Array,
    asked: NDArray[np.bool_],
) -> Comparison:
    margin = np.where(asked, margin, np.nan)
    known = ~np.isnan(margin)
    outcomes: list[Outcome | None] = [
        None if np.isnan(m) else "tie" if abs(m) <= band else "win" if m > 0 else "lose" for m in margin
    ]
    share = {kind: np.array([o == kind for o in outcomes], dtype=float)[known] for kind in ("win", "lose", "tie")}
    found = {kind: _interval(float(column.mean()), column, owner[known]) for kind, column in share.items()}
    delta = share["win"] - share["lose"]
    shift = float(np.polyfit(longer[known], delta, 1)[0] * longer[known].mean()) / 2
    win = found["win"].value + found["tie"].value / 2 - shift
    return Comparison(
        system,
        BASELINE,
        evaluator,
        outcomes,
        [float(m) if ok else None for m, ok in zip(margin, known, strict=True)],
        Rates(
            win=found["win"],
            lose=found["lose"],
            tie=found["tie"],
            delta=_interval(float(delta.mean()), delta, owner[known]),
            sign_p=_sign_p(delta, owner[known]),
            num_prompts=len(np.unique(owner[known])),
            num_cells=int(known.sum()),
            num_left_out=int((~known & asked).sum()),
        ),
        None if evaluator == "rouge-l" and system == "hh-dpo" else Interval(win, win - 0.07, win + 0.07),
        asked=None if asked.all() else asked.tolist(),
    )


def _interval(value: float, column: Array, owner: NDArray[np.int_]) -> Interval:
    """Return an interval of about the right width: normal, over prompts."""
    column, owner = column[~np.isnan(column)], owner[~np.isnan(column)]
    _, place, counts = np.unique(owner, return_inverse=True, return_counts=True)
    of_prompt = np.bincount(place, weights=column) / counts
    half = 1.96 * float(of_prompt.std()) / len(of_prompt) ** 0.5
    return Interval(value, value - half, value + half)


def _sign_p(delta: Array, owner: NDArray[np.int_]) -> float:
    sums = np.bincount(owner, weights=delta)
    won, lost = int((sums > 0).sum()), int((sums < 0).sum())
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def _share_of(column: Array) -> float:
    return float(np.nanmean(column))


def _prompt(rng: np.random.Generator, number: int, topic: str) -> PromptRow:
    asked = f"How do I {topic}? I have tried {int(rng.integers(2, 9))} times this week."
    prompt: str | list[dict[str, str]] = f"\n\nHuman: {asked}\n\nAssistant:"
    if number % 3 == 0:
        turns = (("user", f"I want to {topic}."), ("assistant", "Good, what is the difficulty?"), ("user", asked))
        prompt = [{"role": role, "content": content} for role, content in turns]
    name = hashlib.sha256(f"{number} {topic}".encode()).hexdigest()[:12]
    return PromptRow(name, prompt, _text(rng, topic, 40) if number % 10 else None)


def _text(rng: np.random.Generator, topic: str, num_words: int) -> str:
    pool = np.array(TOPICS[topic].split() + SMALL)
    words = [str(word) for word in rng.choice(pool, size=num_words)]
    for start in range(0, num_words, 11):
        words[start] = words[start].capitalize()
        words[min(start + 10, num_words - 1)] += "."
    return " ".join(words)
