"""The demo: train, then answer held-out prompts under both levels and with the base model, and score the replies."""

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
from meetlm.data.sources import read_examples
from meetlm.demo.build import base_session, sample
from meetlm.demo.rule import first_person
from meetlm.diagnostics.intervals import Interval, mean_interval
from meetlm.generation.session import Session
from meetlm.generation.settings import Sampling
from meetlm.recipes.config import RunConfig, load_config
from meetlm.run.aligned import Aligned, load
from meetlm.run.execute import execute
from meetlm.run.folder import CONFIG, MEET, write_config
from meetlm.run.prepared import prepare_data

SYSTEMS = ("good", "bad", "base model")
SAMPLED = Sampling(max_new_tokens=32, temperature=1.0, top_p=0.95)
GREEDY = Sampling(max_new_tokens=32)


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The results of the demo.

    Attributes:
        scores: Mean score of sampled replies to held-out prompts, by level and of the base model, with intervals over
            prompts.
        difference: Mean of score(good) − score(bad), paired by prompt.
        accuracy: Preference accuracy on held-out pairs before training and after each stage.
        examples: Prompts with the greedy reply of each level and of the base model.
        seconds: Wall time.
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
    """Return the demo's configuration; its data are in the package."""
    folder = Path(str(resources.files("meetlm.demo")))
    files = {"data.train_file": folder / "train.jsonl", "data.eval_file": folder / "test.jsonl"}
    data = [Override(key, str(path)) for key, path in files.items()]
    config = load_config(None, folder / "demo.yaml", [*data, *overrides])
    if not config.uses_levels:
        raise ConfigError("the demo compares levels, and no stage of this configuration uses them")
    return config


def run_demo(
    folder: Path,
    overrides: Sequence[str | Override],
    *,
    prompts: int = 60,
    shown: int = 4,
    reporter: Reporter = SILENT,
) -> DemoResult:
    """Train, unless the folder holds the finished run of the same configuration and data; sample and score.

    Args:
        folder: Folder of the run.
        overrides: Settings over the demo's configuration.
        prompts: Number of held-out prompts to sample replies to.
        shown: Number of prompts to show with greedy replies.
        reporter: Shows what is being done.

    Raises:
        RunError: The folder holds a run of another configuration or other data.
        MeetError: Data, model or configuration cannot be used.
    """
    started = time.perf_counter()
    config = demo_config(overrides)
    questions = _held_out(config, prompts)
    finished = (folder / MEET).exists()
    if not finished:
        execute(config, folder, reporter=reporter)
    aligned = load(folder, device=config.model.device)
    if finished:
        _same_run(folder, config, aligned)
        reporter.message(f"using the finished run in {folder}")
    reporter.message(f"sampling replies to {len(questions)} held-out prompts: {', '.join(SYSTEMS)}")
    base = base_session(config.model, aligned.meet.format)
    replies = _replies(aligned, base, questions, SAMPLED, reporter)
    scores = {system: np.array([first_person(text) for text in replies[system]]) for system in SYSTEMS}
    greedy = _replies(aligned, base, questions[:shown], GREEDY, reporter)
    result = DemoResult(
        scores={system: mean_interval(scores[system], range(len(questions)), bounds=(0, 1)) for system in SYSTEMS},
        difference=mean_interval(scores["good"] - scores["bad"], range(len(questions)), bounds=(-1, 1)),
        accuracy={
            when: Interval(**entry["by_sum"])
            for when, entry in json.loads((folder / "preference.json").read_text()).items()
        },
        examples=[
            {"prompt": prompt, **{system: greedy[system][i] for system in SYSTEMS}}
            for i, prompt in enumerate(questions[:shown])
        ],
        seconds=round(time.perf_counter() - started, 1),
    )
    (folder / "demo.json").write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    return result


def _held_out(config: RunConfig, count: int) -> list[str]:
    """Return the first ``count`` distinct held-out prompts; each must be a single user message."""
    prompts: dict[str, None] = {}
    for example in read_examples(config.data, "eval").rows:
        match example.prompt.content:
            case (Turn(role="user", content=text),):
                prompts[text] = None
            case _:
                raise DataError(
                    "the demo cannot use this prompt",
                    file=example.origin.file,
                    line=example.origin.line,
                    field="prompt",
                    expected="one message with the role user",
                )
    return list(prompts)[:count]


def _same_run(folder: Path, config: RunConfig, aligned: Aligned) -> None:
    """Refuse a finished run of another configuration or other data."""
    if not (folder / CONFIG).is_file():
        raise RunError(f"{folder} holds a finished run without its {CONFIG}; choose another folder or remove it")
    write_config(folder, config, prepare_data(config.data, aligned.format).fingerprint)  # compares, as one is there


def _replies(
    aligned: Aligned,
    base: Session,
    prompts: list[str],
    sampling: Sampling,
    reporter: Reporter,
) -> dict[str, list[str]]:
    replies = {
        level: [c.completion for c in aligned.complete(prompts, level, sampling, batch_size=64, reporter=reporter)]
        for level in ("good", "bad")
    }
    answered = sample(base, prompts, sampling, replies=1, seed=0, reporter=reporter)
    return {**replies, "base model": [texts[0] for texts in answered]}
