"""The tasks of the experiments: their data, written once to ``runs/experiments/data``, and their exact rewards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from meetlm.config.files import write_atomic
from meetlm.demo.scorers import formality
from meetlm.generation.settings import Sampling
from meetlm.policy.loading import ModelSettings
from meetlm.run.aligned import Aligned, load_base

SPLITS = ("train", "validation", "test")
DATA = Path("runs/experiments/data")


def casual_tone(prompt: object, reply: str) -> float | None:
    """Casual minus formal markers per ten words, by the demo's lexicon."""
    value = formality(prompt, reply)
    return None if value is None else -value


def short_words(prompt: object, reply: str) -> float | None:
    """Minus the mean number of letters per word."""
    del prompt
    words = re.findall(r"[^\W\d_]+", reply)
    return -sum(map(len, words)) / len(words) if words else None


SCORERS = {"casual_tone": casual_tone, "short_words": short_words}


def file_name(name: str) -> str:
    """Return a name of the plan as part of a file's name."""
    return name.replace(" ", "-").replace(",", "")


def arm_name(experiment: str, name: str, seed: int) -> str:
    """Return the name of an arm, which is the path of its result below ``results/``."""
    return f"{experiment}/{file_name(name)}-seed{seed}"


@cache
def base_model() -> Aligned:
    """Return the base model."""
    return load_base(ModelSettings(name="smollm2"), "pairs", conversational=True, system="none", reasoning=False)


@cache
def read_plan() -> dict[str, Any]:
    """Return the plan."""
    plan: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "plan.yaml").read_text(encoding="utf-8"))
    return plan


def demo_rows(split: str) -> list[dict[str, Any]]:
    """Return the rows of a split of the demo's data: a prompt and four replies with tone and length."""
    text = (resources.files("meetlm.demo") / "data" / f"{split}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return rows[: read_plan()["train_prompts"]] if split == "train" else rows


def prompts_of(task: Mapping[str, Any], split: str) -> list[list[dict[str, str]]]:
    """Return the prompts of a split, with the task's instruction at the end."""
    instruction = task.get("instruction", "")
    return [
        [*row["prompt"][:-1], {"role": "user", "content": row["prompt"][-1]["content"] + instruction}]
        for row in demo_rows(split)
    ]


def pair_files(name: str, task: Mapping[str, Any], sampled: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files of a task's preference pairs by split, written if they are missing."""
    files = {split: DATA / name / f"{split}-pairs.jsonl" for split in SPLITS}
    if not all(file.is_file() for file in files.values()):
        for split, file in files.items():
            rows = _tone_pairs(split) if "replies" not in task else _reward_pairs(name, task, sampled, split)
            write_rows(file, rows)
    return files


def reply_files(name: str, task: Mapping[str, Any], sampled: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files of the base model's replies with their scores by split, sampled if they are missing."""
    scorer = SCORERS[task["scorer"]]
    files = {split: DATA / name / f"{split}-replies.jsonl" for split in SPLITS}
    for split, file in files.items():
        if file.is_file():
            continue
        prompts, count = prompts_of(task, split), task["replies"][split]
        sampling = Sampling(max_new_tokens=task["max_new_tokens"], **sampled)
        records = base_model().complete([p for p in prompts for _ in range(count)], None, sampling, batch_size=128)
        rows = []
        for number, prompt in enumerate(prompts):
            group = records[number * count :][:count]
            complete = [record.completion for record in group if record.finish == "eos"]
            scores = {text: score for text in complete if (score := scorer(prompt, text)) is not None}
            if len(scores) > 1:
                rows.append({"prompt": prompt, "completions": list(scores), "scores": list(scores.values())})
        write_rows(file, rows)
    return files


def _reward_pairs(
    name: str, task: Mapping[str, Any], sampled: Mapping[str, Any], split: str
) -> Iterable[dict[str, Any]]:
    """Yield the best and the worst reply to each prompt."""
    for line in reply_files(name, task, sampled)[split].read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        scores = row["scores"]
        if max(scores) > min(scores):
            chosen, rejected = (row["completions"][scores.index(extreme(scores))] for extreme in (max, min))
            yield _pair(row["prompt"], chosen, rejected)


def _tone_pairs(split: str) -> Iterable[dict[str, Any]]:
    """Yield the casual and the formal reply to each prompt: brief ones to even, detailed ones to odd prompts."""
    for number, row in enumerate(demo_rows(split)):
        length = ("brief", "detailed")[number % 2]
        replies = {
            attributes["tone"]: reply
            for attributes, reply in zip(row["attributes"], row["completions"], strict=True)
            if attributes["length"] == length
        }
        yield _pair(row["prompt"], replies["casual"], replies["formal"])


def _pair(prompt: list[dict[str, str]], chosen: str, rejected: str) -> dict[str, Any]:
    replies = {"chosen": chosen, "rejected": rejected}
    return {"prompt": prompt, **{name: [{"role": "assistant", "content": text}] for name, text in replies.items()}}


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
