"""Runs the demo and shows it: training, then held-out prompts answered under both levels and by the untouched model."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from meetlm.config.errors import ConfigError, DataError, RunError
from meetlm.config.overrides import Override
from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.example import Turn
from meetlm.data.levels import PAIR_LEVELS
from meetlm.data.sources import read_examples
from meetlm.demo.build import sample, untouched_engine
from meetlm.demo.rule import first_person
from meetlm.diagnostics.intervals import Interval, mean_interval
from meetlm.generation.engine import Engine
from meetlm.generation.sampling import Sampling
from meetlm.recipes.config import RunConfig, load_config
from meetlm.run.aligned import Aligned, load
from meetlm.run.execute import execute
from meetlm.run.folder import CONFIG, MEET, write_config
from meetlm.run.prepared import prepare_data

ARMS = ("good", "bad", "untouched")
SAMPLED = Sampling(max_new_tokens=32, temperature=1.0, top_p=0.95)
GREEDY = Sampling(max_new_tokens=32)


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo found.

    Attributes:
        scores: Mean score by arm on held-out prompts, sampled, with intervals over prompts.
        difference: Mean of score(good) − score(bad), paired by prompt.
        accuracy: Preference accuracy on held-out pairs: before training, after each step.
        examples: Prompt, then the reply of each arm, greedy.
        seconds: Wall time of everything.
    """

    scores: dict[str, Interval]
    difference: Interval
    accuracy: dict[str, Interval]
    examples: list[dict[str, str]]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def demo_config(overrides: Sequence[str | Override]) -> RunConfig:
    """Return the demo's configuration, its data those in the package."""
    folder = Path(str(resources.files("meetlm.demo")))
    files = {"data.train_file": folder / "train.jsonl", "data.eval_file": folder / "test.jsonl"}
    data = [Override(key, str(path)) for key, path in files.items()]
    config = load_config(None, folder / "demo.yaml", [*data, *overrides])
    if config.control.levels != PAIR_LEVELS:
        raise ConfigError(f"the demo shows the levels {', '.join(PAIR_LEVELS)}, not {', '.join(config.control.levels)}")
    return config


def run_demo(
    folder: Path,
    overrides: Sequence[str | Override],
    *,
    prompts: int = 60,
    shown: int = 4,
    reporter: Reporter = SILENT,
) -> DemoResult:
    """Train (unless the folder holds the finished run of the same configuration and data), sample, score.

    Args:
        folder: The run's folder.
        overrides: Of the configuration.
        prompts: Held-out prompts to sample for, one sample an arm.
        shown: How many to answer greedily, side by side.
        reporter: Shows what is being done.

    Raises:
        RunError: The folder holds a run of another configuration or other data.
        MeetError: Data, model or configuration cannot be used.
    """
    started = time.perf_counter()
    config = demo_config(overrides)
    asked = _held_out(config, prompts)
    finished = (folder / MEET).exists()
    if not finished:
        execute(config, folder, reporter=reporter)
    aligned = load(folder, device=config.model.device)
    if finished:
        _same_run(folder, config, aligned)
        reporter.message(f"using the finished run in {folder}")
    reporter.message(f"sampling replies to {len(asked)} held-out prompts: {', '.join(ARMS)}")
    untouched = untouched_engine(config.model, aligned.meet.format)
    replies = _replies(aligned, untouched, asked, SAMPLED, reporter)
    scores = {arm: np.array([first_person(text) for text in replies[arm]]) for arm in ARMS}
    greedy = _replies(aligned, untouched, asked[:shown], GREEDY, reporter)
    result = DemoResult(
        scores={arm: mean_interval(scores[arm], range(len(asked)), bounds=(0, 1)) for arm in ARMS},
        difference=mean_interval(scores["good"] - scores["bad"], range(len(asked)), bounds=(-1, 1)),
        accuracy={
            when: Interval(**entry["by_sum"])
            for when, entry in json.loads((folder / "preference.json").read_text()).items()
        },
        examples=[
            {"prompt": prompt, **{arm: greedy[arm][i] for arm in ARMS}} for i, prompt in enumerate(asked[:shown])
        ],
        seconds=round(time.perf_counter() - started, 1),
    )
    (folder / "demo.json").write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    return result


def _held_out(config: RunConfig, count: int) -> list[str]:
    """Return the first ``count`` different held-out prompts; each must be one message."""
    prompts: dict[str, None] = {}
    for example in read_examples(config.data, "eval").rows:
        match example.prompt.content:
            case (Turn(role="user", content=text),):
                prompts[text] = None
            case _:
                raise DataError(
                    "the demo cannot ask it",
                    file=example.origin.file,
                    line=example.origin.line,
                    field="prompt",
                    expected="a conversation of one message, a user's",
                )
    return list(prompts)[:count]


def _same_run(folder: Path, config: RunConfig, aligned: Aligned) -> None:
    """Refuse a finished run of another configuration or other data."""
    if not (folder / CONFIG).is_file():
        raise RunError(f"{folder} holds a finished run without its {CONFIG}; choose another folder or remove it")
    write_config(folder, config, prepare_data(config.data, aligned.format).fingerprint)  # compares, as one is there


def _replies(
    aligned: Aligned,
    untouched: Engine,
    prompts: list[str],
    sampling: Sampling,
    reporter: Reporter,
) -> dict[str, list[str]]:
    replies = {
        level: [c.completion for c in aligned.complete(prompts, level, sampling, batch_size=64, reporter=reporter)]
        for level in ("good", "bad")
    }
    answered = sample(untouched, prompts, sampling, replies=1, seed=0, reporter=reporter)
    return {**replies, "untouched": [texts[0] for texts in answered]}
