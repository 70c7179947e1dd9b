"""The demo: train two attributes, answer held-out prompts at every combination of levels, and score the replies."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from meetlm.config.errors import RunError
from meetlm.config.overrides import Override
from meetlm.config.reporter import SILENT, Reporter
from meetlm.controls.build import build_control
from meetlm.data.example import Prompt, Turn
from meetlm.data.sources import read_examples
from meetlm.demo.scorers import ATTRIBUTES, score_length, score_tone
from meetlm.diagnostics.intervals import Interval, mean_interval
from meetlm.evaluation.dial import repetition
from meetlm.generation.decoding import Branch
from meetlm.generation.session import Request, Session
from meetlm.generation.settings import Sampling
from meetlm.policy.loading import load_lm
from meetlm.policy.policy import Policy
from meetlm.recipes.config import RunConfig, load_config
from meetlm.run.aligned import Aligned, load
from meetlm.run.execute import execute
from meetlm.run.folder import CONFIG, MEET, write_config
from meetlm.run.prepared import prepare_data
from meetlm.training.checkpoints import checkpoints, load_trained
from meetlm.training.run_stage import set_trainable

CELLS = tuple(product(*ATTRIBUTES.values()))
"""The combinations of tone and length that replies are generated at."""

GREEDY = Sampling(max_new_tokens=96)

BASE = "base model + prompting"
INSTRUCTIONS = {
    "brief": "Reply in a {tone} tone, in one short sentence.",
    "detailed": "Reply in a {tone} tone, in detail.",
}
"""The instruction that is appended to a prompt for the base model, which has no levels; by length."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The results of the demo.

    Attributes:
        shares: For the base model and after each stage, the share of replies to held-out prompts that have the
            requested tone, length, and both, with intervals over prompts.
        repetition: Mean share of repeated 4-grams in a generated reply; 0 in a reply of fewer than four words.
        gain: Difference between the last two rows of ``shares`` for both attributes, paired by prompt.
        grids: Prompts, each with the reply of the finished run for each tone and length.
        seconds: Wall time.
    """

    shares: dict[str, dict[str, Interval]]
    repetition: dict[str, float]
    gain: Interval
    grids: list[dict[str, Any]]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def demo_config(overrides: Sequence[str | Override]) -> RunConfig:
    """Return the demo's configuration; its data are in the package."""
    folder = Path(str(resources.files("meetlm.demo")))
    files = {"data.train_file": folder / "data" / "train.jsonl", "data.eval_file": folder / "data" / "test.jsonl"}
    data = [Override(key, str(path)) for key, path in files.items()]
    return load_config(None, folder / "demo.yaml", [*data, *overrides])


def run_demo(
    folder: Path,
    overrides: Sequence[str | Override],
    *,
    limit: int,
    num_grids: int = 3,
    reporter: Reporter = SILENT,
) -> DemoResult:
    """Train, unless the folder holds the finished run of the same configuration and data; generate and score.

    Args:
        folder: Folder of the run.
        overrides: Settings over the demo's configuration.
        limit: Maximum number of held-out prompts to generate replies to.
        num_grids: Number of prompts whose replies are in the result.
        reporter: Shows what is being done.

    Raises:
        RunError: The folder holds a run of another configuration or other data.
        MeetError: Data, model or configuration cannot be used.
    """
    start = time.perf_counter()
    config = demo_config(overrides)
    questions = [example.prompt for example in read_examples(config.data, "eval").rows][:limit]
    is_finished = (folder / MEET).exists()
    if not is_finished:
        execute(config, folder, reporter=reporter)
    aligned = load(folder, device=config.model.device)
    if is_finished:
        _refuse_other_run(folder, config, aligned)
        reporter.message(f"using the finished run in {folder}")
    hits: dict[str, np.ndarray[Any, Any]] = {}
    replies: dict[tuple[str, ...], list[str]] = {}
    repetitions: dict[str, float] = {}
    for system, model in _systems(aligned, config, folder):
        reporter.message(f"{system}: {len(questions) * len(CELLS)} replies to {len(questions)} held-out prompts")
        replies = _replies(model, questions, system == BASE, reporter)
        hits[system] = np.array([[_hits(text, cell) for text in replies[cell]] for cell in CELLS], dtype=float)
        repetitions[system] = fmean(repetition(text) or 0 for cell in CELLS for text in replies[cell])
    ids = list(range(len(questions))) * len(CELLS)
    before, after = [hits[system][..., -1].ravel() for system in list(hits)[-2:]]
    result = DemoResult(
        shares={
            system: {
                name: mean_interval(hits[system][..., column].ravel(), ids, bounds=(0, 1))
                for column, name in enumerate((*ATTRIBUTES, "both"))
            }
            for system in hits
        },
        repetition=repetitions,
        gain=mean_interval(after - before, ids, bounds=(-1, 1)),
        grids=[
            {"prompt": prompt.text(), "replies": [{"levels": cell, "text": replies[cell][index]} for cell in CELLS]}
            for index, prompt in enumerate(questions[:num_grids])
        ],
        seconds=round(time.perf_counter() - start, 1),
    )
    (folder / "demo.json").write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    return result


def _systems(aligned: Aligned, config: RunConfig, folder: Path) -> Iterator[tuple[str, Aligned]]:
    """Yield a name and a model: the base model, the model after each earlier stage, and the finished run.

    All but the last are one model whose weights change: use each before the next.
    """
    lm, _ = load_lm(config.model)
    control = build_control(config.control, aligned.levels, lm, aligned.format.tokenize, config.seed)
    model = Aligned(Policy(lm, control), aligned.format, aligned.meet)
    yield BASE, model
    *earlier, last = config.stages
    for stage in earlier:
        set_trainable(model.policy, stage)
        load_trained(model.policy, checkpoints(folder / stage.name)[-1])
        yield f"after {stage.name}", model
    yield f"after {last.name}", aligned


def _replies(
    model: Aligned, prompts: Sequence[Prompt], with_instructions: bool, reporter: Reporter
) -> dict[tuple[str, ...], list[str]]:
    """Return the replies to all prompts by cell; ``with_instructions`` adds one to each prompt."""
    requests = []
    for cell in CELLS:
        weights = model.weights(dict(zip(ATTRIBUTES, cell, strict=True)))
        for prompt in prompts:
            full_prompt = _with_instruction(prompt, *cell) if with_instructions else prompt
            ids = tuple(model.encoder.prompt(full_prompt, weights))
            requests.append(Request((Branch(ids, weights),), GREEDY))
    session = Session(model.policy, model.format, batch_size=len(requests))
    texts = [result.text for result in session.complete(requests, reporter=reporter)]
    return {cell: texts[at * len(prompts) :][: len(prompts)] for at, cell in enumerate(CELLS)}


def _with_instruction(prompt: Prompt, tone: str, length: str) -> Prompt:
    """Return the prompt with an instruction on tone and length."""
    return Prompt((Turn("user", f"{prompt.text()}\n\n{INSTRUCTIONS[length].format(tone=tone)}"),))


def _hits(reply: str, cell: tuple[str, ...]) -> tuple[bool, bool, bool]:
    """Return whether a reply has the requested tone, length, and both."""
    tone, length = cell
    has_tone, has_length = score_tone(reply) == tone, score_length(reply) == length
    return has_tone, has_length, has_tone and has_length


def _refuse_other_run(folder: Path, config: RunConfig, aligned: Aligned) -> None:
    """Refuse a finished run of another configuration or other data."""
    if not (folder / CONFIG).is_file():
        raise RunError(f"{folder} holds a finished run without its {CONFIG}; choose another folder or remove it")
    write_config(folder, config, prepare_data(config.data, aligned.format).fingerprint)  # compares, as one is there
