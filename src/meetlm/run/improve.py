"""Rounds of rollouts and training: the model's own replies, scored, become the next round's training data.

Each round samples replies from the model of the previous round, adds them to the replies of earlier rounds, and trains
the base model on all of them (Quark's loop, Lu et al., 2022; SteerLM's bootstrapping, Dong et al., 2023). A recipe for
feedback trains on all replies, at levels that ``data.levels`` derives from their scores; other recipes train on the
best and the worst reply to each prompt and round. Replies to held-out prompts are scored before the first
round and after each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from meetlm.config.errors import ConfigError, RunError
from meetlm.config.files import locked, refuse_foreign_files, write_atomic
from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.example import Prompt, fingerprint
from meetlm.data.settings import DataSettings
from meetlm.diagnostics.intervals import Interval, mean_interval
from meetlm.evaluation.evaluate import Scorer
from meetlm.evaluation.reward_scorer import RewardScorer
from meetlm.generation.settings import Sampling
from meetlm.recipes.config import RunConfig
from meetlm.run.aligned import Aligned, load, load_base
from meetlm.run.completions import UNFINISHED
from meetlm.run.execute import execute
from meetlm.run.rollout import Rollout, is_transcript, rows_of, sample_rollouts

RECORD = "improve.json"
LEVELS_SOURCE = "feedback"
"""Format of the data of recipes that train on levels of scores."""


@dataclass(frozen=True, slots=True)
class RoundResult:
    """The result of a round; round 0 is the model before training.

    Attributes:
        number: Number of the round.
        num_rows: Training rows of all rounds so far: pairs, or replies with scores.
        score: Mean score of greedy replies to the held-out prompts, with its 95% interval over prompts.
    """

    number: int
    num_rows: int
    score: Interval


def improve(
    config: RunConfig,
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt],
    scorer: Scorer,
    folder: Path,
    *,
    sampling: Sampling,
    rounds: int = 2,
    replies: int = 4,
    batch_size: int = 32,
    reporter: Reporter = SILENT,
) -> list[RoundResult]:
    """Run rounds of rollouts and training; an interrupted call continues, and more rounds may be added later.

    Args:
        config: The recipe; the rollouts replace its data. Of the data settings, only ``data.max_length`` and, for the
            format ``feedback``, ``data.levels`` are used.
        prompts: Prompts to sample and train on.
        held_out: Held-out prompts, whose replies are scored.
        scorer: Scores the replies.
        folder: Folder of the rounds.
        sampling: How to sample replies to train on.
        rounds: Number of rounds.
        replies: Number of replies per prompt and round.
        batch_size: Prompts per batch.
        reporter: Shows messages and progress.

    Returns:
        A result for the base model and for each round.

    Raises:
        RunError: ``folder`` contains other files, or rounds with other settings or prompts.
        ConfigError: The replies of a round give no training or no held-out pair, or define no levels.
    """
    if replies < 2:
        raise ConfigError(
            f"--replies {replies}: expected 2 or more, since training compares replies to the same prompt"
        )
    with locked(folder):
        _begin(config, (*prompts, *held_out), scorer, sampling, replies, folder)
        trains_levels = config.data.source == LEVELS_SOURCE
        form = "scores" if trains_levels else "pairs"
        source = LEVELS_SOURCE if trains_levels else "hh" if all(map(is_transcript, prompts)) else "pairs"
        aligned = load_base(
            config.model,
            source,
            conversational=prompts[0].is_chat,
            system=config.format.system,
            reasoning=config.format.reasoning,
        )
        greedy = sampling.model_copy(update={"temperature": 0.0})
        pool: dict[str, list[dict[str, Any]]] = {"training": [], "held-out": []}
        results: list[RoundResult] = []
        for number in range(rounds + 1):
            round_folder = folder / f"round-{number}"
            round_folder.mkdir(exist_ok=True)
            if number:
                run = round_folder / "run"
                data = _write_pool(pool, round_folder, source, form, config.data)
                execute(config.model_copy(update={"data": data}), run, reporter=reporter)
                aligned = load(run, device=config.model.device)
            sample = partial(
                _rollouts,
                aligned,
                scorer,
                round_folder,
                seed=config.seed + number,
                batch_size=batch_size,
                reporter=reporter,
            )
            scores = [rollout.scores[0] for rollout in sample(held_out, greedy, "measured", replies=1)]
            results.append(
                RoundResult(number, len(pool["training"]), mean_interval(np.array(scores), range(len(scores))))
            )
            reporter.message(f"round {number}: mean score of held-out replies {results[-1].score}")
            write_atomic(folder / "results.json", json.dumps([asdict(result) for result in results], indent=2) + "\n")
            if number < rounds:
                for kind, asked in (("training", prompts), ("held-out", held_out)):
                    pool[kind] += rows_of(sample(asked, sampling, kind, replies=replies), form)
        return results


def _rollouts(
    aligned: Aligned,
    scorer: Scorer,
    folder: Path,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    kind: str,
    *,
    replies: int,
    seed: int,
    batch_size: int,
    reporter: Reporter,
) -> list[Rollout]:
    """Return the rollouts in a file of the folder, sampled if there is none."""
    file = folder / f"{kind}.jsonl"
    if file.is_file():
        rows = [json.loads(line) for line in file.read_bytes().splitlines()]
        return [Rollout(Prompt.from_json(row["prompt"]), tuple(row["replies"]), tuple(row["scores"])) for row in rows]
    reporter.message(f"{folder.name}: sampling {replies} x {len(prompts)} replies ({kind})")
    unfinished = file.with_name(file.name + UNFINISHED)
    rollouts = sample_rollouts(
        aligned,
        prompts,
        scorer,
        sampling,
        unfinished,
        replies=replies,
        seed=seed,
        batch_size=batch_size,
        reporter=reporter,
    )
    rows = [{"prompt": r.prompt.to_json(), "replies": r.replies, "scores": r.scores} for r in rollouts]
    write_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    unfinished.unlink(missing_ok=True)
    return rollouts


def _begin(
    config: RunConfig, prompts: Sequence[Prompt], scorer: Scorer, sampling: Sampling, replies: int, folder: Path
) -> None:
    """Record the settings of the rounds, or compare them with the record."""
    record = {
        "config": config.model_dump(mode="json", exclude={"data"}),
        "max_length": config.data.max_length,
        "prompts_sha256": fingerprint((prompt,) for prompt in prompts),
        "scorer": scorer.description if isinstance(scorer, RewardScorer) else scorer.name,
        "sampling": sampling.model_dump(),
        "replies": replies,
    }
    if config.data.source == LEVELS_SOURCE:
        record["levels"] = config.data.levels.model_dump(mode="json")
    file = folder / RECORD
    if file.is_file():
        earlier = json.loads(file.read_text(encoding="utf-8"))
        changed = [name for name, value in record.items() if earlier.get(name) != value]
        if changed:
            raise RunError(f"{folder} holds rounds of other settings ({', '.join(changed)}); choose another folder")
        return
    refuse_foreign_files(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(record, indent=2) + "\n")


def _write_pool(
    pool: dict[str, list[dict[str, Any]]], folder: Path, source: str, form: str, settings: DataSettings
) -> DataSettings:
    """Write the rows of all rounds so far, and return where they are."""
    files = {}
    for kind, rows in pool.items():
        if not rows:
            raise ConfigError(f"the replies to each of the {kind} prompts have equal scores, so there is no pair")
        files[kind] = folder / f"{kind}-{form}.jsonl"
        write_atomic(files[kind], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return DataSettings(
        source=source,
        train_file=str(files["training"]),
        eval_file=str(files["held-out"]),
        max_length=settings.max_length,
        levels=settings.levels,
    )
