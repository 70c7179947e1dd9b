"""Trains a reward model from preference data with TRL's ``RewardTrainer``, whose loss is −log σ(r_chosen − r_rejected).

What comes out is a plain classifier of transformers, tokenizer beside it, that loads without meetlm. TRL is asked for
nothing but the loop and the loss: pairs are read, filtered and encoded here, so that training reads what scoring reads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig

from meetlm.config.errors import ConfigError, RunError
from meetlm.config.files import write_atomic
from meetlm.config.versions import versions
from meetlm.data.splits import read_splits
from meetlm.diagnostics.preference import Rate, wins
from meetlm.evaluation.reward import RewardModel, RewardSettings
from meetlm.evaluation.reward_data import RewardPairs, prepare_pairs, training_form
from meetlm.evaluation.reward_input import RECORD, RewardInput
from meetlm.evaluation.reward_loop import CHECKPOINTS, RewardTraining, run_loop
from meetlm.evaluation.statistics import mean
from meetlm.policy.loading import EMBEDDED, embedded_lm, load_tokenizer

DONE = "reward.json"
EXECUTION_ONLY = ("device", "micro_pairs", "save_steps", "gradient_checkpointing")
"""Settings that may change when a training goes on."""
VERSIONS = ("meetlm", "torch", "transformers", "trl", "peft")


@dataclass(frozen=True, slots=True)
class TrainedReward:
    """What :func:`train_reward` made; ``reward.json`` beside the checkpoint has it too.

    Attributes:
        folder: The checkpoint.
        accuracy: How often the chosen reply of a held-out pair has the higher reward, a tie counting half.
        longer: How often it is the longer one, in characters: what preferring length alone would reach.
        num_test: Held-out pairs, one a prompt.
        num_train: Pairs trained on.
        steps: Optimizer steps.
    """

    folder: Path
    accuracy: Rate
    longer: Rate
    num_test: int
    num_train: int
    steps: int

    def __str__(self) -> str:
        verdict = "above chance" if self.accuracy.low > 0.5 else "not told from chance"
        return (
            f"held-out accuracy {self.accuracy} on {self.num_test} pairs ({verdict}); "
            f"always the longer reply: {self.longer}"
        )


def train_reward(
    settings: RewardTraining,
    out: Path,
    *,
    say: Callable[[str], object] = lambda text: None,
    on_total: Callable[[int], object] = lambda number: None,
    on_done: Callable[[int], object] = lambda number: None,
) -> TrainedReward:
    """Train a reward model and measure it on held-out pairs; what was interrupted goes on at its last checkpoint.

    Args:
        settings: What to train, on what.
        out: The checkpoint's folder; created. A finished one of the same settings and data is left as it is.
        say: Is told what became of the rows, and how they are read.
        on_total: Is told the number of optimizer steps.
        on_done: Is told the number of steps done.

    Raises:
        ConfigError: TRL is not installed, or the model cannot be loaded.
        DataError: The data cannot be read.
        RunError: ``out`` holds another training, or training has diverged.
    """
    if find_spec("trl") is None:
        raise ConfigError("training a reward model needs TRL: pip install 'meetlm[reward]'")
    source = str(embedded_lm()) if settings.model == EMBEDDED else settings.model
    tokenizer = load_tokenizer(source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ConfigError(f"the tokenizer of {settings.model!r} has neither a pad token nor an EOS token to pad with")
    recorded = getattr(AutoConfig.from_pretrained(source), RECORD, None)
    train, held = read_splits(settings.data)
    form, told_by = training_form(tokenizer, recorded, settings.input, isinstance(train.rows[0].prompt, str))
    pairs = prepare_pairs(settings.data, train, held, RewardInput(tokenizer, form, None))
    for line in (*pairs.lines(), f"the reward model reads {form}: {told_by}"):
        say(line)
    record = _begin(settings, out, pairs.fingerprint, form)
    if "accuracy" in record:
        say(f"{out} is finished")
        return _result(out, record)
    steps = run_loop(settings, source, tokenizer, pairs.train, out, form, on_total, on_done)
    accuracy, longer = _measure(settings, out, pairs)
    record |= {
        "accuracy": asdict(accuracy),
        "longer": asdict(longer),
        "num_test": len(pairs.test),
        "num_train": len(pairs.train),
        "steps": steps,
        "rows": [report.to_dict() for report in pairs.reports],
        "num_seen": pairs.num_seen,
    }
    write_atomic(out / DONE, json.dumps(record, indent=2) + "\n")
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    return _result(out, record)


def _begin(settings: RewardTraining, out: Path, fingerprint: str, form: str) -> dict[str, Any]:
    """Return the record of the training in ``out``, which must be this one; a new one is written."""
    resolved = json.loads(settings.model_dump_json())
    file = out / DONE
    if file.is_file():
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        before = record["settings"]
        keys = [key for key in resolved if key not in (*EXECUTION_ONLY, "data") and before.get(key) != resolved[key]]
        others = [f"{key} was {before.get(key)!r} and is {resolved[key]!r}" for key in keys]
        if record["data_sha256"] != fingerprint:
            others.append("the pairs are others")
        if others:
            raise RunError(f"{out} holds another reward model's training: {'; '.join(others)}; expected another folder")
        return record
    if out.is_dir() and any(out.iterdir()):
        raise RunError(f"{out} is not empty and holds no reward model's training; expected another folder")
    out.mkdir(parents=True, exist_ok=True)
    record = {
        "settings": resolved,
        "input": form,
        "data_sha256": fingerprint,
        "versions": versions(*VERSIONS),
    }
    write_atomic(file, json.dumps(record, indent=2) + "\n")
    return record


def _result(out: Path, record: dict[str, Any]) -> TrainedReward:
    accuracy, longer = Rate(**record["accuracy"]), Rate(**record["longer"])
    return TrainedReward(out, accuracy, longer, record["num_test"], record["num_train"], record["steps"])


def _measure(settings: RewardTraining, out: Path, pairs: RewardPairs) -> tuple[Rate, Rate]:
    """Return the accuracy on held-out pairs of the checkpoint as it was written, and that of the longer reply."""
    scorer = RewardModel.load(RewardSettings(model=str(out), device=settings.device))
    prompts, completions = pairs.held_out()
    origins = [f"{example.origin}" for example in pairs.test for _ in range(2)]
    found = scorer.score(prompts, completions, names=origins)
    if any(one is None for one in found):
        said = "; ".join(f"{one.what} ({one.count}: {', '.join(one.examples)})" for one in scorer.problems)
        raise RunError(f"training has diverged, a lower lr may help: {said}")
    rewards = np.array(found, dtype=np.float64)
    sizes = np.array([len(completion.strip()) for completion in completions])
    return _rate(wins(rewards[::2], rewards[1::2])), _rate(wins(sizes[::2], sizes[1::2]))


def _rate(outcomes: NDArray[np.float64]) -> Rate:
    """Return the mean of ``outcomes`` [S], one a prompt, with the interval that an evaluation's figures have."""
    found = mean(outcomes.tolist(), range(len(outcomes)))
    assert found is not None, "there is a held-out pair"
    return Rate(found.value, found.low, found.high)
