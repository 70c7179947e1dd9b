"""A synthetic evaluation on dialogues, drawn from a seed, for the tests of reports."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meetlm.data.settings import DataSettings
from meetlm.diagnostics.intervals import Interval
from meetlm.evaluation.controlled import controlled_win
from meetlm.evaluation.evaluate import PACKAGES
from meetlm.evaluation.measures import LENGTHS, MEASURES
from meetlm.evaluation.outcomes import PAPER_BAND, decide, largest_tie, margins
from meetlm.evaluation.record import (
    Comparison,
    Consistency,
    Evaluation,
    JudgeAccount,
    Measure,
    Problem,
    PromptRow,
    Replicate,
    System,
    Usage,
)
from meetlm.evaluation.settings import EvaluationSettings, JudgeSettings, RewardSettings
from meetlm.evaluation.statistics import Clusters, agreement, delta_by_replicate, difference, mean, rates
from meetlm.generation.sampling import Sampling

BASELINE = "hh-coh"
# Mean quality and mean number of words of each system.
SYSTEMS = {BASELINE: (0.0, 42), "hh-meet-lora": (0.55, 44), "hh-meet-soft-prompt": (0.1, 41), "hh-dpo": (0.1, 74)}
TOPICS = {
    "make clam chowder": "onion clams potato cream butter bacon stock simmer salt pepper bowl thyme",
    "fix a bicycle chain": "chain link wheel gear grease tool pedal brake frame bolt loosen rear",
    "sleep better at night": "bed evening light screen coffee habit early quiet room tired hour calm",
    "ask for a raise at work": "boss salary work year prepare meeting goal number calm reason company talk",
    "teach a dog to sit": "dog treat hand slowly repeat reward patient floor short word leash praise",
}
SMALL = "the a to and you your it is can then with for until make sure that of in them some if well"
RESAMPLES = 200
Array = NDArray[np.float64]


@cache
def made_evaluation(num_prompts: int = 120, seeds: tuple[int, ...] = (0, 1), *, temperature: float = 0.7) -> Evaluation:
    """Draw scores; compute outcomes, rates and intervals from them as `meet evaluate` does. Never change it."""
    rng = np.random.default_rng([5, round(100 * temperature)])
    topics = list(TOPICS)
    topic_of = [topics[int(n)] for n in rng.integers(len(topics), size=num_prompts)]
    prompts = [_prompt(rng, number, topic) for number, topic in enumerate(topic_of)]
    cells = [(prompt, seed) for prompt in range(num_prompts) for seed in seeds]
    owner = np.array([prompt for prompt, _ in cells])
    difficulty = rng.normal(size=num_prompts)[owner]
    completions: dict[str, list[str]] = {}
    scores: dict[str, dict[str, Array]] = {name: {} for name in ("reward", *MEASURES)}
    for name, (quality, length) in SYSTEMS.items():
        counts = np.maximum(3, rng.normal(length, 16, size=len(cells))).astype(int)
        completions[name] = [_text(rng, topic_of[prompt], int(n)) for (prompt, _), n in zip(cells, counts, strict=True)]
        num_words = np.array([len(text.split()) for text in completions[name]], dtype=float)
        scores["reward"][name] = quality + difficulty + 0.014 * (num_words - 42) + rng.normal(0, 1.1, size=len(cells))
        rouge = np.clip(0.2 + 0.02 * quality - 0.0012 * abs(num_words - 40) + rng.normal(0, 0.06, len(cells)), 0, 1)
        scores["rouge-l"][name], scores["rouge-1"][name], scores["rouge-2"][name] = rouge, 1.2 * rouge, 0.5 * rouge
        scores["rouge-avg"][name] = 0.9 * rouge
        scores["words"][name], scores["length-ratio"][name] = num_words, num_words / 40
        scores["characters"][name] = np.array([len(text) for text in completions[name]], dtype=float)
        scores["coverage"][name] = rng.beta(2, 3, size=len(cells))
        scores["density"][name] = 1 + rng.gamma(1.0, 1.0, size=len(cells))
        scores["numbers-absent"][name], scores["names-absent"][name] = num_words // 40, num_words // 60
    verdicts = {
        name: np.round(2 * np.tanh(0.5 * (reward - scores["reward"][BASELINE]) + rng.normal(0, 1.0, len(cells)))) / 2
        for name, reward in scores["reward"].items()
    }
    scores["reward"]["hh-dpo"][3] = np.nan
    completions["hh-meet-lora"][5] = ""
    verdicts["hh-meet-lora"][7] = np.nan
    judged = owner < 0.8 * num_prompts  # the judge sees some of the prompts
    columns = {
        measure: {name: [None if np.isnan(v) else float(v) for v in column] for name, column in by_system.items()}
        for measure, by_system in scores.items()
    }
    compared = [name for name in SYSTEMS if name != BASELINE]
    clusters = Clusters(owner.tolist(), resamples=RESAMPLES)

    def measure(name: str, description: str, higher: bool | None) -> Measure:
        values = columns[name]
        means = {system: mean(column, clusters) for system, column in values.items()}
        differences = {
            system: difference(values[system], values[BASELINE], clusters, ratio=name in LENGTHS) for system in compared
        }
        return Measure(
            name,
            description,
            higher,
            values,
            {system: interval for system, interval in means.items() if interval},
            {system: interval for system, interval in differences.items() if interval},
        )

    def compare(evaluator: str, name: str) -> Comparison:
        if evaluator == "judge":
            values = np.where(judged, verdicts[name], np.nan)
            clarity = [None if np.isnan(v) else float(v) for v in values]
        else:
            clarity = margins(columns[evaluator][name], columns[evaluator][BASELINE])
        outcomes = decide(clarity, largest_tie=largest_tie(PAPER_BAND) if evaluator == "reward" else 0)
        all_rates = rates(outcomes, clusters)
        assert all_rates
        lengths = (columns["characters"][system] for system in (name, BASELINE))
        controlled = controlled_win(outcomes, *lengths, clusters)
        assert not isinstance(controlled, str)
        replicates = delta_by_replicate(outcomes, [replicate for _, replicate in cells], clusters)
        asked = judged.tolist() if evaluator == "judge" else None
        return Comparison(name, BASELINE, evaluator, outcomes, clarity, all_rates, controlled, replicates, asked)

    comparisons = [compare(evaluator, name) for evaluator in ("rouge-avg", "reward", "judge") for name in compared]
    agreements = [
        agreement(a.outcomes, b.outcomes, clusters, system=name, evaluators=(a.evaluator, b.evaluator))
        for name in compared
        for a, b in combinations([c for c in comparisons if c.system == name], 2)
    ]
    reward = RewardSettings(model="OpenAssistant/reward-model-deberta-v3-large-v2", input="pair")
    endpoint = {"model": "qwen2.5-7b-instruct", "base_url": "http://127.0.0.1:8000/v1", "key_env": None}
    judge = JudgeSettings.model_validate({**endpoint, "prompt": "dialogue"})
    stated: dict[str, Any] = {"max_new_tokens": 128, "temperature": temperature, "top_p": 0.95, "stop": []}
    return Evaluation(
        settings={
            "protocol": {"level": "good", **Sampling(temperature=temperature, top_p=0.95).model_dump()},
            "common": False,
            "data": DataSettings(source="hh", path="Anthropic/hh-rlhf", subset="helpful-base").model_dump(mode="json"),
            "data_sha256": hashlib.sha256(b"data").hexdigest(),
            "evaluation": EvaluationSettings(resamples=RESAMPLES).model_dump(mode="json"),
            "reward": {
                **reward.model_dump(mode="json"),
                "reads": "pair",
                "precision": "float32 on cpu",
                "weights_sha256": hashlib.sha256(b"weights").hexdigest(),
            },
            "judge": judge.model_dump(mode="json"),
            "scorers": [],
            "versions": dict.fromkeys((*PACKAGES, "openai"), "1.0.0"),
            "git": "0123456789abcdef0123456789abcdef01234567",
            "date": "2026-11-27",
        },
        baseline=BASELINE,
        systems=[
            System(
                name,
                ["hh-dpo.jsonl"]
                if name == "hh-dpo"
                else [f"runs/{name}/completions/good-t{temperature:g}-p0.95-n128-seed{seed}.jsonl" for seed in seeds],
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
            *(measure(name, *description) for name, description in MEASURES.items()),
            measure("reward", f"reward of {reward.model} (reads pair: asked for)", True),
        ],
        comparisons=comparisons,
        agreements=list(filter(None, agreements)),
        judge=JudgeAccount(
            model=judge.model,
            base_url=judge.base_url,
            prompt=judge.prompt,
            prompt_text="[system]\nCompare two replies to {question}.\n\n<reply A>\n{a}\n</reply A>",
            overall=Consistency(
                num_calls=2 * 3 * int(judged.sum()),
                num_without_verdict=1,
                num_failed=0,
                consistency=Interval(0.712, 0.68, 0.745),
                chance=0.41,
            ),
            num_cached=400,
            this_run=Usage(176, 401_443, 20_037, 0.1137),
            stored=Usage(576, 1_204_331, 60_112, 0.3412),
            by_system={
                name: Consistency(
                    num_calls=2 * int(judged.sum()),
                    num_without_verdict=int(name == "hh-meet-lora"),
                    num_failed=0,
                    consistency=Interval(share, share - 0.06, share + 0.06),
                    chance=0.41,
                )
                for name, share in (("hh-meet-lora", 0.78), ("hh-meet-soft-prompt", 0.69), ("hh-dpo", 0.666))
            },
        ),
        problems=[
            Problem("hh-meet-lora: empty completions, compared like any other", ["runs/hh-meet-lora/good.jsonl:6"]),
            Problem(
                "hh-dpo: temperature, top_p, max_new_tokens, stop unknown; assumed to be the same as for the other "
                "systems",
                ["hh-dpo.jsonl"],
            ),
            Problem(
                "reward, hh-dpo: a completion has no reward: the reward model's score is NaN or infinite",
                ["hh-dpo.jsonl:4"],
            ),
            Problem(
                "judge: responses without a verdict, so their pairs have no outcome (1 cut off at --judge.max_tokens)",
                ["hh-meet-lora, runs/hh-meet-lora/good.jsonl:8: 'Both are' (finish_reason length)"],
            ),
        ],
        replicates=[
            Replicate(name, seed, 0, "hh-dpo.jsonl" if name == "hh-dpo" else f"runs/{name}", seed)
            for name in SYSTEMS
            for seed in seeds
        ],
    )


def with_delta(evaluation: Evaluation, evaluator: str, system: str, delta: Interval, p: float = 0.001) -> Evaluation:
    """Return the evaluation with another Δ and p of one comparison."""
    comparisons = [
        replace(c, rates=replace(c.rates, delta=delta, sign_p=p))
        if (c.evaluator, c.system) == (evaluator, system)
        else c
        for c in evaluation.comparisons
    ]
    return replace(evaluation, comparisons=comparisons)


def with_inconclusive_judge(evaluation: Evaluation) -> Evaluation:
    """Return the evaluation with a judge from which nothing can be concluded."""
    assert evaluation.judge
    overall = evaluation.judge.overall
    poor = replace(overall, consistency=Interval(0.35, 0.3, 0.4), chance=0.34)
    return replace(evaluation, judge=replace(evaluation.judge, overall=poor))


def _prompt(rng: np.random.Generator, number: int, topic: str) -> PromptRow:
    question = f"How do I {topic}? I have tried {int(rng.integers(2, 9))} times this week."
    prompt: str | list[dict[str, str]] = f"\n\nHuman: {question}\n\nAssistant:"
    if number % 3 == 0:
        turns = (("user", f"I want to {topic}."), ("assistant", "Good, what is the difficulty?"), ("user", question))
        prompt = [{"role": role, "content": content} for role, content in turns]
    name = hashlib.sha256(f"{number} {topic}".encode()).hexdigest()[:12]
    return PromptRow(name, prompt, _text(rng, topic, 40))


def _text(rng: np.random.Generator, topic: str, num_words: int) -> str:
    pool = np.array(f"{TOPICS[topic]} {SMALL}".split())
    words = [str(word) for word in rng.choice(pool, size=num_words)]
    for start in range(0, num_words, 11):
        words[start] = words[start].capitalize()
        words[min(start + 10, num_words - 1)] += "."
    return " ".join(words)
